// SPDX-License-Identifier: MIT OR Apache-2.0
//! One cluster, from the first byte of the list to an agent that has nothing to do.
//!
//! **Invariant:** changes are sent one at a time and so far apart that each has a pass of its own; two
//! clusters are compared by turns, because a shared machine is faster now and slower then.
//! Read next: `report`, what becomes of the numbers.

use std::time::{Duration, Instant};

use super::Options;
use super::agent::Agent;
use super::audit;
use super::numbers::{Spread, float, median, percentile, rounded};
use super::programmed;
use super::progress::Progress;
use super::report::{Change, Cluster, Gate};
use super::server::Server;
use crate::error::LabError;
use crate::lab::Lab;
use crate::node::Node;
use crate::run;
use crate::topology::Topology;

/// How long the first list may take, on a machine that is slow and busy.
pub(super) const PROGRAMMED_WITHIN: Duration = Duration::from_mins(2);
/// After the list, before anything is measured: what was freed is given back, timers have started.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// After the last change, for its pass.
const LAST_PASS: Duration = Duration::from_millis(200);
/// From one Service that changes to the next; a prime, so that a series visits all of them.
const STRIDE: u32 = 7_919;
/// Changes of a turn of the gate.
const TURN: u32 = 200;
/// A change of the big Service has more to plan: so many times the interval for each.
const BIG_INTERVALS: u32 = 10;

/// What one run gave.
#[derive(Debug)]
pub(super) struct Numbers {
    programmed: Duration,
    /// Microseconds of each pass, sorted.
    passes: Vec<u64>,
    big_passes: Vec<u64>,
    cpu_per_change: f64,
    rss_mib: f64,
    peak_mib: f64,
    idle_percent: f64,
    server_cpu: f64,
    /// Of the first run.
    once: Option<Once>,
}

/// What is looked at once for each cluster.
#[derive(Debug, Clone, Copy)]
struct Once {
    entries: Option<u64>,
    restart: Duration,
    audit: Duration,
}

/// A server and the agent that follows it, on one node.
struct Pair {
    agent: Agent,
    server: Server,
    services: u32,
    /// The Service that changes next.
    next: u32,
}

impl Pair {
    /// Starts both and waits until everything is programmed.
    fn start(options: &Options, node: &Node, services: u32) -> Result<Self, LabError> {
        let server = Server::start(node, options, services)?;
        let agent = Agent::start(node, &options.agent, &server.url, &[])?;
        let mut pair = Self {
            agent,
            server,
            services,
            next: 0,
        };
        pair.agent.wait_programmed(PROGRAMMED_WITHIN)?;
        run::pause(SETTLE);
        pair.agent.take()?;
        Ok(pair)
    }

    /// Changes one Service after the other; microseconds of each pass, sorted.
    fn change(&mut self, count: u32, interval: Duration) -> Result<Vec<u64>, LabError> {
        let start = Instant::now();
        for number in 0..count {
            run::pause((start + interval * number).saturating_duration_since(Instant::now()));
            self.server.change(self.next)?;
            self.next = (self.next + STRIDE) % self.services;
        }
        self.passes(count)
    }

    /// The same for the big Service, whose number is the last.
    fn change_big(&mut self, count: u32, interval: Duration) -> Result<Vec<u64>, LabError> {
        for _ in 0..count {
            self.server.change(self.services)?;
            run::pause(interval);
        }
        self.passes(count)
    }

    fn passes(&mut self, changes: u32) -> Result<Vec<u64>, LabError> {
        run::pause(LAST_PASS);
        let mut passes = self.agent.take()?;
        if passes.is_empty() {
            return Err(LabError::Timeout {
                what: format!("the passes for {changes} changes"),
                millis: LAST_PASS.as_millis(),
                log: self.agent.complaints(),
            });
        }
        passes.sort_unstable();
        Ok(passes)
    }
}

/// One run of one cluster.
pub(super) fn measure(
    options: &Options,
    services: u32,
    first: bool,
    progress: &Progress,
    of: &str,
) -> Result<Numbers, LabError> {
    let lab = Lab::builder().topology(Topology::Routed).build()?;
    let (node, of) = (lab.node(0), &format!("lab {}, {of}", lab.id()));
    progress.step(of, "listing");
    let mut pair = Pair::start(options, node, services)?;
    let programmed = pair.agent.programmed.unwrap_or_default();
    let server_cpu = pair.server.cpu_seconds()?;
    progress.step(of, "changing endpoints");
    let before = pair.agent.process.cpu();
    let passes = pair.change(options.changes, options.interval)?;
    let used = pair.agent.process.cpu().since(&before);
    let cpu_per_change = used.as_secs_f64() * 1e6 / f64::from(options.changes);
    let mut big_passes = Vec::new();
    if options.big_service > 0 {
        let interval = options.interval * BIG_INTERVALS;
        big_passes = pair.change_big(options.big_changes, interval)?;
    }
    run::pause(SETTLE);
    progress.step(of, "doing nothing");
    let (before, since) = (pair.agent.process.cpu(), Instant::now());
    run::pause(options.idle);
    let used = pair.agent.process.cpu().since(&before);
    let idle_percent = used.as_secs_f64() / since.elapsed().as_secs_f64() * 100.0;
    let (rss_mib, peak_mib) = (
        pair.agent.process.mib("VmRSS:"),
        pair.agent.process.mib("VmHWM:"),
    );
    let mut once = None;
    if first {
        progress.step(of, "counting what is in the maps");
        let entries = programmed::count(options, services, node.bpffs())?;
        progress.step(of, "starting again, with audits all the time");
        // The first agent ends before the second one starts.
        drop(pair.agent);
        let (restart, audit) = audit::measure(node, &options.agent, &pair.server.url)?;
        once = Some(Once {
            entries,
            restart,
            audit,
        });
    }
    Ok(Numbers {
        programmed,
        passes,
        big_passes,
        cpu_per_change,
        rss_mib,
        peak_mib,
        idle_percent,
        server_cpu,
        once,
    })
}

/// The medians of the runs of one cluster.
pub(super) fn summary(options: &Options, services: u32, runs: &[Numbers]) -> Cluster {
    let of = |value: fn(&Numbers) -> f64| median(runs.iter().map(value));
    let list = runs.iter().map(|run| run.programmed.as_secs_f64() * 1e3);
    let list = Spread::of(list.map(|millis| rounded(millis, 1)));
    let once = runs.iter().find_map(|run| run.once);
    let millis = |time: Duration| rounded(time.as_secs_f64() * 1e3, 1);
    let big = runs.iter().any(|run| !run.big_passes.is_empty());
    Cluster {
        services,
        endpoints_per_service: options.endpoints,
        big_service: options.big_service,
        list_to_programmed_ms: list,
        change_micros: change(runs, |run| &run.passes),
        big_change_micros: big.then(|| change(runs, |run| &run.big_passes)),
        cpu_per_change_micros: rounded(of(|run| run.cpu_per_change), 1),
        rss_mib: rounded(of(|run| run.rss_mib), 1),
        peak_rss_mib: rounded(of(|run| run.peak_mib), 1),
        idle_cpu_percent: rounded(of(|run| run.idle_percent), 4),
        server_cpu_seconds: rounded(of(|run| run.server_cpu), 3),
        restart_to_programmed_ms: once.map(|once| millis(once.restart)),
        audit_cpu_ms: once.map(|once| millis(once.audit)),
        backends_counted: once.and_then(|once| once.entries),
    }
}

fn change(runs: &[Numbers], passes: fn(&Numbers) -> &[u64]) -> Change {
    let of = |percent| {
        let values = runs.iter().map(passes);
        median(values.map(|passes| float(percentile(passes, percent))))
    };
    let counts = runs.iter().map(|run| passes(run).len());
    Change {
        p50: of(50),
        p99: of(99),
        changes: counts.min().unwrap_or_default(),
    }
}

/// Lets a small and a large cluster take turns, and compares their changes turn by turn.
pub(super) fn gate(
    options: &Options,
    [small, large]: [u32; 2],
    progress: &Progress,
) -> Result<Gate, LabError> {
    let lab = Lab::builder().topology(Topology::Routed).nodes(2).build()?;
    let of = format!("lab {}, {small} and {large} Services by turns", lab.id());
    progress.step(&of, "listing");
    let mut first = Pair::start(options, lab.node(0), small)?;
    let mut second = Pair::start(options, lab.node(1), large)?;
    let mut ratios = Vec::new();
    let (mut smalls, mut larges) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        progress.step(&of, &format!("turn {round} of {}", options.rounds));
        let turn = |pair: &mut Pair| -> Result<f64, LabError> {
            let passes = pair.change(TURN, options.interval)?;
            Ok(float(percentile(&passes, 50)).max(1.0))
        };
        let (small, large) = (turn(&mut first)?, turn(&mut second)?);
        ratios.push(rounded(large / small, 3));
        smalls.push(small);
        larges.push(large);
    }
    Ok(Gate {
        services: [small, large],
        p50_micros: [median(smalls), median(larges)],
        ratio: Spread::of(ratios),
    })
}
