// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process of the bench: what it costs, and its end.
//!
//! **Invariant:** it ends with the value, whatever happens; processor time is what the scheduler
//! counted for its threads, in nanoseconds, not in ticks.
//! Read next: `agent`, `server`.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::numbers::float;
use crate::error::LabError;
use crate::run;

/// How long a process may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(5);

/// A process that ends with the value.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
}

/// Processor time by thread.
#[derive(Debug, Clone)]
pub(super) struct Cpu(BTreeMap<u32, u64>);

impl Process {
    pub(super) fn start(command: &mut Command) -> Result<Self, LabError> {
        let line = run::describe(command);
        let child = command.spawn();
        let child = child.map_err(LabError::io(format!("start `{line}`")))?;
        Ok(Self { child })
    }

    /// What each of its threads has had of the processors.
    pub(super) fn cpu(&self) -> Cpu {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let mut threads = BTreeMap::new();
        for task in tasks.into_iter().flatten().flatten() {
            let name = task.file_name();
            let id = name.to_str().and_then(|name| name.parse::<u32>().ok());
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let nanos = text.split_whitespace().next();
            let nanos = nanos.and_then(|nanos| nanos.parse::<u64>().ok());
            // A thread that has just ended has neither.
            threads.extend(id.zip(nanos));
        }
        Cpu(threads)
    }

    /// What it has had of the processors in all, threads that have ended included; in ticks of a
    /// hundredth of a second.
    pub(super) fn cpu_with_ended(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.unwrap_or_default();
        // Its name, in parentheses, may hold anything. User and system time are the 14th and 15th field.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// A line of its status that is a size, in MiB.
    pub(super) fn mib(&self, name: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        float(kib.unwrap_or_default()) / 1024.0
    }

    /// Its exit status, if it has ended.
    pub(super) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten();
        status.map(|status| status.to_string())
    }
}

impl Cpu {
    /// What was used since `before`; threads that have ended in between are left out.
    pub(super) fn since(&self, before: &Self) -> Duration {
        let used = self.0.iter().map(|(thread, nanos)| {
            let before = before.0.get(thread).copied().unwrap_or_default();
            nanos.saturating_sub(before)
        });
        Duration::from_nanos(used.sum())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What has ended or resists is none of our business any more: the lab's removal kills it.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).unwrap_or_default();
        let until = Instant::now() + STOP_MAX;
        while self.ended().is_none() {
            if Instant::now() > until {
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            run::pause(LOOK);
        }
    }
}
