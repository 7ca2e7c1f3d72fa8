// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs in the background, and what descends from them.
//!
//! **Invariant:** nothing that was started here outlives what waits for it.
//! Read next: process.rs, programs that are waited for at once.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::process::typed;

/// How long programs may clean up that were told to end.
const CLEANING: Duration = Duration::from_secs(10);

/// The processes that descend from one, parents first.
pub(crate) fn descendants(pid: u32) -> Vec<String> {
    let mut pids = vec![pid.to_string()];
    let mut next = 0;
    while let Some(pid) = pids.get(next) {
        // The kernel lists children by the thread that started them.
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        let tasks = tasks.into_iter().flatten().flatten();
        let children = tasks
            .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
            .collect::<Vec<_>>()
            .concat();
        pids.extend(children.split_whitespace().map(str::to_owned));
        next += 1;
    }
    pids.remove(0);
    pids
}

/// Sends a signal, as `kill` knows it.
pub(crate) fn signal(signal: &str, pids: &[String]) {
    if pids.is_empty() {
        return;
    }
    let mut kill = Command::new("kill");
    kill.arg(signal).args(pids).stderr(Stdio::null());
    // A process that is gone by now is what we want.
    drop(kill.status());
}

/// Whether a process is there and has not ended; one that nobody has waited for yet has.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// A program in the background, in a group of its own: a terminal's interrupt is not for it, because
/// what it started would be left behind.
///
/// **Invariant:** when this goes, the program is gone with all that descends from it, whatever groups
/// these have made for themselves, and it has been waited for.
pub(crate) struct Background(Child);

impl Background {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let typed = typed(command);
        let child = command.process_group(0).spawn();
        Ok(Self(child.with_context(|| format!("start `{typed}`"))?))
    }

    /// What it prints, once, if the command pipes that.
    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// How it ended, if it does so soon; else it is killed.
    pub(crate) fn ends_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let (ended, is_ended) = mpsc::channel::<()>();
        let pid = self.0.id().to_string();
        std::thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let late = is_ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
                if late {
                    signal("-KILL", &[pid]);
                }
                late
            });
            let status = self.0.wait().context("wait for a program");
            drop(ended);
            let late = watch.join().unwrap_or(true);
            Ok((!late).then_some(status?))
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // One that was waited for has given its number back, maybe to somebody else.
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        let pid = self.0.id();
        // It must not start anything more, and is still the parent by which the others are found.
        signal("-STOP", &[pid.to_string()]);
        signal("-INT", &descendants(pid));
        let until = Instant::now() + CLEANING;
        while descendants(pid).iter().any(|pid| lives(pid)) && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let below = descendants(pid);
        drop(self.0.kill());
        signal("-KILL", &below);
        drop(self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_descends_from_a_program_in_the_background_goes_with_it() {
        let mut shell = Command::new("sh");
        // `timeout` makes a group of its own.
        shell.args(["-c", "timeout 60 sleep 61; echo never"]);
        // By another thread than the first, as machines are started.
        let background = std::thread::spawn(move || Background::start(&mut shell));
        let background = background.join().unwrap().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        let mut below = Vec::new();
        while below.len() < 2 && Instant::now() < until {
            below = descendants(background.0.id());
        }
        assert_eq!(below.len(), 2, "timeout and sleep");
        drop(background);
        while below.iter().any(|pid| lives(pid)) && Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(!below.iter().any(|pid| lives(pid)));
    }

    #[test]
    fn what_is_told_to_end_may_clean_up() {
        let mark = format!("lb-xtask-background-{}", std::process::id());
        let mark = std::env::temp_dir().join(mark);
        let mut shell = Command::new("sh");
        shell.env("MARK", &mark).args([
            "-c",
            "sh -c 'trap \"echo clean > $MARK; exit\" INT; echo > $MARK; \
             while :; do sleep 0.05; done'; :",
        ]);
        let background = Background::start(&mut shell).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while !mark.exists() && Instant::now() < until {
            std::thread::yield_now();
        }
        drop(background);
        let left = std::fs::read_to_string(&mark).unwrap();
        std::fs::remove_file(&mark).unwrap();
        assert_eq!(left, "clean\n");
    }

    #[test]
    fn a_program_that_does_not_end_soon_is_killed() {
        let mut sleep = Command::new("sleep");
        let mut background = Background::start(sleep.arg("63")).unwrap();
        let limit = Duration::from_millis(50);
        assert_eq!(background.ends_within(limit).unwrap(), None);
        let mut ends = Background::start(&mut Command::new("true")).unwrap();
        let status = ends.ends_within(Duration::from_secs(30)).unwrap();
        assert!(status.is_some_and(|status| status.success()));
    }

    #[test]
    fn children_of_all_threads_are_descendants() {
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut sleep = Command::new("sleep");
            let child = Background::start(sleep.arg("62")).unwrap();
            ready.send(child.0.id().to_string()).unwrap();
            stopped.recv().unwrap_err();
        });
        let pid = is_ready.recv().unwrap();
        assert!(descendants(std::process::id()).contains(&pid));
        drop(stop);
        thread.join().unwrap();
        assert!(!lives(&pid));
    }
}
