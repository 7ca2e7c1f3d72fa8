// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test fresh`: what a reader types, on a machine that has a Rust toolchain and nothing else.
//!
//! The machine is a minimal Debian root file system in namespaces of its own, with a clone of the
//! committed state; the commands come from the README's own code block.
//! **Invariant:** everything made is removed again, also after a failure, an interrupt, or (at the
//! next start) a kill; the only thing kept is the minimal file system, in the user's cache folder.
//! Read next: machine.rs, which makes it.

pub(crate) mod archive;
mod machine;

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use self::machine::Machine;
use crate::doctor::{self, Scope};
use crate::process::{command, first_line, interrupted, root, wait_through_interrupts};
use crate::table::{duration, render};

/// Types the README's commands on a bare machine: a minimal root file system with rustup's toolchain
/// and a clone of the committed state, nothing else.
#[derive(clap::Args)]
pub(crate) struct Fresh {
    /// Type only this one of the README's commands
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Type this instead of the README's commands
    #[arg(long, conflicts_with = "only")]
    command: Option<String>,
    /// Leave the machine's files, and print where they are
    #[arg(long)]
    keep: bool,
    /// Start with this user's downloaded crates instead of downloading them
    #[arg(long)]
    offline_crates: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    Demo,
    Test,
}

impl Fresh {
    pub(crate) fn run(&self) -> Result<()> {
        doctor::require_privileges("a bare machine is made of namespaces and mounts")?;
        doctor::prepare(Scope::Fresh)?;
        wait_through_interrupts()?;
        let typed = self.commands()?;
        say_what_is_tested();
        let machine = Machine::make(self.offline_crates)?;
        let mut rows = Vec::new();
        for line in typed {
            if interrupted() {
                bail!("interrupted");
            }
            eprintln!("\n===== bare machine$ {line}");
            let start = Instant::now();
            let status = machine.run(&line)?;
            rows.push((line, status, start.elapsed()));
        }
        if self.keep {
            eprintln!("kept: {}", machine.keep().display());
        }
        report(&rows)
    }

    fn commands(&self) -> Result<Vec<String>> {
        if let Some(command) = &self.command {
            return Ok(vec![command.clone()]);
        }
        let readme = std::fs::read_to_string(root().join("README.md")).context("read README.md")?;
        let mut commands = readme_commands(&readme);
        if commands.len() != 2 {
            bail!(
                "README.md must show exactly two cargo commands in its first block that has any: {}",
                commands.join("; ")
            );
        }
        let word = match self.only {
            None => "cargo",
            Some(Only::Demo) => "demo",
            Some(Only::Test) => "test",
        };
        commands.retain(|command| command.contains(word));
        Ok(commands)
    }
}

/// The cargo commands of the first code block that has any, as a reader types them.
fn readme_commands(readme: &str) -> Vec<String> {
    let blocks = readme.split("\n```").skip(1).step_by(2);
    let commands = |block: &str| -> Vec<String> {
        let lines = block
            .lines()
            .skip(1)
            .map(|line| line.trim().trim_start_matches("$ "));
        let cargo = lines.filter(|line| line.starts_with("cargo "));
        cargo
            .map(|line| line.split(" #").next().unwrap_or(line).trim().to_owned())
            .collect()
    };
    blocks
        .map(commands)
        .find(|commands| !commands.is_empty())
        .unwrap_or_default()
}

fn say_what_is_tested() {
    let head = first_line(command("git").args(["log", "-1", "--format=%h %s"]));
    eprintln!(
        "testing the committed state: {}",
        head.unwrap_or_else(|| "unknown".to_owned())
    );
    if first_line(command("git").args(["status", "--porcelain"])).is_some_and(|l| !l.is_empty()) {
        eprintln!("  (there are changes that are not committed; they are no part of it)");
    }
}

fn report(rows: &[(String, ExitStatus, Duration)]) -> Result<()> {
    let mut cells = vec![
        ["command on a bare machine", "time", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (line, status, time) in rows {
        let result = if status.success() {
            "ok".to_owned()
        } else {
            format!("FAILED ({status})")
        };
        cells.push(vec![line.clone(), duration(*time), result]);
    }
    println!("\n{}", render(&cells));
    if rows.iter().any(|(_, status, _)| !status.success()) {
        bail!("what the README says does not work on a bare machine");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_from_the_first_block_that_has_any() {
        let readme = "# x\n\n```text\npicture\n```\n\n```sh\ngit clone y\n$ cargo xtask demo   # shows it\n\
                      cargo xtask test\n```\n\n```sh\ncargo build\n```\n";
        assert_eq!(
            readme_commands(readme),
            ["cargo xtask demo", "cargo xtask test"]
        );
    }
}
