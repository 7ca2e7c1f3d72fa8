// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test vm`: the same tests on other kernels, in virtual machines, as one table.
//!
//! For kernels older and newer than the running one, and for what a kernel may lack that has no modules,
//! such as SCTP sockets and VLAN devices.
//! **Invariant:** machines need no root and change nothing here but the cache and the target folder; a
//! test without a result, a panic and a machine that does not end are failures.
//! Read next: suites.rs, what runs; kernel.rs, image.rs, boot.rs, what a machine is made of.

mod boot;
mod builds;
mod image;
mod kernel;
mod machines;
mod own;
mod progress;
mod record;
mod report;
mod stage;
mod suites;
mod summary;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;

use self::boot::Reader;
use self::builds::{Build, Profile};
use self::kernel::{Kernel, Release};
use self::machines::{Machine, Ran, Which, at_once};
use self::own::Lacking;
use self::progress::{Board, Progress};
use self::stage::Content;
use self::suites::{Chosen, Wish};
use crate::doctor::{self, Scope};
use crate::fresh::archive::Archive;
use crate::process::{is_root, target_dir, wait_through_interrupts};

/// What emulation costs: the lab's bounds are so many times longer.
const SLOW: u32 = 20;
/// How long a machine may take to come up and to end, without its tests.
const BOOT_LIMIT: Duration = Duration::from_mins(3);
/// How long all tests of a machine may take together.
const TESTS_LIMIT: Duration = Duration::from_mins(40);
/// The program whose tests are for machines only.
pub(super) const PROGRAM: &str = "vm";

/// Verifier, packets and end to end on other kernels, as a table
///
/// Fetches each of Debian's kernels once (into the user's cache folder) and boots it by software
/// emulation, with the agent and the tests inside; `own` is the running kernel. Needs a Debian on x86-64,
/// and root for `own`.
#[derive(clap::Args, Default)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct Vm {
    /// Kernels to try [default: all]
    #[arg(value_enum, value_name = "KERNEL")]
    kernels: Vec<Which>,
    /// Only tests whose names contain this, or those of a program or a row of the table
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Only what `all` runs on two of the kernels
    #[arg(long)]
    quick: bool,
    /// Take what comes out as what is expected: the numbers of the verifier, and the tables in the READMEs
    #[arg(long, conflicts_with = "quick")]
    bless: bool,
    /// Why the verifier needs more than before; --bless asks for it then
    #[arg(long, value_name = "TEXT", requires = "bless")]
    reason: Option<String>,
    /// Run nothing: show, and with --bless take, what the last run on each kernel said
    #[arg(long, conflicts_with_all = ["quick", "fetch", "loud"])]
    last: bool,
    /// Fetch the kernels anew
    #[arg(long)]
    fetch: bool,
    /// Show the machines' serial lines
    #[arg(long)]
    loud: bool,
}

/// Whether there can be machines here; an error says why not.
pub(super) fn possible() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("they are emulated for x86-64 only");
    }
    if !Archive::is_of_debian() {
        bail!("their kernels are Debian's, from this machine's own archive, and this is no Debian");
    }
    Ok(())
}

/// Runs the short list on the oldest and on the newest kernel, as a stage of all tests; gives how many
/// passed and failed.
pub(super) fn quick() -> Result<(u64, u64)> {
    let vm = Vm {
        kernels: vec![Which::Debian(Release::V5_10), Which::Debian(Release::V7)],
        quick: true,
        ..Vm::default()
    };
    vm.on_all()
}

impl Vm {
    pub(crate) fn run(&self) -> Result<()> {
        wait_through_interrupts()?;
        possible()?;
        match self.on_all()? {
            (_, 0) => Ok(()),
            (_, failed) => bail!("{failed} failed"),
        }
    }

    /// Runs the tests on all kernels; gives how many passed and what failed.
    fn on_all(&self) -> Result<(u64, u64)> {
        doctor::prepare(Scope::Vm)?;
        let build = Build::make(if self.quick {
            Profile::Usual
        } else {
            Profile::Machine
        })?;
        let wish = Wish {
            quick: self.quick,
            only: self.only.as_deref(),
        };
        let chosen = suites::choose(&build, wish)?;
        let mut kernels = self.kernels.clone();
        if kernels.is_empty() {
            kernels = Which::value_variants().to_vec();
        }
        kernels.sort_unstable();
        kernels.dedup();
        let ran = Ran::by_kernel(&kernels, self.machines(&kernels, &build, &chosen)?);
        let (passed, failed) = summary::finish(&ran, &chosen);
        if self.bless && failed == 0 {
            record::budget(&ran, self.reason.as_deref())?;
            // What was left out must not go from the tables; each machine tells all features.
            if kernels == Which::value_variants() {
                record::write_features(&ran)?;
                if self.only.is_none() {
                    record::results(&summary::table(&ran, &chosen))?;
                }
            }
        }
        Ok((passed, failed))
    }

    /// A machine for each kernel and each suite.
    fn machines(
        &self,
        kernels: &[Which],
        build: &Build,
        chosen: &[Chosen],
    ) -> Result<Vec<Machine>> {
        for which in kernels {
            // One after the other, and before several machines could want the same.
            if let Which::Debian(release) = which
                && !self.last
            {
                Kernel::get(*release, self.fetch)?;
            }
        }
        let board = Board::new(self.loud);
        let run = |(which, chosen): (Which, &Chosen)| self.on(which, build, chosen, &board);
        let jobs = kernels
            .iter()
            .flat_map(|which| chosen.iter().map(|chosen| (*which, chosen)));
        let (own, machines): (Vec<_>, Vec<_>) = jobs.partition(|(which, _)| *which == Which::Own);
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let mut done = at_once(machines, processors, &run)?;
        // Alone: here bounds are as tight as in other tests.
        done.extend(at_once(own, 1, &run)?);
        Ok(done)
    }

    /// Runs the tests of a suite on a kernel, or reads what they said the last time.
    fn on(&self, which: Which, build: &Build, chosen: &Chosen, board: &Board) -> Result<Machine> {
        let suite = chosen.suite.name;
        let of_kernel = target_dir()?.join("vm").join(which.name());
        let dir = of_kernel.join(suite);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let log = of_kernel.join(format!("{suite}.log"));
        let lacking = match which {
            Which::Own => own::lacking(chosen),
            Which::Debian(_) => Vec::new(),
        };
        let mut report = if self.last {
            boot::read_again(&log)?
        } else {
            let content = self.content(which, build, chosen);
            let (mut machine, version) = Self::machine(which, &content, &lacking, &dir)?;
            let mut progress = Progress::new(board, which.name(), &version, chosen);
            let mut reader = Reader {
                log: &log,
                limit: BOOT_LIMIT + TESTS_LIMIT,
                tell: &mut |news, line| progress.tell(news, line),
            };
            boot::read(&mut machine, &mut reader)?
        };
        // What a machine was made of is of no use to a person.
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        for (test, what) in lacking {
            report.read(&format!("VM-LACKS {} {what}", test.full_name()));
        }
        // There is no machine that could have said so.
        report.ended |= which == Which::Own;
        Ok(Machine {
            which,
            suite,
            report,
            log,
        })
    }

    fn content<'a>(&self, which: Which, build: &'a Build, chosen: &'a Chosen) -> Content<'a> {
        Content {
            agent: &build.agent,
            chosen,
            slow: if which == Which::Own { 1 } else { SLOW },
            environment: match which {
                Which::Debian(_) if self.bless => "LB_BLESS=print",
                // Others have other kernels, and the newest is another one from week to week.
                Which::Own | Which::Debian(Release::V7) => "",
                Which::Debian(_) => "LB_REQUIRE_BUDGET=1",
            },
        }
    }

    /// The command that runs the tests on a kernel, and its version.
    fn machine(
        which: Which,
        content: &Content<'_>,
        lacking: &[Lacking<'_>],
        dir: &Path,
    ) -> Result<(Command, String)> {
        match which {
            Which::Debian(release) => {
                let kernel = Kernel::get(release, false)?;
                let initramfs = image::make(&kernel, content, dir)?;
                Ok((boot::machine(&kernel, &initramfs), kernel.version))
            }
            Which::Own if !is_root() => bail!("tests on the running kernel need root"),
            Which::Own => Ok((own::script(content, lacking, dir)?, String::new())),
        }
    }
}
