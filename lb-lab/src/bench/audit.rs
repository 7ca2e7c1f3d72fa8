// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a restart takes, and what an audit of all maps costs.
//!
//! Audits are an hour apart; an agent that does one after the other shows the cost of one.
//! **Invariant:** nothing changes meanwhile, so whatever the agent uses is for audits.
//! Read next: lb-agent/src/cli/audits.rs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use super::agent::Agent;
use super::cluster::{PROGRAMMED_WITHIN, SETTLE};
use crate::error::LabError;
use crate::node::Node;
use crate::run;

/// Where the agent serves its metrics.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);
/// Audits that are waited for: the clock has ticks of 10 ms.
const AUDITS: u32 = 4;
/// How long they may take.
const AUDITS_WITHIN: Duration = Duration::from_mins(2);
/// How often it is asked how many there were.
const LOOK: Duration = Duration::from_millis(100);

/// Starts an agent on maps that are full: how long until it has programmed everything, and the
/// processor time of one audit.
pub(super) fn measure(
    node: &Node,
    binary: &Path,
    url: &str,
) -> Result<(Duration, Duration), LabError> {
    let mut agent = Agent::start(node, binary, url, &["--audit-interval", "1"])?;
    let restart = agent.wait_programmed(PROGRAMMED_WITHIN)?;
    run::pause(SETTLE);
    let first = next_audit(node, &agent, 0)?;
    let before = agent.process.cpu_with_ended();
    let last = next_audit(node, &agent, first + AUDITS - 1)?;
    let used = agent.process.cpu_with_ended().saturating_sub(before);
    Ok((restart, used / (last - first).max(1)))
}

/// Waits until there were more than `count` audits; how many there were.
fn next_audit(node: &Node, agent: &Agent, count: u32) -> Result<u32, LabError> {
    let until = Instant::now() + AUDITS_WITHIN;
    loop {
        let reply = node.http_get(METRICS, "/metrics")?;
        let text = reply.text();
        let audits = text.lines().find_map(|line| {
            let number = line.strip_prefix("lb_audits_total ")?;
            number.trim().parse::<u32>().ok()
        });
        match audits {
            Some(audits) if audits > count => return Ok(audits),
            _ if Instant::now() > until => {
                return Err(LabError::Timeout {
                    what: format!("more than {count} audits"),
                    millis: AUDITS_WITHIN.as_millis(),
                    log: agent.complaints(),
                });
            }
            _ => run::pause(LOOK),
        }
    }
}
