// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: what things cost, measured on optimised programs.
//!
//! **Invariant:** builds and leaves the measuring to `lb-lab bench` and to lb-agent's own benches,
//! which also clean up; an interrupt goes to them, this task only waits. A target that is missed is
//! no failure. Read next: lb-agent/README.md, "What a change costs", lb-lab/README.md, "What a
//! connection costs", and lb-ebpf/README.md, "What a packet costs".

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
    Connections(Connections),
    Packet(Packet),
    Connect(Connect),
}

/// The agent from the API server to the maps: time, processor time, memory
///
/// Needs root. Clusters of 100 to 50,000 Services, each with one of 5,000 endpoints, in a lab that is
/// removed at the end. Shows a table and writes target/bench/control.json (control-part.json for
/// a part of it).
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
/// Shows a table and writes target/bench/connections.json (connections-part.json for a part of it).
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

/// The programs of tc, by packets that nobody sends: nanoseconds for each, and the targets
///
/// Needs root. Loads the programs that the agent carries, with tables of 10,000 Services, and runs
/// them by `BPF_PROG_TEST_RUN`; nothing is attached. Two minutes. Shows a table and writes
/// target/bench/packet.json (packet-part.json for a part of it).
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

/// The programs at sockets, by connections of UDP: nanoseconds that they add to the call
///
/// Needs root. A call without any program, with an empty one and with the agent's, of an address that is
/// a Service's and of others. Programs are attached to cgroups of the bench's own, which are removed at
/// the end. Half a minute. Shows a table and writes target/bench/connect.json (connect-part.json for a
/// part of it).
#[derive(clap::Args)]
struct Connect {
    /// A few seconds instead of half a minute: fewer Services and rounds; for a look, not for targets
    #[arg(long)]
    quick: bool,
    /// Services in the tables [default: 10000, with --quick 100]
    #[arg(long, value_name = "N")]
    services: Option<u32>,
    /// Rounds, of which fast ones count [default: 120, with --quick 5]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Only cases whose names contain this, as in the table
    #[arg(long, value_name = "WORDS")]
    only: Option<String>,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        match &self.what {
            What::Control(control) => control.run(),
            What::Connections(connections) => connections.run(),
            What::Packet(packet) => packet.run(),
            What::Connect(connect) => connect.run(),
        }
    }
}

/// Where the numbers go: those of a part of the bench must not take the place of the whole.
fn json(name: &str, partial: bool) -> Result<PathBuf> {
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let part = if partial { "-part" } else { "" };
    Ok(folder.join(format!("{name}{part}.json")))
}

/// Builds agent and lab, and runs a bench of the lab with these flags.
fn in_lab(name: &str, partial: bool, flags: Vec<Option<String>>) -> Result<()> {
    doctor::require_privileges("the bench makes network namespaces and loads BPF programs")?;
    doctor::prepare(Scope::Demo)?;
    run(cargo("build").args(["--locked", "--release"]).args([
        "--package",
        "lb-agent",
        "--package",
        "lb-lab",
    ]))?;
    let built = target_dir()?.join("release");
    let json = json(name, partial)?;
    let mut bench = command(built.join("lb-lab"));
    bench.args(["bench", name, "--json"]).arg(&json);
    bench.args(flags.into_iter().flatten());
    bench.env("LB_AGENT", built.join("lb-agent"));
    finish(&mut bench, &json)
}

/// A flag with its value, if there is one.
fn option(flag: &str, value: Option<&impl ToString>) -> Option<String> {
    value.map(|value| format!("{flag}={}", value.to_string()))
}

/// A flag without a value, if it is wanted.
fn switch(flag: &str, is_wanted: bool) -> Option<String> {
    is_wanted.then(|| flag.to_owned())
}

impl Control {
    fn run(&self) -> Result<()> {
        let flags = vec![
            switch("--quick", self.quick),
            option("--runs", self.runs.as_ref()),
            option("--services", self.services.as_ref()),
        ];
        let partial = self.quick || self.services.is_some();
        in_lab("control", partial, flags)
    }
}

impl Connections {
    fn run(&self) -> Result<()> {
        let flags = vec![
            switch("--quick", self.quick),
            option("--services", self.services.as_ref()),
            option("--rounds", self.rounds.as_ref()),
            option("--turn-ms", self.turn_ms.as_ref()),
            option("--cpu", self.cpu.as_ref()),
        ];
        let partial = self.quick || self.services.is_some();
        in_lab("connections", partial, flags)
    }
}

impl Packet {
    fn run(&self) -> Result<()> {
        doctor::require_privileges("the bench loads BPF programs")?;
        doctor::prepare(Scope::Demo)?;
        let words = [&self.family, &self.proto, &self.only];
        let partial = self.quick || words.into_iter().any(Option::is_some);
        let json = json("packet", partial)?;
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

impl Connect {
    fn run(&self) -> Result<()> {
        doctor::require_privileges("the bench attaches BPF programs to cgroups of its own")?;
        doctor::prepare(Scope::Demo)?;
        let json = json(
            "connect",
            self.quick || self.services.is_some() || self.only.is_some(),
        )?;
        let mut bench = cargo("bench");
        bench.args(["--locked", "--profile", "dev", "--workspace"]);
        bench
            .args(["--bench", "connect", "--", "--json"])
            .arg(&json);
        let flags = [
            switch("--quick", self.quick),
            option("--services", self.services.as_ref()),
            option("--rounds", self.rounds.as_ref()),
            option("--only", self.only.as_ref()),
        ];
        bench.args(flags.into_iter().flatten());
        finish(&mut bench, &json)
    }
}

fn finish(bench: &mut Command, json: &Path) -> Result<()> {
    wait_through_interrupts()?;
    run(bench)?;
    eprintln!("the numbers are in {}", json.display());
    Ok(())
}
