// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask lint`: rustfmt, clippy for the host and for BPF, documentation, dependencies, tidy.
//!
//! **Invariant:** every check runs even when an earlier one failed, so that one run shows all there
//! is to mend; warnings are errors here, not in the sources.
//! Read next: tidy/mod.rs for the rules of the house, .deny.toml for those about dependencies.

use std::process::Command;

use anyhow::{Result, anyhow, bail};

use crate::doctor::{self, Scope};
use crate::process::{cargo, run, target_dir};
use crate::toolchain::Toolchain;
use crate::{fmt, tidy};

/// Checks everything that needs no test: format, clippy (host and BPF), documentation, dependencies,
/// and the rules of the house.
#[derive(clap::Args, Default)]
pub(crate) struct Lint {
    /// Also look for known vulnerabilities; downloads the advisory database
    #[arg(long)]
    advisories: bool,
}

impl Lint {
    pub(crate) fn run(&self) -> Result<()> {
        doctor::prepare(Scope::Lint)?;
        let mut checks: Vec<(&str, Result<()>)> = vec![
            ("fmt", fmt::Fmt { check: true }.run()),
            ("tidy", tidy::check()),
            ("clippy", run(&mut clippy(&["--all-targets"]))),
            ("clippy, next layouts", run(&mut clippy(&NEXT))),
            ("clippy for BPF", clippy_for_bpf("")),
            (
                "clippy for BPF, next layouts",
                clippy_for_bpf("layout-next"),
            ),
            ("doc", run(&mut doc())),
            ("deny", run(&mut deny(&["bans", "licenses", "sources"]))),
        ];
        if self.advisories {
            checks.push(("advisories", run(&mut deny(&["advisories"]))));
        }
        eprintln!();
        let mut failed = Vec::new();
        for (name, outcome) in checks {
            match outcome {
                Ok(()) => eprintln!("ok      {name}"),
                Err(error) => {
                    eprintln!("FAILED  {name}: {error:#}");
                    failed.push(name);
                }
            }
        }
        if !failed.is_empty() {
            bail!("lint failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// What only the build with the layouts of the next version has.
const NEXT: [&str; 3] = ["--lib", "--features", "lb-agent/layout-next"];

fn clippy(what: &[&str]) -> Command {
    let mut command = cargo("clippy");
    command
        .arg("--workspace")
        .args(what)
        .args(["--locked", "--", "-D", "warnings"]);
    command
}

/// The glue exists only for the BPF target, so only a clippy that has `core` for it sees it.
fn clippy_for_bpf(features: &str) -> Result<()> {
    let toolchain = Toolchain::find().map_err(|sentence| anyhow!(sentence))?;
    eprintln!("for BPF: {}", toolchain.describe());
    let mut command = toolchain.cargo("clippy");
    command
        .current_dir(crate::process::root())
        .args([
            "--package",
            "lb-ebpf",
            "--bins",
            "--profile",
            "bpf",
            "--locked",
            "--features",
            features,
        ])
        .arg("--target-dir")
        .arg(target_dir()?.join("clippy-bpf"))
        .args(["--", "-D", "warnings"]);
    run(&mut command)
}

fn doc() -> Command {
    let mut command = cargo("doc");
    command
        .args([
            "--workspace",
            "--no-deps",
            "--locked",
            "--document-private-items",
        ])
        .env(
            "RUSTDOCFLAGS",
            "-D warnings -A rustdoc::private_intra_doc_links",
        );
    command
}

fn deny(checks: &[&str]) -> Command {
    // It reads .deny.toml by itself.
    let mut command = cargo("deny");
    command.args(["--locked", "check"]).args(checks);
    command
}
