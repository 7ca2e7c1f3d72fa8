// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: what things cost, measured on optimised programs.
//!
//! **Invariant:** builds and leaves the measuring to `lb-lab bench`, which also cleans up; an
//! interrupt goes to it, this task only waits. A target that is missed is no failure.
//! Read next: lb-agent/README.md, "What a change costs".

use std::fs;

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

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        let What::Control(control) = &self.what;
        doctor::require_privileges("the bench makes network namespaces and loads BPF programs")?;
        doctor::prepare(Scope::Demo)?;
        run(cargo("build").args(["--locked", "--release"]).args([
            "--package",
            "lb-agent",
            "--package",
            "lb-lab",
        ]))?;
        let target = target_dir()?;
        let (built, folder) = (target.join("release"), target.join("bench"));
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let json = folder.join("control.json");
        let mut bench = command(built.join("lb-lab"));
        bench.args(["bench", "control", "--json"]).arg(&json);
        bench.env("LB_AGENT", built.join("lb-agent"));
        if control.quick {
            bench.arg("--quick");
        }
        if let Some(runs) = control.runs {
            bench.args(["--runs", &runs.to_string()]);
        }
        if let Some(services) = &control.services {
            bench.args(["--services", services]);
        }
        wait_through_interrupts()?;
        run(&mut bench)?;
        eprintln!("the numbers are in {}", json.display());
        Ok(())
    }
}
