// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs stages with cargo-nextest: each test in a process of its own, with a timeout; but for one program,
//! which plain.rs runs.
//!
//! **Invariant:** all stages select from one build of the whole workspace, so nothing compiles twice.
//! Read next: .config/nextest.toml, for which tests run alone.

use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::{Counts, Stage, with_agent};
use crate::process::{cargo, run, typed};

/// Builds every test of the workspace.
pub(super) fn build() -> Result<()> {
    run(nextest(false).arg("--no-run"))
}

/// Runs the tests of a stage whose names contain the filter.
pub(super) fn run_stage(stage: &Stage, filter: Option<&str>, soak: bool) -> Result<Counts> {
    let mut command = nextest(soak);
    command.args([
        "--no-fail-fast",
        "--no-tests",
        "pass",
        "-E",
        stage.expression,
    ]);
    command.args(filter);
    counted(&mut command)
}

fn nextest(soak: bool) -> Command {
    let mut command = cargo("nextest");
    command.args(["run", "--workspace", "--locked"]);
    if soak {
        command.args(["--profile", "soak"]);
    }
    with_agent(&mut command, soak);
    command
}

/// Runs nextest, passes its words on, and reads the counts from its summary.
fn counted(command: &mut Command) -> Result<Counts> {
    let typed = typed(command);
    eprintln!("$ {typed}");
    if std::io::stderr().is_terminal() {
        command.args(["--color", "always"]);
    }
    command.stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("start `{typed}`"))?;
    let mut counts = Counts::default();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line.context("read what the tests print")?;
            eprintln!("{line}");
            counts = summary(&line).unwrap_or(counts);
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for `{typed}`"))?;
    if !status.success() {
        // A run that broke without a failed test is a failure all the same.
        counts.failed = counts.failed.max(1);
    }
    Ok(counts)
}

/// Passed and failed tests, from a line like
/// `Summary [ 0.1s] 3 tests run: 2 passed (1 slow), 1 failed, 1 timed out, 4 skipped`.
fn summary(line: &str) -> Option<Counts> {
    let plain = without_colours(line);
    let parts = plain
        .trim_start()
        .strip_prefix("Summary")?
        .split_once(" run:")?
        .1;
    let mut counts = Counts::default();
    for part in parts.split(',') {
        let mut words = part.split_whitespace();
        let Some(Ok(count)) = words.next().map(str::parse::<u64>) else {
            continue;
        };
        match words.next() {
            Some("passed") => counts.passed += count,
            Some("failed" | "timed" | "exec") => counts.failed += count,
            _ => {}
        }
    }
    Some(counts)
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, text)| text);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_nextest_is_counted() {
        let line = "     Summary [   0.1s] 8 tests run: 5 passed (1 slow), 1 failed, 2 timed out, 4 skipped";
        assert_eq!(
            summary(line),
            Some(Counts {
                passed: 5,
                failed: 3
            })
        );
    }

    #[test]
    fn the_summary_of_nextest_is_counted_in_colour() {
        let line = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.1s] \u{1b}[1m2\u{1b}[0m tests run: \
                    \u{1b}[1m2\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, \u{1b}[1m0\u{1b}[0m skipped";
        assert_eq!(
            summary(line),
            Some(Counts {
                passed: 2,
                failed: 0
            })
        );
    }

    #[test]
    fn other_lines_are_no_summary() {
        assert_eq!(
            summary("        PASS [   0.004s] lb-common abi::tests::layout"),
            None
        );
    }
}
