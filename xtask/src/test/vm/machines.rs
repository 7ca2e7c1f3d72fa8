// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels, and what the machines with each of them have said: one machine for each suite, so that one
//! can be run again without the others.
//!
//! **Invariant:** as many at once as there are processors, each of which one keeps busy, and as there is
//! memory for; one that breaks off does not stop the others.
//! Read next: report.rs.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use clap::ValueEnum;
use clap::builder::PossibleValue;

use super::kernel::Release;
use super::report::Report;

/// Memory that a machine takes here: its own, and what emulates it.
const MEMORY_KIB: usize = 2_560 * 1_024;

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

impl Machine {
    /// One that could not be made or read.
    pub(super) fn lost(which: Which, suite: &'static str, log: PathBuf, error: &Error) -> Self {
        let mut report = Report::default();
        report.broken.push(format!("{error:#}"));
        Self {
            which,
            suite,
            report,
            log,
        }
    }
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

/// How many machines there is room for at once.
pub(super) fn room() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    processors.min(fitting(&memory))
}

/// How many fit into the memory that /proc/meminfo says is available; one is always tried.
fn fitting(meminfo: &str) -> usize {
    let mut lines = meminfo.lines();
    let available = lines.find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(1, |kib: usize| (kib / MEMORY_KIB).max(1))
}

/// Runs every job, `workers` at once, until it is to `stop`: what has not begun by then does not. What
/// they give is in the order of the jobs.
pub(super) fn at_once<J: Send, R: Send>(
    jobs: Vec<J>,
    workers: usize,
    stop: fn() -> bool,
    run: &(dyn Fn(J) -> R + Sync),
) -> Result<Vec<R>> {
    let waiting = Mutex::new(jobs.into_iter().enumerate());
    let next = || waiting.lock().ok()?.next();
    let work = || -> Vec<(usize, R)> {
        let mut done = Vec::new();
        while !stop()
            && let Some((place, job)) = next()
        {
            done.push((place, run(job)));
        }
        done
    };
    let all: Result<Vec<Vec<(usize, R)>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(|worker| {
            let panicked = |_| anyhow!("a thread that ran a machine has died");
            worker.join().map_err(panicked)
        });
        results.collect()
    });
    let mut done: Vec<(usize, R)> = all?.into_iter().flatten().collect();
    done.sort_by_key(|(place, _)| *place);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn jobs_of_several_workers_come_back_in_order() {
        let doubled = at_once((0..100).collect(), 3, || false, &|job: u32| 2 * job).unwrap();
        assert_eq!(doubled, (0..100).map(|job| 2 * job).collect::<Vec<_>>());
    }

    #[test]
    fn what_has_not_begun_when_it_is_to_stop_does_not() {
        static STOP: AtomicBool = AtomicBool::new(false);
        let seven_stops = |job: u32| {
            STOP.fetch_or(job == 7, Ordering::Relaxed);
            job
        };
        let stop = || STOP.load(Ordering::Relaxed);
        let done = at_once((0..100).collect(), 1, stop, &seven_stops).unwrap();
        assert_eq!(done, (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn memory_bounds_how_many_run_at_once() {
        let with = |kib: &str| fitting(&format!("MemTotal: 9 kB\nMemAvailable: {kib}\n"));
        assert_eq!(with("16000000 kB"), 6);
        assert_eq!(with("5300000 kB"), 2);
        assert_eq!(with("1000 kB"), 1);
        assert_eq!(fitting("MemTotal: 16000000 kB\n"), 1, "who knows");
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
