// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-lab bench control`: what a change costs the control plane, on clusters of growing size.
//! What a connection costs is the room `connections`, which has options and a report of its own.
//!
//! A node of a lab runs the agent and, as a process of its own, the lab's API server with a generated
//! cluster. The agent says itself how long things took; the kernel says what they cost.
//! **Invariant:** what is measured is one process, the agent; this program only waits, and whatever
//! it waits for has a bound. Read next: [`Options`], then `cluster` for what is measured in which order.

mod agent;
mod audit;
mod cli;
mod cluster;
mod connections;
mod numbers;
mod process;
mod programmed;
mod progress;
mod report;
mod server;
mod targets;

use std::path::PathBuf;
use std::time::Duration;

pub use cli::BenchArgs;
pub use report::Report;

use crate::error::LabError;
use progress::Progress;
use report::Machine;

/// The clusters between which the cost of a change must not grow.
const GATE: [u32; 2] = [100, 10_000];

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `lb-agent` program.
    pub agent: PathBuf,
    /// The `lb-lab` program, for its API server.
    pub lab: PathBuf,
    /// Numbers of Services, one cluster each.
    pub services: Vec<u32>,
    /// Endpoints of each Service.
    pub endpoints: u32,
    /// Endpoints of one more Service; none without.
    pub big_service: u32,
    /// Runs of each cluster; what is shown is their median.
    pub runs: u32,
    /// Changes of each run.
    pub changes: u32,
    /// From one change to the next.
    pub interval: Duration,
    /// Changes of the big Service of each run.
    pub big_changes: u32,
    /// How long an agent without changes is looked at.
    pub idle: Duration,
    /// How often the clusters of the gate take turns.
    pub rounds: u32,
}

/// Measures everything; each run has a lab of its own, which is removed also when it fails.
pub fn run(options: &Options) -> Result<Report, LabError> {
    let progress = Progress::new();
    let machine = Machine::look();
    let mut clusters = Vec::new();
    for &services in &options.services {
        let mut runs = Vec::new();
        for number in 1..=options.runs {
            let of = format!("{services} Services, run {number} of {}", options.runs);
            runs.push(cluster::measure(
                options,
                services,
                number == 1,
                &progress,
                &of,
            )?);
        }
        clusters.push(cluster::summary(options, services, &runs));
    }
    let gate = if GATE.iter().all(|size| options.services.contains(size)) {
        Some(cluster::gate(options, GATE, &progress)?)
    } else {
        None
    };
    Ok(Report::new(machine, options, clusters, gate))
}
