// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a program takes: many short test runs, of which the fastest counts.
//!
//! The kernel gives whole nanoseconds only, a tenth of the floor, so the time around the call is
//! taken, less that of a call that runs the program once.
//! **Invariant:** a test run is so short that most are not interrupted, and so long that the call
//! itself hardly counts.

use std::time::Instant;

use anyhow::{Result, bail};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};

use super::kernel::context;

/// Calls of which the fastest is what a call costs.
const CALLS: u32 = 300;

/// What one program took in several test runs, in nanoseconds a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    pub(crate) min: f64,
    pub(crate) median: f64,
}

impl Took {
    pub(crate) fn of(mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        Self {
            min: all.first().copied().unwrap_or(f64::NAN),
            median: all.get(all.len() / 2).copied().unwrap_or(f64::NAN),
        }
    }
}

/// Runs programs on one frame.
pub(crate) struct Clock {
    frame: Vec<u8>,
    context: [u8; 192],
    call_ns: f64,
}

impl Clock {
    /// Finds out what a call costs, with a program that does next to nothing.
    pub(crate) fn new(empty: &SchedClassifier, frame: &[u8], mark: u32) -> Result<Self> {
        let mut clock = Self {
            frame: frame.to_vec(),
            context: context(mark),
            call_ns: 0.0,
        };
        let mut calls = Vec::new();
        for _ in 0..CALLS {
            calls.push(clock.call(empty, 1)?.0);
        }
        clock.call_ns = Took::of(calls).min;
        Ok(clock)
    }

    /// Nanoseconds that the program takes for each of `packets` packets, and its last verdict.
    pub(crate) fn run(&self, program: &SchedClassifier, packets: u32) -> Result<(f64, u32)> {
        let (all, verdict) = self.call(program, packets)?;
        let ns = (all - self.call_ns) / f64::from(packets.max(2) - 1);
        Ok((ns.max(0.0), verdict))
    }

    fn call(&self, program: &SchedClassifier, repeat: u32) -> Result<(f64, u32)> {
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&self.context),
            repeat,
            ..TestRunOptions::default()
        };
        let begin = Instant::now();
        let result = program.test_run(options)?;
        let took = begin.elapsed();
        if result.return_value == super::layout::NO_PROGRAM.cast_unsigned() {
            bail!("the driver found no program to jump to");
        }
        Ok((took.as_secs_f64() * 1e9, result.return_value))
    }
}
