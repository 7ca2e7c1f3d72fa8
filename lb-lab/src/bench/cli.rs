// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flags of `lb-lab bench`, and what a person gets to see.
//!
//! **Invariant:** a target that is missed is shown and is no failure: the machine may be a slow one.
//! Read next: the bench's front.

use std::env;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::connections::Connections;
use super::{Options, run};
use crate::agent::find_binary;
use crate::error::LabError;

/// What `lb-lab bench` is told.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From the API server to the maps: time, processor time and memory of the agent
    ///
    /// Runs the real lb-agent (named by `LB_AGENT`, else found beside this program) in a lab,
    /// against this program's API server with a generated cluster. Needs root.
    Control(Control),
    /// Connections through Services, beside kube-proxy's kind of rules and a clean router
    ///
    /// Connect, read one line, close with a reset: from a pod to the first and the last Service, from
    /// outside to a node port, and to the pods themselves, on nodes that are alike but for the real
    /// lb-agent (named by `LB_AGENT`, else found beside this program), the same beside a CNI plugin's
    /// rules, or nftables and iptables rules of kube-proxy's shape that are made for the same
    /// Services. One processor for all clients and servers. Needs root.
    Connections(Connections),
}

#[derive(Debug, Args)]
struct Control {
    /// Numbers of Services, one cluster each [default: 100,1000,10000,50000, with --quick without the last]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=60_000))]
    services: Vec<u32>,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    endpoints_per_service: u32,
    /// Endpoints of one more Service of each cluster
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(..=60_000))]
    big_service: u32,
    /// Runs of each cluster, of which the medians are shown [default: 5, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: Option<u32>,
    /// Changes of each run [default: 1000, with --quick 300]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    changes: Option<u32>,
    /// Milliseconds from one change to the next
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    interval_ms: u32,
    /// Seconds for which an agent without changes is looked at [default: 20, with --quick 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    idle_secs: Option<u32>,
    /// Fewer runs, changes and clusters: a minute instead of a quarter of an hour
    #[arg(long)]
    quick: bool,
    /// Also write the numbers to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl BenchArgs {
    /// Measures, shows a table and writes the numbers where they were asked for.
    pub fn run(&self, out: &mut impl Write) -> Result<(), LabError> {
        match &self.what {
            What::Control(control) => control.run(out),
            What::Connections(connections) => connections.run(out),
        }
    }
}

impl Control {
    fn run(&self, out: &mut impl Write) -> Result<(), LabError> {
        let report = run(&self.options()?)?;
        if let Some(path) = &self.json {
            fs::write(path, report.json()?).map_err(LabError::file("write", path))?;
        }
        let shown = out.write_all(report.table().as_bytes());
        shown.map_err(LabError::io("show the table"))
    }

    fn options(&self) -> Result<Options, LabError> {
        let own = env::current_exe().map_err(LabError::io("find the running program"))?;
        let all: &[u32] = if self.quick {
            &[100, 1_000, 10_000]
        } else {
            &[100, 1_000, 10_000, 50_000]
        };
        let or = |given: Option<u32>, normal, quick| {
            given.unwrap_or(if self.quick { quick } else { normal })
        };
        let changes = or(self.changes, 1_000, 300);
        Ok(Options {
            agent: find_binary()?,
            lab: own,
            services: if self.services.is_empty() {
                all.to_vec()
            } else {
                self.services.clone()
            },
            endpoints: self.endpoints_per_service,
            big_service: self.big_service,
            runs: or(self.runs, 5, 1),
            changes,
            interval: Duration::from_millis(self.interval_ms.into()),
            big_changes: (changes / 10).max(1),
            idle: Duration::from_secs(or(self.idle_secs, 20, 5).into()),
            rounds: or(None, 10, 5),
        })
    }
}
