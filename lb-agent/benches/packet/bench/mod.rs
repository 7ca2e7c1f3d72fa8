// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a packet costs in the shipped programs, by `BPF_PROG_TEST_RUN`.
//!
//! Tables of a cluster are filled, flows are established by packets, and each case is run through a
//! driver that restores its packets.
//! **Invariant:** nothing is attached or pinned, and the namespace is the bench's own. Included by the
//! bench's front and by the test of its shape. Read next: cases.rs, what is measured; round.rs, how.
#![expect(
    clippy::expect_used,
    reason = "the bench ends at the first thing that is not as it set it up"
)]

pub(crate) mod cases;
mod clock;
pub(crate) mod cluster;
mod flows;
mod kernel;
#[path = "../../../../lb-ebpf/src/bench/layout.rs"]
mod layout;
mod micro;
pub(crate) mod report;
mod round;
mod targets;
pub(crate) mod wire;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

use self::cases::Stage;
use self::cluster::{Cluster, Family};
use self::kernel::Kernel;
use self::report::{Line, Machine, Report};
use self::wire::Proto;

/// Sizes of the maps of the micro cases: the sizes of the tables of half-open and established flows.
const MICRO_ENTRIES: [u32; 2] = [65_536, 262_144];
/// Test runs of each micro case by those of a case.
const MICRO_RUNS: usize = 3;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Services, each with a cluster address and a node port over TCP and UDP in both families.
    pub(crate) services: u32,
    /// Established flows of each family and protocol.
    pub(crate) flows: u32,
    /// How often everything is measured; the best counts.
    pub(crate) rounds: usize,
    /// Test runs of each program in a round; the fastest counts.
    pub(crate) runs: usize,
    pub(crate) families: Vec<Family>,
    pub(crate) protos: Vec<Proto>,
    /// Only cases whose names contain this.
    pub(crate) only: String,
    /// Whether single operations on maps are measured, too.
    pub(crate) micro: bool,
    /// Whether to ask for real-time priority: on a busy machine the numbers are good only with it.
    pub(crate) real_time: bool,
}

/// Measures everything; `tell` hears what is being done.
pub(crate) fn run(options: &Options, tell: &mut dyn FnMut(&str)) -> Result<Report> {
    let mut machine = Machine::look();
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    machine.real_time = settle(options.real_time)?;
    let mut report = Report::default();
    if options.micro {
        for entries in MICRO_ENTRIES {
            tell(&format!("single operations on maps of {entries} entries"));
            let runs = options.runs * MICRO_RUNS;
            report.micro.extend(micro::measure(entries, runs)?);
        }
    }
    tell(&format!(
        "filling the tables for {} Services",
        options.services
    ));
    let mut kernel = Kernel::load(options.flows.max(round::PACKETS))?;
    let cluster = Cluster {
        services: options.services,
    };
    cluster.fill(&mut kernel);
    for &family in &options.families {
        for &proto in &options.protos {
            measure_stage(&mut kernel, options, (family, proto), tell, &mut report)?;
        }
    }
    machine.look_again();
    report.finish(machine);
    Ok(report)
}

fn measure_stage(
    kernel: &mut Kernel,
    options: &Options,
    (family, proto): (Family, Proto),
    tell: &mut dyn FnMut(&str),
    report: &mut Report,
) -> Result<()> {
    let of = format!("{} {}", family.name(), proto.name());
    tell(&format!("{of}: establishing {} flows", options.flows));
    let mut stage = Stage::open(kernel, options, family, proto)?;
    let mut found = vec![Vec::new(); stage.cases.len()];
    for number in 1..=options.rounds {
        tell(&format!("{of}: round {number} of {}", options.rounds));
        for (index, found) in found.iter_mut().enumerate() {
            found.push(round::measure(kernel, &mut stage, index, options)?);
        }
    }
    for (case, found) in stage.cases.iter().zip(&found) {
        report.cases.push(Line::new(case.name.clone(), found));
    }
    report.absent.append(&mut stage.absent);
    Ok(())
}

/// Stays on one processor, the last one that this thread may use, and asks to be left alone there.
/// Says whether that was granted.
fn settle(real_time: bool) -> Result<bool> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut last = CpuSet::new();
    let cpus = 0..CpuSet::count();
    let cpu = cpus.rev().find(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    last.set(cpu.context("no processor may be used")?)?;
    sched_setaffinity(this, &last)?;
    if !real_time {
        return Ok(false);
    }
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters are read during the call only.
    Ok(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) } == 0)
}
