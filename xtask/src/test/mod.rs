// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: the levels of the test pyramid as stages, with the time each one took.
//!
//! nextest runs them where it is installed; elsewhere the test programs are run one by one.
//! **Invariant:** nothing is skipped silently: a level that cannot run here is named with the
//! reason, and is a failure where `LB_REQUIRE_BPF=1`; a failed stage does not hide the later ones.
//! Read next: nextest.rs and plain.rs, the runners; outcome.rs, the table; fresh.rs for the bare machine.

mod nextest;
mod outcome;
mod plain;
mod vm;

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Subcommand, ValueEnum};

use self::outcome::{Counts, Outcome, refused, report, selected_nothing};
use self::vm::Vm;
use crate::doctor::{self, Scope};
use crate::fresh::Fresh;
use crate::helm;
use crate::process::{cargo, find_program, run, target_dir, wait_through_interrupts};

/// Runs tests: all levels, or one, or those of a level whose name contains a word.
///
/// Gets what the machine lacks first, as `doctor --fix --for test` does. Ends with a table of the
/// time each stage took and one line `N passed, N failed`.
#[derive(clap::Args)]
pub(crate) struct Test {
    #[command(subcommand)]
    level: Option<Level>,
    /// What runs the tests
    #[arg(long, value_enum, default_value_t = Runner::Auto, global = true)]
    runner: Runner,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Runner {
    /// cargo-nextest where it is installed, else plain
    Auto,
    /// cargo-nextest: each test in a process of its own, but those of packets
    Nextest,
    /// The test programs as cargo builds them
    Plain,
}

/// The words that select tests by name.
#[derive(clap::Args, Default)]
pub(crate) struct Filter {
    /// Only tests whose names contain this
    filter: Option<String>,
}

#[derive(Subcommand)]
enum Level {
    /// Everything below except soak, vm and fresh; what no level at all means, too
    All(Filter),
    /// Pure functions: tables and property tests beside the code, examples in the documentation
    Unit(Filter),
    /// Scenarios: Kubernetes YAML in, the text of the tables out; API servers that misbehave
    Golden(Filter),
    /// The verifier gate, and packets through the programs in the kernel (needs `CAP_BPF`)
    Bpf(Filter),
    /// Clusters of network namespaces with real sockets (needs root)
    Net(Filter),
    /// The chart, as `cargo xtask helm test` looks at it
    Helm,
    /// The net level with long runs; no part of `all`
    Soak(Filter),
    /// The same tests on other kernels, in virtual machines; of these `all` runs a few on two kernels
    Vm(Vm),
    /// The README's commands on a bare machine, made of a minimal root file system; no part of `all`
    Fresh(Fresh),
}

/// A level of the pyramid: which tests belong to it, in the words of both runners.
struct Stage {
    name: &'static str,
    /// nextest's words for the tests of this stage.
    expression: &'static str,
    /// The same by package, kind of target and name of target.
    selects: fn(&str, &str, &str) -> bool,
    needs_privileges: bool,
    /// Whether the examples in the documentation belong to it, too.
    has_examples: bool,
}

/// Tests that need no privileges; all others of lb-agent load programs, and of lb-lab make namespaces.
const GOLDEN_TESTS: [&str; 4] = ["scenarios", "apiserver", "kubernetes", "apifaults"];

const UNIT: Stage = Stage {
    name: "unit",
    expression: "not package(lb-lab) & not kind(test)",
    selects: |package, kind, _| package != "lb-lab" && kind != "test",
    needs_privileges: false,
    has_examples: true,
};
const GOLDEN: Stage = Stage {
    name: "golden",
    expression: "kind(test) & (binary(=scenarios) | binary(=apiserver) | binary(=kubernetes) | binary(=apifaults))",
    selects: |_, kind, name| kind == "test" && GOLDEN_TESTS.contains(&name),
    needs_privileges: false,
    has_examples: false,
};
const BPF: Stage = Stage {
    name: "bpf",
    expression: "not package(lb-lab) & kind(test) & not (binary(=scenarios) | binary(=kubernetes) | binary(=apifaults) | binary(=packets))",
    selects: |package, kind, name| {
        package != "lb-lab" && kind == "test" && !GOLDEN_TESTS.contains(&name)
    },
    needs_privileges: true,
    has_examples: false,
};
const NET: Stage = Stage {
    name: "net",
    expression: "package(lb-lab) & not (binary(=apiserver) | binary(=vm))",
    selects: |package, kind, name| {
        package == "lb-lab"
            && !GOLDEN_TESTS.contains(&name)
            && !(kind == "test" && name == vm::PROGRAM)
    },
    needs_privileges: true,
    has_examples: false,
};
const ALL: [Stage; 4] = [UNIT, GOLDEN, BPF, NET];

/// The test program whose tests run in one process always, because they share loaded programs: the
/// kernel's verifier is most of what each would do alone. nextest's words for its stage leave it out.
const ONE_PROCESS: [&str; 2] = ["lb-agent", "packets"];

/// What was built, and by whom it is run.
enum Built {
    /// Beside what nextest knows by itself, the program that runs as one process.
    Nextest(Vec<plain::Program>),
    Plain(Vec<plain::Program>),
}

impl Test {
    pub(crate) fn run(&self) -> Result<()> {
        let stages = |stages, filter: &Filter, soak| {
            run_stages(stages, filter.filter.as_deref(), soak, self.runner)
        };
        match self.level.as_ref() {
            None => run_stages(&ALL, None, false, self.runner),
            Some(Level::All(filter)) => stages(&ALL, filter, false),
            Some(Level::Unit(filter)) => stages(&[UNIT], filter, false),
            Some(Level::Golden(filter)) => stages(&[GOLDEN], filter, false),
            Some(Level::Bpf(filter)) => stages(&[BPF], filter, false),
            Some(Level::Net(filter)) => stages(&[NET], filter, false),
            Some(Level::Helm) => {
                doctor::prepare(Scope::Helm)?;
                report(&[("helm", Outcome::from_run(chart))])
            }
            Some(Level::Soak(filter)) => stages(&[NET], filter, true),
            Some(Level::Vm(vm)) => vm.run(),
            Some(Level::Fresh(fresh)) => fresh.run(),
        }
    }
}

/// The levels that run anywhere, for `ci fast`.
pub(crate) fn without_privileges() -> Result<()> {
    run_stages(&[UNIT, GOLDEN], None, false, Runner::Auto)
}

/// Every level, for `ci full`.
pub(crate) fn all() -> Result<()> {
    run_stages(&ALL, None, false, Runner::Auto)
}

fn run_stages(stages: &[Stage], filter: Option<&str>, soak: bool, runner: Runner) -> Result<()> {
    wait_through_interrupts()?;
    let start = Instant::now();
    doctor::prepare(Scope::Test)?;
    let mut rows = vec![("doctor", Outcome::after(start))];
    let start = Instant::now();
    let nextest = match runner {
        Runner::Auto => find_program("cargo-nextest").is_some(),
        Runner::Nextest => true,
        Runner::Plain => false,
    };
    if stages.iter().any(|stage| stage.name == NET.name) {
        build_next()?;
    }
    let built = if nextest {
        nextest::build()?;
        let [package, name] = ONE_PROCESS;
        let mut programs = plain::build_these(&["--test", name])?;
        programs.retain(|program| program.is_test(package, name));
        if programs.is_empty() {
            bail!("cargo built no test {name} of {package}");
        }
        Built::Nextest(programs)
    } else {
        Built::Plain(plain::build()?)
    };
    rows.push(("build", Outcome::after(start)));
    for stage in stages {
        let run = || run_stage(&built, stage, filter, soak);
        rows.push((stage.name, Outcome::from_run(run)));
    }
    // Neither has tests that a word could select; one level alone is not asked for them.
    if stages.len() > 1 && filter.is_none() {
        rows.push(("helm", Outcome::from_run(chart)));
    }
    if stages.len() == ALL.len() && filter.is_none() {
        rows.push(("kernels", Outcome::from_run(kernels)));
    }
    report(&rows)?;
    match filter {
        Some(word) if selected_nothing(&rows) => bail!("no test here has `{word}` in its name"),
        _ => Ok(()),
    }
}

/// The checks of the chart, as a stage.
fn chart() -> Result<Outcome> {
    let (passed, failed) = helm::test()?;
    Ok(Outcome::of(Counts { passed, failed }, None))
}

/// The oldest and the newest kernel, as a stage.
fn kernels() -> Result<Outcome> {
    // No privilege could change this, so it cannot be asked for: other distributions do without.
    if let Some(why) = vm::impossible() {
        eprintln!("\nNOT RUN: other kernels, in virtual machines: {why}.");
        return Ok(Outcome {
            note: format!("NOT RUN: {why}"),
            ..Outcome::default()
        });
    }
    let (passed, failed) = vm::quick()?;
    Ok(Outcome::of(Counts { passed, failed }, None))
}

fn run_stage(built: &Built, stage: &Stage, filter: Option<&str>, soak: bool) -> Result<Outcome> {
    if stage.needs_privileges
        && let Some(outcome) = refused(stage.name)
    {
        return Ok(outcome);
    }
    let mut counts = Counts::default();
    let programs = match built {
        Built::Nextest(programs) => {
            counts.add(nextest::run_stage(stage, filter, soak)?);
            programs
        }
        Built::Plain(programs) => programs,
    };
    counts.add(plain::run_stage(programs, stage, filter, soak)?);
    if stage.has_examples {
        counts.add(plain::run_examples(filter)?);
    }
    Ok(Outcome::of(counts, filter))
}

/// Builds the agent with the layouts of the next version, which upgrades are tested with, beside the
/// usual one.
///
/// In the same target directory and with the features of dependencies that the tests have, so that of
/// those nothing compiles twice. For that some test must be named; this one is small.
/// The build of the tests then puts the usual agent back in its place.
fn build_next() -> Result<()> {
    run(cargo("test").args([
        "--workspace",
        "--locked",
        "--no-run",
        "--test",
        "ready",
        "--features",
        "lb-agent/layout-next",
    ]))?;
    let place = target_dir()?.join("debug");
    let (agent, next) = (place.join("lb-agent"), place.join("lb-agent-next"));
    if next.exists() {
        // A copy is made anew: one that runs cannot be written to.
        fs::remove_file(&next).with_context(|| format!("remove {}", next.display()))?;
    }
    fs::copy(agent, &next).with_context(|| format!("make {}", next.display()))?;
    Ok(())
}

/// What the lab's tests must know: the agent that this very build made, and how long to run.
fn with_agent(command: &mut Command, soak: bool) {
    if let Ok(target) = target_dir() {
        command.env("LB_AGENT", target.join("debug/lb-agent"));
    }
    if soak {
        command.env("LB_SOAK", "1");
    }
}
