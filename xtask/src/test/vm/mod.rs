// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test vm`: tests of the lab on other kernels, in virtual machines.
//!
//! For what a kernel may lack that has no modules, such as SCTP sockets and VLAN devices, and for
//! kernels older and newer than the running one.
//! **Invariant:** needs no root and changes nothing on this machine but the cache and the target
//! folder; a test without a result, a panic and a machine that does not end are failures.
//! Read next: kernel.rs, image.rs, boot.rs: what a machine is made of.

mod boot;
mod image;
mod kernel;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::image::Content;
use self::kernel::{Kernel, Release};
use self::report::Report;
use super::plain;
use crate::doctor::{self, Scope};
use crate::process::{cargo, command, interrupted, run, target_dir, wait_through_interrupts};
use crate::table::{duration, render};

/// What emulation costs: the lab's bounds are so many times longer.
const SLOW: u32 = 20;
/// How long one test may take in a machine.
const TEST_LIMIT_SECS: u64 = 600;
/// How long a machine may take to come up and to end, without its tests.
const BOOT_LIMIT: Duration = Duration::from_mins(3);
/// How long all tests of a machine may take together.
const TESTS_LIMIT: Duration = Duration::from_mins(30);
/// Lines of a failed machine's log that are shown.
const LOG_TAIL_LINES: usize = 60;
/// The program whose tests are for machines only.
pub(super) const PROGRAM: &str = "vm";

/// SCTP and VLANs on Debian's kernels in virtual machines; no part of `all`
///
/// Fetches each kernel's package once (into the user's cache folder) and boots it by software
/// emulation, with the agent and the lab's tests inside. Needs no root, but a Debian or Ubuntu.
#[derive(clap::Args)]
pub(crate) struct Vm {
    /// Kernels to boot
    #[arg(value_enum, default_value = "6.12", value_name = "KERNEL")]
    kernels: Vec<Release>,
    /// Only tests whose names contain this
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Fetch the kernels anew
    #[arg(long)]
    fetch: bool,
    /// Show the machines' serial lines
    #[arg(long)]
    loud: bool,
}

/// A test that runs in a machine.
#[derive(Debug, PartialEq, Eq)]
struct Test {
    program: String,
    name: String,
}

impl Test {
    /// As reports name it.
    fn full_name(&self) -> String {
        format!("{} {}", self.program, self.name)
    }
}

/// What became of a machine.
struct Ran {
    release: Release,
    report: Report,
    /// From its start to its end.
    time: Duration,
    log: PathBuf,
}

impl Vm {
    pub(crate) fn run(&self) -> Result<()> {
        wait_through_interrupts()?;
        doctor::prepare(Scope::Vm)?;
        run(cargo("build").args(["--workspace", "--locked", "--bin", "lb-agent"]))?;
        let program = plain::build_one("lb-lab", PROGRAM)?;
        let tests = tests_of(&program, self.only.as_deref())?;
        let agent = target_dir()?.join("debug/lb-agent");
        let content = Content {
            agent: &agent,
            programs: &[(PROGRAM.to_owned(), program)],
            tests: &tests,
            limit_secs: TEST_LIMIT_SECS,
            slow: SLOW,
        };
        let mut ran = Vec::new();
        for release in &self.kernels {
            if interrupted() {
                bail!("interrupted");
            }
            ran.push(self.in_machine(*release, &content)?);
        }
        finish(&ran, &tests)
    }

    /// Makes the machine of a kernel and runs the tests in it.
    fn in_machine(&self, release: Release, content: &Content<'_>) -> Result<Ran> {
        let kernel = Kernel::get(release, self.fetch)?;
        let dir = target_dir()?.join("vm").join(release.name());
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let initramfs = image::make(&kernel, content, &dir)?;
        eprintln!(
            "  Linux {} ({}): {} tests ...",
            kernel.release.name(),
            kernel.version,
            content.tests.len()
        );
        let log = dir.join("serial.log");
        let start = Instant::now();
        let limit = BOOT_LIMIT + TESTS_LIMIT;
        let report = boot::boot(&kernel, &initramfs, &log, limit, self.loud)?;
        Ok(Ran {
            release,
            report,
            time: start.elapsed(),
            log,
        })
    }
}

/// The tests that a program has, by its own list.
fn tests_of(program: &Path, only: Option<&str>) -> Result<Vec<Test>> {
    let mut list = command(program);
    let output = list.args(["--list", "--format", "terse"]).output();
    let output = output.with_context(|| format!("start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tests = listed(&text, only);
    match only {
        Some(word) if tests.is_empty() => bail!("no test for machines has `{word}` in its name"),
        None if tests.is_empty() => bail!("there is no test for machines"),
        _ => Ok(tests),
    }
}

/// The names in lines `NAME: test`.
fn listed(text: &str, only: Option<&str>) -> Vec<Test> {
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    names
        .filter(|name| only.is_none_or(|word| name.contains(word)))
        .map(|name| Test {
            program: PROGRAM.to_owned(),
            name: name.to_owned(),
        })
        .collect()
}

/// Shows the end of the logs of failed machines, then the table of all.
fn finish(ran: &[Ran], tests: &[Test]) -> Result<()> {
    let mut failed = 0;
    for machine in ran {
        let failures = failures(&machine.report, tests);
        failed += failures.len();
        if failures.is_empty() {
            continue;
        }
        let text = fs::read_to_string(&machine.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!(
            "\nLinux {} FAILED; the end of its serial line:",
            machine.release.name()
        );
        for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
            eprintln!("  | {line}");
        }
        for failure in &failures {
            eprintln!("  {failure}");
        }
        eprintln!("  all of it: {}", machine.log.display());
    }
    println!("\n{}", render(&table(ran, tests)));
    if failed > 0 {
        bail!("{failed} failed");
    }
    Ok(())
}

/// What is wrong with a machine, in words.
fn failures(report: &Report, tests: &[Test]) -> Vec<String> {
    let mut failures: Vec<String> = report.broken.clone();
    if report.up.is_none() {
        failures.push("did not come up".to_owned());
    }
    for test in tests {
        let name = test.full_name();
        match report.of(&name) {
            Some((true, _)) => {}
            Some((false, _)) => failures.push(format!("failed: {name}")),
            None => failures.push(format!("no result: {name}")),
        }
    }
    if !report.ended {
        failures.push("did not come to its end".to_owned());
    }
    failures
}

/// One line per test, one column per kernel.
fn table(ran: &[Ran], tests: &[Test]) -> Vec<Vec<String>> {
    let row = |name: &str, cell: &dyn Fn(&Ran) -> String| {
        let mut row = vec![name.to_owned()];
        row.extend(ran.iter().map(cell));
        row
    };
    let none = || "--".to_owned();
    let mut rows = vec![
        row("", &|ran| {
            let version = ran.report.up.as_ref().map(|(_, version)| version.clone());
            version.unwrap_or_else(|| ran.release.name().to_owned())
        }),
        row("boot", &|ran| {
            let up = ran.report.up.as_ref();
            up.map_or_else(none, |(time, _)| duration(*time))
        }),
    ];
    for test in tests {
        let name = test.full_name();
        rows.push(row(&test.name, &|ran| match ran.report.of(&name) {
            Some((true, time)) => duration(time),
            Some((false, time)) => format!("FAILED after {}", duration(time)),
            None => "NO RESULT".to_owned(),
        }));
    }
    rows.push(row("all of it", &|ran| duration(ran.time)));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.read(line);
        }
        report
    }

    #[test]
    fn a_machine_is_right_only_when_every_test_says_so_and_it_ends() {
        let tests = listed("a: test\nb::c: test\n\n2 tests\n", None);
        let right = [
            "VM-UP 1.0 6.12",
            "VM-RESULT vm a 0 1.0 2.0",
            "VM-RESULT vm b::c 0 2.0 3.0",
            "VM-END 4.0",
        ];
        assert!(failures(&said(&right), &tests).is_empty());
        for missing in 0..right.len() {
            let mut lines = right.to_vec();
            lines.remove(missing);
            assert_eq!(failures(&said(&lines), &tests).len(), 1, "{missing}");
        }
        let with_warning = [
            right[0],
            "VM-BROKEN WARNING: x",
            right[1],
            right[2],
            right[3],
        ];
        assert_eq!(failures(&said(&with_warning), &tests).len(), 1);
    }

    #[test]
    fn a_word_chooses_tests() {
        assert_eq!(listed("a: test\nb: test\n", Some("b")).len(), 1);
        assert_eq!(listed("", None), []);
    }
}
