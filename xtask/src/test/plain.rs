// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs stages without nextest, which takes minutes to compile on a fresh machine: cargo builds the
//! test programs, and this runs them one after the other, each under a time limit.
//!
//! **Invariant:** selects the same tests as nextest does, from the same kind of build.
//! Read next: nextest.rs.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Counts, Stage, with_agent};
use crate::process::{cargo, command, typed};

/// Time limit of one test program; its tests run one after the other in it.
const LIMIT_SECS: u32 = 900;
/// The same in long runs.
const SOAK_LIMIT_SECS: u32 = 7200;

/// A test program that cargo built.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// The name of its package.
    package: String,
    /// `lib`, `bin` or `test`.
    kind: String,
    /// The target's name.
    name: String,
    path: PathBuf,
    /// The package's folder, where its tests expect to run.
    dir: PathBuf,
}

/// Builds every test of the workspace.
pub(super) fn build() -> Result<Vec<Program>> {
    build_these(&[])
}

impl Program {
    /// Whether these are the tests of one file below `tests`.
    pub(super) fn is_test(&self, package: &str, name: &str) -> bool {
        self.package == package && self.kind == "test" && self.name == name
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Builds what these flags of cargo's choose, with the workspace's features.
pub(super) fn build_these(targets: &[&str]) -> Result<Vec<Program>> {
    let mut build = cargo("test");
    build.args(["--workspace", "--locked", "--no-run"]);
    build.args(targets);
    eprintln!("$ {}", typed(&build));
    build
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped());
    let mut child = build.spawn().context("start cargo test")?;
    let mut programs = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let message = line.context("read cargo's messages")?;
            programs.extend(
                serde_json::from_str(&message)
                    .ok()
                    .as_ref()
                    .and_then(program),
            );
        }
    }
    let status = child.wait().context("wait for cargo test")?;
    if !status.success() {
        bail!("the tests did not build ({status})");
    }
    Ok(programs)
}

/// Builds the examples in the documentation, which are in no test program and unknown to nextest,
/// and runs those that may run.
pub(super) fn run_examples(filter: Option<&str>) -> Result<Counts> {
    let mut test = cargo("test");
    test.args(["--doc", "--workspace", "--locked", "--no-fail-fast"])
        .args(filter);
    eprintln!("$ {}", typed(&test));
    counted(&mut test, Path::new("cargo test --doc"))
}

/// Runs the tests of a stage whose names contain the filter.
pub(super) fn run_stage(
    programs: &[Program],
    stage: &Stage,
    filter: Option<&str>,
    soak: bool,
) -> Result<Counts> {
    let mut total = Counts::default();
    let selected = programs
        .iter()
        .filter(|p| (stage.selects)(&p.package, &p.kind, &p.name));
    for program in selected {
        total.add(run_program(program, stage, filter, soak)?);
    }
    Ok(total)
}

fn run_program(
    program: &Program,
    stage: &Stage,
    filter: Option<&str>,
    soak: bool,
) -> Result<Counts> {
    eprintln!(
        "\n     Running {} {} ({})",
        program.package, program.kind, program.name
    );
    let limit = if soak { SOAK_LIMIT_SECS } else { LIMIT_SECS };
    let mut test = command("timeout");
    test.args(["--kill-after=10", &limit.to_string()])
        .arg(&program.path)
        .args(filter);
    if stage.needs_privileges {
        test.arg("--test-threads=1");
    }
    test.current_dir(&program.dir)
        .env("CARGO_MANIFEST_DIR", &program.dir);
    with_agent(&mut test, soak);
    counted(&mut test, &program.path)
}

fn counted(test: &mut Command, path: &Path) -> Result<Counts> {
    test.stdout(Stdio::piped());
    let mut child = test
        .spawn()
        .with_context(|| format!("start {}", path.display()))?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("read what the tests print")?;
            eprintln!("{line}");
            if let Some(part) = summary(&line) {
                counts.add(part);
            }
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("wait for {}", path.display()))?;
    if !status.success() {
        // A program that died or ran into its limit has no summary, and is a failure all the same.
        counts.failed = counts.failed.max(1);
    }
    Ok(counts)
}

/// The test program that a message of cargo's tells of.
fn program(message: &Value) -> Option<Program> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let test = message.get("profile")?.get("test")?.as_bool()?;
    let path = PathBuf::from(message.get("executable")?.as_str()?);
    let target = message.get("target")?;
    let dir = PathBuf::from(message.get("manifest_path")?.as_str()?)
        .parent()?
        .to_path_buf();
    // Packages of this workspace lie in folders of their names.
    let package = dir.file_name()?.to_string_lossy().into_owned();
    let kind = text(target.get("kind")?.get(0)?)?;
    let name = text(target.get("name")?)?;
    test.then_some(Program {
        package,
        kind,
        name,
        path,
        dir,
    })
}

/// Counts from a line like `test result: FAILED. 3 passed; 1 failed; 0 ignored; ...`.
fn summary(line: &str) -> Option<Counts> {
    let (_, parts) = line.strip_prefix("test result:")?.split_once('.')?;
    let count = |word: &str| {
        parts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
    };
    Some(Counts {
        passed: count("passed")?,
        failed: count("failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_a_test_program_is_counted() {
        let line = "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(
            summary(line),
            Some(Counts {
                passed: 3,
                failed: 1
            })
        );
        assert_eq!(summary("test a::b ... ok"), None);
    }

    #[test]
    fn a_test_program_is_read_from_the_message_of_cargo() {
        let message = serde_json::json!({
            "manifest_path": "/w/lb-agent/Cargo.toml",
            "target": {"kind": ["test"], "name": "verifier"},
            "profile": {"test": true},
            "executable": "/t/verifier-1",
        });
        let expected = Program {
            package: "lb-agent".to_owned(),
            kind: "test".to_owned(),
            name: "verifier".to_owned(),
            path: "/t/verifier-1".into(),
            dir: "/w/lb-agent".into(),
        };
        assert_eq!(program(&message), Some(expected));
    }

    #[test]
    fn a_program_that_is_no_test_is_left_out() {
        let message = serde_json::json!({
            "manifest_path": "/w/lb-agent/Cargo.toml",
            "target": {"kind": ["bin"], "name": "lb-agent"},
            "profile": {"test": false},
            "executable": "/t/lb-agent",
        });
        assert_eq!(program(&message), None);
    }
}
