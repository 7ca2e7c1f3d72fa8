// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: what things cost, measured on optimised programs.
//!
//! **Invariant:** builds and leaves the measuring to `lb-lab bench`, which also cleans up; an
//! interrupt goes to it, this task only waits. A target that is missed is no failure.
//! Read next: lb-agent/README.md, "What a change costs"; lb-lab/README.md, "What a connection costs".

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
    Connections(Connections),
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

/// Connections through Services, beside kube-proxy's kind of rules and a clean router
///
/// Needs root. Connect, read one line, close with a reset: from a pod to the first and to the last of
/// 10, 1,000 and 10,000 Services, from outside to a node port, and to the pods themselves; through a
/// router without netfilter, through lb-agent, the same beside a CNI plugin's rules, and through rule
/// sets of kube-proxy's shape for nftables and iptables. All of them have their turn in every round.
/// Shows a table and writes target/bench/connections.json.
#[derive(clap::Args)]
struct Connections {
    /// A minute instead of ten: fewer and shorter rounds, no 10,000 Services
    #[arg(long)]
    quick: bool,
    /// Numbers of Services, one lab each [default: 10,1000,10000]
    #[arg(long, value_name = "N,...")]
    services: Option<String>,
    /// Rounds, of which the medians are shown [default: 8, with --quick 3]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Milliseconds that each way through each contestant has in each round [default: 500, with --quick 100]
    #[arg(long, value_name = "MS")]
    turn_ms: Option<u32>,
    /// The processor of all clients and servers [default: the last one]
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
}

impl Control {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["control".to_owned()];
        words.extend(self.quick.then(|| "--quick".to_owned()));
        words.extend(option("--runs", self.runs));
        words.extend(option("--services", self.services.as_ref()));
        words
    }
}

impl Connections {
    fn words(&self) -> Vec<String> {
        let mut words = vec!["connections".to_owned()];
        words.extend(self.quick.then(|| "--quick".to_owned()));
        words.extend(option("--services", self.services.as_ref()));
        words.extend(option("--rounds", self.rounds));
        words.extend(option("--turn-ms", self.turn_ms));
        words.extend(option("--cpu", self.cpu));
        words
    }
}

/// A flag with its value, if there is one.
fn option(flag: &str, value: Option<impl ToString>) -> Option<String> {
    value.map(|value| format!("{flag}={}", value.to_string()))
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        let (name, words) = match &self.what {
            What::Control(control) => ("control.json", control.words()),
            What::Connections(connections) => ("connections.json", connections.words()),
        };
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
        let json = folder.join(name);
        let mut bench = command(built.join("lb-lab"));
        bench.arg("bench").args(words).arg("--json").arg(&json);
        bench.env("LB_AGENT", built.join("lb-agent"));
        wait_through_interrupts()?;
        run(&mut bench)?;
        eprintln!("the numbers are in {}", json.display());
        Ok(())
    }
}
