// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask fmt`: rustfmt over every crate.
//!
//! **Invariant:** `--check` changes nothing.
//! Read next: lint.rs, which calls this with `--check`.

use anyhow::Result;

use crate::process::{cargo, run};

/// Formats every crate with rustfmt.
#[derive(clap::Args)]
pub(crate) struct Fmt {
    /// Change nothing, fail where something would change
    #[arg(long)]
    pub(crate) check: bool,
}

impl Fmt {
    pub(crate) fn run(&self) -> Result<()> {
        let mut command = cargo("fmt");
        command.arg("--all");
        if self.check {
            command.args(["--", "--check"]);
        }
        run(&mut command)
    }
}
