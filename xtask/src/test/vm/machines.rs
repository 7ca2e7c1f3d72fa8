// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels, and what the machines with each of them have said: one machine for each suite, so that one
//! can be run again without the others.
//!
//! **Invariant:** as many at once as there are processors: each keeps about one busy.
//! Read next: report.rs.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use clap::builder::PossibleValue;

use super::kernel::Release;
use super::report::Report;
use crate::process::interrupted;

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Which {
    Debian(Release),
    /// The machine's own, not in a virtual machine
    Own,
}

impl ValueEnum for Which {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Debian(Release::V5_10),
            Self::Debian(Release::V6_1),
            Self::Debian(Release::V6_12),
            Self::Debian(Release::V7),
            Self::Own,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Debian(release) => release.to_possible_value(),
            Self::Own => Some(PossibleValue::new("own").help("The running kernel")),
        }
    }
}

impl Which {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Debian(release) => release.name(),
            Self::Own => "own",
        }
    }
}

/// What became of a machine.
pub(super) struct Machine {
    pub(super) which: Which,
    /// What it ran.
    pub(super) suite: &'static str,
    pub(super) report: Report,
    pub(super) log: PathBuf,
}

/// All machines with one kernel.
pub(super) struct Ran {
    pub(super) which: Which,
    pub(super) machines: Vec<Machine>,
}

impl Ran {
    /// Puts together what ran on one kernel.
    pub(super) fn by_kernel(kernels: &[Which], machines: Vec<Machine>) -> Vec<Self> {
        let mut ran: Vec<Self> = kernels
            .iter()
            .map(|which| Self {
                which: *which,
                machines: Vec::new(),
            })
            .collect();
        for machine in machines {
            if let Some(of_kernel) = ran.iter_mut().find(|ran| ran.which == machine.which) {
                of_kernel.machines.push(machine);
            }
        }
        ran
    }

    /// What the machine with a suite said.
    pub(super) fn of(&self, suite: &str) -> Option<&Report> {
        let mut machines = self.machines.iter();
        machines
            .find(|machine| machine.suite == suite)
            .map(|machine| &machine.report)
    }

    /// Time from the start of the kernel to that of the tests, and its version.
    pub(super) fn up(&self) -> Option<&(Duration, String)> {
        self.machines
            .iter()
            .find_map(|machine| machine.report.up.as_ref())
    }

    /// How long all machines took, each from the start of its kernel, or of its tests if that was
    /// running before.
    pub(super) fn time(&self) -> Duration {
        let time = |machine: &Machine| {
            let up = machine.report.up.as_ref().map(|(time, _)| *time);
            let begin = up.filter(|_| self.which == Which::Own).unwrap_or_default();
            machine.report.last.saturating_sub(begin)
        };
        self.machines.iter().map(time).sum()
    }

    /// Major and minor version of the kernel.
    pub(super) fn series(&self) -> String {
        let version = self.up().map(|(_, version)| version.as_str());
        let version = version.unwrap_or(self.which.name());
        let parts: Vec<&str> = version.splitn(3, ['.', '-']).take(2).collect();
        parts.join(".")
    }
}

/// Runs every job, `workers` at once; what they give is in the order of the jobs.
pub(super) fn at_once<J: Send, R: Send>(
    jobs: Vec<J>,
    workers: usize,
    run: &(dyn Fn(J) -> Result<R> + Sync),
) -> Result<Vec<R>> {
    let waiting = Mutex::new(jobs.into_iter().enumerate());
    let next = || waiting.lock().ok()?.next();
    let work = || -> Result<Vec<(usize, R)>> {
        let mut done = Vec::new();
        while let Some((place, job)) = next() {
            if interrupted() {
                bail!("interrupted");
            }
            done.push((place, run(job)?));
        }
        Ok(done)
    };
    let all: Result<Vec<Vec<(usize, R)>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(|worker| {
            let panicked = |_| Err(anyhow!("a thread that ran a machine has died"));
            worker.join().unwrap_or_else(panicked)
        });
        results.collect()
    });
    let mut done: Vec<(usize, R)> = all?.into_iter().flatten().collect();
    done.sort_by_key(|(place, _)| *place);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_several_workers_come_back_in_order_and_one_error_is_the_answer() {
        let doubled = at_once((0..100).collect(), 3, &|job: u32| Ok(2 * job)).unwrap();
        assert_eq!(doubled, (0..100).map(|job| 2 * job).collect::<Vec<_>>());
        let failing = |job: u32| if job == 7 { bail!("seven") } else { Ok(job) };
        assert!(at_once((0..10).collect(), 2, &failing).is_err());
    }

    #[test]
    fn machines_are_put_together_by_kernel() {
        let machine = |which, suite, lines: &[&str]| {
            let mut report = Report::default();
            for line in lines {
                report.read(line);
            }
            Machine {
                which,
                suite,
                report,
                log: "/l".into(),
            }
        };
        let old = Which::Debian(Release::V5_10);
        let lines = ["VM-UP 4.0 5.10.0-46", "VM-RESULT vm a 0 5.0 9.0"];
        let machines = vec![
            machine(old, "vm", &lines),
            machine(
                Which::Own,
                "vm",
                &["VM-UP 100.0 6.18.1", "VM-RESULT vm a 0 100.5 103.0"],
            ),
            machine(old, "e2e", &lines[..1]),
        ];
        let ran = Ran::by_kernel(&[old, Which::Own], machines);
        assert_eq!(ran[0].machines.len(), 2);
        assert_eq!(ran[0].series(), "5.10");
        assert_eq!(ran[0].time(), Duration::from_secs(9), "with its boot");
        assert_eq!(ran[1].time(), Duration::from_secs(3), "the tests alone");
        assert!(ran[1].of("e2e").is_none());
    }
}
