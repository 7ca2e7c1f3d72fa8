// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: what things cost, measured on optimised programs.
//!
//! **Invariant:** builds and leaves the measuring to `lb-lab bench` and to lb-agent's bench `packet`,
//! which also clean up; an interrupt goes to them, this task only waits. A target that is missed is
//! no failure. Read next: lb-agent/README.md, "What a change costs", and lb-ebpf/README.md, "What a
//! packet costs".

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::doctor::{self, Scope};
use crate::process::{cargo, command, run, target_dir, wait_through_interrupts};

/// Measures what things cost, with the targets beside them.
#[derive(clap::Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Control(Control),
    Packet(Packet),
}

/// The agent from the API server to the maps: time, processor time, memory
///
/// Needs root. Clusters of 100 to 50,000 Services, each with one of 5,000 endpoints, in a lab that is
/// removed at the end. Shows a table and writes target/bench/control.json.
#[derive(clap::Args)]
struct Control {
    /// A minute instead of a quarter of an hour: fewer runs and changes, no 50,000 Services
    #[arg(long)]
    quick: bool,
    /// Runs of each cluster, of which the medians are shown [default: 5, with --quick 1]
    #[arg(long, value_name = "N")]
    runs: Option<u32>,
    /// Sizes of the clusters [default: 100,1000,10000,50000]
    #[arg(long, value_name = "N,...")]
    services: Option<String>,
}

/// The programs of tc, by packets that nobody sends: nanoseconds for each, and the targets
///
/// Needs root. Loads the programs that the agent carries, with tables of 10,000 Services, and runs
/// them by `BPF_PROG_TEST_RUN`; nothing is attached. Two minutes. Shows a table and writes
/// target/bench/packet.json.
#[derive(clap::Args)]
struct Packet {
    /// Half a minute instead of two: smaller tables, one round; for a look, not for targets
    #[arg(long)]
    quick: bool,
    /// Also single operations on maps: lookups, insertions, evictions
    #[arg(long)]
    micro: bool,
    /// How often everything is measured; the best round counts [default: 3, with --quick 1]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Only this family: v4 or v6
    #[arg(long)]
    family: Option<String>,
    /// Only this protocol: tcp or udp
    #[arg(long)]
    proto: Option<String>,
    /// Only cases whose names contain this, as in the table
    #[arg(long, value_name = "WORDS")]
    only: Option<String>,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        match &self.what {
            What::Control(control) => control.run(),
            What::Packet(packet) => packet.run(),
        }
    }
}

/// Where the numbers go.
fn json(name: &str) -> Result<PathBuf> {
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder.join(name))
}

impl Control {
    fn run(&self) -> Result<()> {
        doctor::require_privileges("the bench makes network namespaces and loads BPF programs")?;
        doctor::prepare(Scope::Demo)?;
        run(cargo("build").args(["--locked", "--release"]).args([
            "--package",
            "lb-agent",
            "--package",
            "lb-lab",
        ]))?;
        let built = target_dir()?.join("release");
        let json = json("control.json")?;
        let mut bench = command(built.join("lb-lab"));
        bench.args(["bench", "control", "--json"]).arg(&json);
        bench.env("LB_AGENT", built.join("lb-agent"));
        if self.quick {
            bench.arg("--quick");
        }
        if let Some(runs) = self.runs {
            bench.args(["--runs", &runs.to_string()]);
        }
        if let Some(services) = &self.services {
            bench.args(["--services", services]);
        }
        finish(&mut bench, &json)
    }
}

impl Packet {
    fn run(&self) -> Result<()> {
        doctor::require_privileges("the bench loads BPF programs")?;
        doctor::prepare(Scope::Demo)?;
        let json = json("packet.json")?;
        let mut bench = cargo("bench");
        // What is measured runs in the kernel and is always optimised. With the profile and the
        // packages that the tests are built with, next to nothing is compiled for it.
        bench.args(["--locked", "--profile", "dev", "--workspace"]);
        bench.args(["--bench", "packet", "--", "--json"]).arg(&json);
        for (flag, wanted) in [("--quick", self.quick), ("--micro", self.micro)] {
            if wanted {
                bench.arg(flag);
            }
        }
        if let Some(rounds) = self.rounds {
            bench.args(["--rounds", &rounds.to_string()]);
        }
        let words = [
            ("--family", &self.family),
            ("--proto", &self.proto),
            ("--only", &self.only),
        ];
        for (flag, word) in words {
            if let Some(word) = word {
                bench.args([flag, word]);
            }
        }
        finish(&mut bench, &json)
    }
}

fn finish(bench: &mut Command, json: &Path) -> Result<()> {
    wait_through_interrupts()?;
    run(bench)?;
    eprintln!("the numbers are in {}", json.display());
    Ok(())
}
