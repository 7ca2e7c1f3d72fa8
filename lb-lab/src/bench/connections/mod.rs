// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-lab bench connections`: what a connection through a Service costs, beside rule sets of
//! kube-proxy's shape and a router that only forwards.
//!
//! Each number of Services has a lab with a node for each contestant; in each round every way through
//! every contestant has its turn, so that all of them meet the same machine.
//! **Invariant:** ratios are taken within a round, and only then their median.
//! Read next: `contestant`, then `rounds`.

mod cli;
mod contestant;
mod iptables;
mod load;
mod nftables;
mod report;
mod rounds;
mod services;
mod stage;
mod table;
mod targets;

use std::path::PathBuf;
use std::time::Duration;

pub(super) use cli::Connections;

use super::progress::Progress;
use super::report::Machine;
use crate::error::LabError;
use report::Report;
use stage::Stage;

/// What to measure.
#[derive(Debug, Clone)]
struct Options {
    /// The `lb-agent` program.
    agent: PathBuf,
    /// Numbers of Services, one lab each.
    services: Vec<u32>,
    /// Rounds of each lab.
    rounds: u32,
    /// How long each way has in each round.
    turn: Duration,
    /// The processor of clients and servers.
    cpu: usize,
}

/// Measures everything; each number of Services has a lab of its own, which is removed also when it
/// fails.
fn run(options: &Options) -> Result<Report, LabError> {
    let progress = Progress::new();
    let machine = Machine::look();
    let (mut cases, mut setups) = (Vec::new(), Vec::new());
    for &services in &options.services {
        let stage = Stage::set_up(options, services, &progress)?;
        let of = format!("lab {}, {services} Services", stage.id());
        cases.extend(rounds::measure(
            options,
            services,
            &stage.cases,
            &progress,
            &of,
        )?);
        setups.extend(stage.setups(services)?);
    }
    Ok(Report::new(machine.at_end(), options, cases, setups))
}
