// SPDX-License-Identifier: MIT OR Apache-2.0
//! One machine: what it is made of, and what it says; or what one has said before.
//!
//! **Invariant:** a machine of which nothing can be read is a failed one, never none.
//! Read next: boot.rs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::boot::{self, Limits, Reader};
use super::builds::Build;
use super::image;
use super::kernel::{Kernel, Release};
use super::machines::{Machine, Which};
use super::own::{self, Lacking};
use super::progress::{Board, Progress};
use super::report::Report;
use super::stage::Content;
use super::suites::Chosen;
use crate::process::{interrupted, target_dir};

/// What emulation costs: the lab's bounds are so many times longer.
const SLOW: u32 = 20;

/// What all machines of a run share.
pub(super) struct Common<'a> {
    pub(super) build: &'a Build,
    pub(super) board: &'a Board,
    pub(super) limits: Limits,
    pub(super) bless: bool,
    /// Nothing runs: what was said the last time is read.
    pub(super) last: bool,
}

impl Common<'_> {
    /// Runs the tests of a suite on a kernel, or reads what they said the last time.
    pub(super) fn on(&self, which: Which, chosen: &Chosen) -> Machine {
        let suite = chosen.suite.name;
        let log = match log(which, suite) {
            Ok(log) => log,
            Err(error) => return Machine::lost(which, suite, PathBuf::new(), &error),
        };
        let said = if self.last {
            again(which, suite, &log)
        } else {
            self.run(which, chosen, &log)
        };
        match said {
            Ok(report) => Machine {
                which,
                suite,
                report,
                log,
            },
            Err(error) => Machine::lost(which, suite, log, &error),
        }
    }

    fn run(&self, which: Which, chosen: &Chosen, log: &Path) -> Result<Report> {
        // What was said before is not to be taken for what this run says.
        if log.exists() {
            fs::remove_file(log).with_context(|| format!("remove {}", log.display()))?;
        }
        let dir = log.with_extension("");
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let report = self.run_in(&dir, which, chosen, log);
        // What a machine was made of is of no use to a person.
        let removed = fs::remove_dir_all(&dir);
        let mut report = report?;
        if let Err(error) = removed {
            let left = format!("remove {}: {error}", dir.display());
            report.broken.push(left);
        }
        Ok(report)
    }

    fn run_in(&self, dir: &Path, which: Which, chosen: &Chosen, log: &Path) -> Result<Report> {
        let content = self.content(which, chosen);
        let (mut machine, version) = match which {
            Which::Debian(release) => {
                let kernel = Kernel::get(release, false)?;
                let initramfs = image::make(&kernel, &content, dir)?;
                (boot::machine(&kernel, &initramfs), kernel.version)
            }
            Which::Own => {
                let version = fs::read_to_string("/proc/sys/kernel/osrelease");
                let version = version.context("read the running kernel's version")?;
                (of_own(&content, dir)?, version.trim().to_owned())
            }
        };
        let mut progress = Progress::new(self.board, which.name(), &version, chosen);
        let mut reader = Reader {
            log,
            limits: self.limits,
            stop: interrupted,
            tell: &mut |news, line| progress.tell(news, line),
        };
        boot::read(&mut machine, &mut reader)
    }

    fn content<'a>(&'a self, which: Which, chosen: &'a Chosen) -> Content<'a> {
        Content {
            agent: &self.build.agent,
            chosen,
            slow: if which == Which::Own { 1 } else { SLOW },
            environment: match which {
                _ if self.bless => "LB_BLESS=print",
                // Others have other kernels, and the newest is another one from week to week.
                Which::Own | Which::Debian(Release::V7) => "",
                Which::Debian(_) => "LB_REQUIRE_BUDGET=1",
            },
        }
    }
}

fn of_own(content: &Content<'_>, dir: &Path) -> Result<Command> {
    let lacking: Vec<Lacking<'_>> = own::lacking(content.chosen)?;
    own::script(content, &lacking, dir)
}

/// Where a machine's words are kept until the next one of its kind runs.
fn log(which: Which, suite: &str) -> Result<PathBuf> {
    let of_kernel = target_dir()?.join("vm").join(which.name());
    fs::create_dir_all(&of_kernel).with_context(|| format!("make {}", of_kernel.display()))?;
    Ok(of_kernel.join(format!("{suite}.log")))
}

/// What a machine said the last time, for a person who is told how old that is.
fn again(which: Which, suite: &str, log: &Path) -> Result<Report> {
    let (report, age) = boot::read_again(log)?;
    eprintln!("  {:<5} {suite:<8} {} ago", which.name(), ago(age));
    Ok(report)
}

/// `5 min`, `3 h 05 min`, `2 days 03 h`.
fn ago(age: Duration) -> String {
    let minutes = age.as_secs() / 60;
    let (hours, days) = (minutes / 60, minutes / 60 / 24);
    match (hours, days) {
        (0, _) => format!("{minutes} min"),
        (_, 0) => format!("{hours} h {:02} min", minutes % 60),
        _ => format!("{days} days {:02} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_well() {
        for (minutes, expected) in [
            (0, "0 min"),
            (59, "59 min"),
            (185, "3 h 05 min"),
            (3_060, "2 days 03 h"),
        ] {
            assert_eq!(ago(Duration::from_secs(minutes * 60 + 59)), expected);
        }
    }
}
