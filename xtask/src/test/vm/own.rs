// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same tests on the machine's own kernel, without a machine.
//!
//! **Invariant:** what this kernel has not got is found out by trying, and named; everything else runs.
//! Read next: run.sh.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::stage::Content;
use super::suites::{Chosen, Test};
use crate::process::command;

/// The suite whose tests need modules.
const NEEDS_MODULES: &str = "vm";

/// A test that cannot run here, and what the kernel has not got.
pub(super) type Lacking<'a> = (&'a Test, &'static str);

/// Tests whose subject this kernel does not know.
pub(super) fn lacking(chosen: &Chosen) -> Vec<Lacking<'_>> {
    if chosen.suite.name != NEEDS_MODULES {
        return Vec::new();
    }
    let (sctp, vlan) = (has_sctp(), has_vlan());
    let lacks = |test: &&Test| match test.name.split("::").next() {
        Some("sctp") if !sctp => Some("SCTP"),
        Some("vlan") if !vlan => Some("VLAN"),
        _ => None,
    };
    let tests = chosen.tests.iter();
    tests
        .filter_map(|test| Some((test, lacks(&test)?)))
        .collect()
}

fn has_sctp() -> bool {
    let protocols = fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    protocols.lines().any(|line| line.starts_with("SCTP"))
}

/// Tries to make a device, in a network namespace that is gone afterwards.
fn has_vlan() -> bool {
    let mut add = command("unshare");
    add.args(["--net", "ip", "link", "add", "link", "lo"]);
    add.args(["name", "lb-vlan", "type", "vlan", "id", "5"]);
    let status = add.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// The command that runs the tests, from a folder that is made anew.
pub(super) fn script(
    content: &Content<'_>,
    lacking: &[Lacking<'_>],
    dir: &Path,
) -> Result<Command> {
    let tests: PathBuf = dir.join("tests");
    if tests.exists() {
        fs::remove_dir_all(&tests).with_context(|| format!("remove {}", tests.display()))?;
    }
    fs::create_dir_all(&tests).with_context(|| format!("make {}", tests.display()))?;
    let left_out: Vec<&Test> = lacking.iter().map(|(test, _)| *test).collect();
    content.write(&tests, &left_out)?;
    let mut run = command("sh");
    run.arg(tests.join("run.sh"));
    Ok(run)
}
