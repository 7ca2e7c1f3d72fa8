// SPDX-License-Identifier: MIT OR Apache-2.0
//! One case in one round: the empty program, the driver with the empty program behind it, and the
//! driver with the program under test, by turns.
//!
//! **Invariant:** what is subtracted was measured within the same second.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};

use lb_common::abi::limits;

use super::Options;
use super::cases::{Before, Case, Stage, is_expected};
use super::clock::{Clock, Took};
use super::kernel::{DROP, Hook, Kernel};
use super::wire;

/// Packets of a test run when nothing has to be done between them: a few milliseconds.
const PACKETS: u32 = 4_096;
/// New flows of a test run.
const NEW_FLOWS: u32 = 2_048;

/// What one round found of one case, in nanoseconds a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) floor: f64,
    pub(crate) min: f64,
    pub(crate) median: f64,
    /// Whether the program dropped the packets.
    pub(crate) dropped: bool,
}

/// Measures a case once.
pub(crate) fn measure(
    kernel: &mut Kernel,
    stage: &mut Stage,
    index: usize,
    options: &Options,
) -> Result<Found> {
    let case = stage.cases.get(index).context("no such case")?;
    let (before, mark) = (case.before, case.mark);
    let fill = if before == Before::Full { 2 * limits::HALF_OPEN } else { 0 };
    if before != Before::Nothing {
        // More than fit: what does not is refused or evicts.
        let mut left = fill;
        while left > 0 {
            let packets = stage.new_flows(left.min(NEW_FLOWS));
            left -= left.min(NEW_FLOWS);
            run_once(kernel, Hook::Ingress, &packets)?;
        }
    }
    let found = turns(kernel, stage, index, options, mark);
    if before != Before::Nothing {
        kernel.forget_flows(&stage.kept);
    }
    found
}

/// The three programs by turns.
fn turns(
    kernel: &mut Kernel,
    stage: &mut Stage,
    index: usize,
    options: &Options,
    mark: u32,
) -> Result<Found> {
    let (mut floor, mut driver, mut both) = (Vec::new(), Vec::new(), Vec::new());
    let mut dropped = false;
    for chunk in 0..options.chunks {
        let before = stage.cases.get(index).context("no such case")?.before;
        if before != Before::Nothing {
            let packets = stage.new_flows(NEW_FLOWS);
            stage.cases.get_mut(index).context("no such case")?.packets = packets;
        }
        let case = stage.cases.get(index).context("no such case")?;
        let frame = case.packets.first().context("a case without packets")?.clone();
        if case.restored && (chunk == 0 || before != Before::Nothing) {
            kernel.set_packets(&case.packets, mark)?;
        }
        let packets = if before == Before::Nothing { PACKETS } else { NEW_FLOWS };
        let name = driver_of(case, &frame);
        let clock = Clock::new(kernel.tool("empty")?, &frame, mark)?;
        floor.push(clock.run(kernel.tool("empty")?, packets)?.0);
        kernel.set_under_test(None)?;
        driver.push(clock.run(kernel.tool(name)?, packets)?.0);
        kernel.set_under_test(Some(case.hook))?;
        let (ns, verdict) = clock.run(kernel.tool(name)?, packets)?;
        both.push(ns);
        if !is_expected(case, verdict) {
            bail!("{}: verdict {verdict}", case.name);
        }
        dropped = verdict == DROP;
        if before == Before::Room {
            kernel.forget_flows(&stage.kept);
        }
    }
    let [floor, driver, both] = [floor, driver, both].map(Took::of);
    Ok(Found {
        floor: floor.min,
        min: both.min - driver.min + floor.min,
        median: both.median - driver.median + floor.median,
        dropped,
    })
}

/// Lets the hook see each packet once.
fn run_once(kernel: &mut Kernel, hook: Hook, packets: &[Vec<u8>]) -> Result<()> {
    kernel.set_packets(packets, 0)?;
    kernel.set_under_test(Some(hook))?;
    let frame = packets.first().context("an empty list")?;
    let name = if wire::is_v4(frame) { "drive_v4" } else { "drive_v6" };
    let clock = Clock::new(kernel.tool("empty")?, frame, 0)?;
    clock.run(kernel.tool(name)?, u32::try_from(packets.len())?)?;
    Ok(())
}

fn driver_of(case: &Case, frame: &[u8]) -> &'static str {
    match (case.restored, wire::is_v4(frame)) {
        (false, _) => "drive_same",
        (true, true) => "drive_v4",
        (true, false) => "drive_v6",
    }
}
