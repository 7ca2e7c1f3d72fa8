// SPDX-License-Identifier: MIT OR Apache-2.0
//! One case in one round: the empty program, the driver with the empty program behind it, and the
//! driver with the program under test, by turns.
//!
//! **Invariant:** what is subtracted was measured within the same second.

use anyhow::{Context as _, Result, bail};

use aya::programs::{TestRun as _, TestRunOptions};
use lb_common::abi::limits;

use super::Options;
use super::cases::{Before, Case, Stage, is_expected};
use super::clock::{Clock, Took};
use super::kernel::{DROP, Hook, Kernel};
use super::wire;

/// Packets of a test run when nothing has to be done between them: a few milliseconds.
pub(crate) const PACKETS: u32 = 4_096;
/// New flows of a test run.
const NEW_FLOWS: u32 = 2_048;
/// New flows that fill the tables of those that have only begun, and half as many again; each has two
/// entries.
const FILLING: u32 = limits::HALF_OPEN / 4 * 3;

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
    let before = stage.cases.get(index).context("no such case")?.before;
    if before == Before::Full {
        let mut left = FILLING;
        while left > 0 {
            let packets = stage.new_flows(left.min(NEW_FLOWS));
            left -= left.min(NEW_FLOWS);
            run_once(kernel, &packets)?;
        }
    }
    let found = turns(kernel, stage, index, options);
    if before == Before::Full {
        kernel.forget_flows(&stage.kept);
    }
    found
}

/// The three programs by turns.
fn turns(kernel: &mut Kernel, stage: &mut Stage, index: usize, options: &Options) -> Result<Found> {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let mut dropped = false;
    let mut clock = None;
    for number in 0..options.runs {
        let begins = stage.cases.get(index).context("no such case")?.before != Before::Nothing;
        if begins {
            let packets = stage.new_flows(NEW_FLOWS);
            stage.cases.get_mut(index).context("no such case")?.packets = packets;
        }
        let case = stage.cases.get(index).context("no such case")?;
        if case.restored && (number == 0 || begins) {
            kernel.set_packets(&case.packets, case.mark)?;
        }
        let clock = match &mut clock {
            Some(clock) => clock,
            none => none.insert(clock_for(kernel, case)?),
        };
        for (time, now) in times
            .iter_mut()
            .zip(one_turn(kernel, case, clock, &mut dropped)?)
        {
            time.push(now);
        }
        if case.before == Before::Room {
            kernel.forget_flows(&stage.kept);
        }
    }
    let [floor, driver, both] = times.map(Took::of);
    Ok(Found {
        floor: floor.min,
        min: both.min - driver.min + floor.min,
        median: both.median - driver.median + floor.median,
        dropped,
    })
}

fn clock_for(kernel: &Kernel, case: &Case) -> Result<Clock> {
    let frame = case.packets.first().context("a case without packets")?;
    Clock::new(kernel.tool("empty")?, frame, case.mark)
}

/// The empty program, the driver alone, and the driver with the program under test.
fn one_turn(
    kernel: &mut Kernel,
    case: &Case,
    clock: &Clock,
    dropped: &mut bool,
) -> Result<[f64; 3]> {
    let packets = if case.before == Before::Nothing {
        PACKETS
    } else {
        NEW_FLOWS
    };
    let driver = driver_of(case)?;
    let floor = clock.run(kernel.tool("empty")?, packets)?.0;
    kernel.set_under_test(None)?;
    let alone = clock.run(kernel.tool(driver)?, packets)?.0;
    kernel.set_under_test(Some(case.hook))?;
    let (both, verdict) = clock.run(kernel.tool(driver)?, packets)?;
    if !is_expected(case, verdict) {
        bail!("{}: verdict {verdict}", case.name);
    }
    *dropped |= verdict == DROP;
    Ok([floor, alone, both])
}

/// Lets ingress see each packet once.
fn run_once(kernel: &mut Kernel, packets: &[Vec<u8>]) -> Result<()> {
    kernel.set_packets(packets, 0)?;
    kernel.set_under_test(Some(Hook::Ingress))?;
    let frame = packets.first().context("an empty list")?;
    let driver = kernel.tool(restoring(frame))?;
    let options = TestRunOptions {
        data_in: Some(frame),
        repeat: u32::try_from(packets.len())?,
        ..TestRunOptions::default()
    };
    driver.test_run(options)?;
    Ok(())
}

fn driver_of(case: &Case) -> Result<&'static str> {
    let frame = case.packets.first().context("a case without packets")?;
    Ok(if case.restored {
        restoring(frame)
    } else {
        "drive_same"
    })
}

/// The driver that restores frames of this family.
fn restoring(frame: &[u8]) -> &'static str {
    if wire::is_v4(frame) {
        "drive_v4"
    } else {
        "drive_v6"
    }
}
