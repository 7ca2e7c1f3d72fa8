// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask tidy`: the rules of the house that no compiler checks.
//!
//! Which room may name what (rooms.rs), how text is written (text.rs), what manifests may say
//! (manifest.rs). **Invariant:** pure functions over text; only this file reads the disk, and every
//! violation is one line `path:line: sentence`.
//! Read next: source.rs, which tells code from comments and tests.

mod manifest;
mod rooms;
mod source;
mod text;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use self::source::Source;
use crate::process::{command, root};

/// Checks the rules of the house: which room may name what, file lengths, headers, words.
#[derive(clap::Args)]
pub(crate) struct Tidy {}

impl Tidy {
    #[expect(clippy::unused_self, reason = "every verb is run the same way")]
    pub(crate) fn run(&self) -> Result<()> {
        check()
    }
}

/// A rule broken at a place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    /// Counts from 1.
    line: usize,
    sentence: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.sentence)
    }
}

/// Checks every file that git knows or would add.
pub(crate) fn check() -> Result<()> {
    let mut violations = Vec::new();
    let files = files()?;
    for path in &files {
        let Ok(content) = fs::read(root().join(path)) else {
            continue;
        };
        // What is no text has no rules.
        let Ok(content) = String::from_utf8(content) else {
            continue;
        };
        violations.extend(check_file(path, &content));
    }
    violations.sort();
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("{} rules of the house are broken", violations.len());
    }
    eprintln!("tidy: {} files are in order", files.len());
    Ok(())
}

fn check_file(path: &str, content: &str) -> Vec<Violation> {
    let mut violations = text::check(path, content);
    let extension = Path::new(path)
        .extension()
        .and_then(|extension| extension.to_str());
    if extension == Some("rs") {
        let source = Source::read(path, content);
        violations.extend(text::check_source(&source));
        violations.extend(rooms::check(&source));
    }
    if path.ends_with("Cargo.toml") {
        violations.extend(manifest::check(path, content));
    }
    violations
}

fn files() -> Result<Vec<String>> {
    let mut git = command("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = git.output().context("list the files with git")?;
    if !listed.status.success() {
        bail!(
            "git does not list the files: {}",
            String::from_utf8_lossy(&listed.stderr).trim()
        );
    }
    let text = String::from_utf8_lossy(&listed.stdout);
    let mut files: Vec<String> = text.lines().map(str::to_owned).collect();
    files.sort();
    files.dedup();
    Ok(files)
}
