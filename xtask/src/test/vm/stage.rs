// SPDX-License-Identifier: MIT OR Apache-2.0
//! The folder that a machine runs its tests from: the programs, what to run, in which order.
//!
//! **Invariant:** the same folder serves a virtual machine and the machine's own kernel.
//! Read next: run.sh, which works off the plan.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::report::TOGETHER;
use super::suites::{Chosen, Test};
use crate::process::command;

/// What goes into every machine.
pub(super) struct Content<'a> {
    pub(super) agent: &'a Path,
    pub(super) chosen: &'a Chosen,
    /// What the lab's bounds are multiplied by.
    pub(super) slow: u32,
    /// More of the environment, as a shell has it.
    pub(super) environment: &'a str,
}

impl Content<'_> {
    /// Fills an empty folder; tests that are `left_out` do not run.
    pub(super) fn write(&self, dir: &Path, left_out: &[&Test]) -> Result<()> {
        stripped(self.agent, &dir.join("lb-agent"))?;
        let mut plan = String::new();
        let Chosen {
            suite,
            program,
            tests,
            ..
        } = self.chosen;
        let (name, limit) = (suite.name, suite.limit_secs);
        stripped(program, &dir.join(name))?;
        let tests = tests.iter().filter(|test| !left_out.contains(test));
        let names: Vec<&str> = tests.map(|test| test.name.as_str()).collect();
        if suite.together {
            text(dir, &format!("{name}.names"), &(names.join("\n") + "\n"))?;
            writeln!(plan, "{name} {TOGETHER} {limit}")?;
        } else {
            for test in names {
                writeln!(plan, "{name} {test} {limit}")?;
            }
        }
        text(dir, "plan", &plan)?;
        let run = include_str!("run.sh")
            .replace("@SLOW@", &self.slow.to_string())
            .replace("@ENVIRONMENT@", self.environment);
        text(dir, "run.sh", &run)
    }
}

/// Writes a file.
pub(super) fn text(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// Copies a program without its symbols.
pub(super) fn stripped(from: &Path, to: &Path) -> Result<()> {
    let mut strip = command("strip");
    let output = strip.arg("-o").arg(to).arg(from).output();
    let output = output.context("start strip")?;
    if !output.status.success() {
        bail!(
            "strip {}: {}",
            from.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    executable(to)
}

/// Lets everyone run a file.
pub(super) fn executable(file: &Path) -> Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", file.display()))
}
