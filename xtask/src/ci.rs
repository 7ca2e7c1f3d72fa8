// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask ci`: what a change must pass, before it is pushed.
//!
//! **Invariant:** only other verbs; nothing is checked here that cannot be run alone.
//! Read next: .github/workflows/ci.yml, which runs the same verbs as jobs.

use anyhow::Result;
use clap::ValueEnum;

use crate::{lint, test};

/// Runs what CI runs: lint, then tests.
#[derive(clap::Args)]
pub(crate) struct Ci {
    /// How much of it
    #[arg(value_enum, default_value_t = Extent::Fast)]
    extent: Extent,
}

#[derive(Clone, Copy, ValueEnum)]
enum Extent {
    /// Lint, unit and golden tests: no privileges needed
    Fast,
    /// Lint and every level of tests
    Full,
}

impl Ci {
    pub(crate) fn run(&self) -> Result<()> {
        lint::Lint::default().run()?;
        match self.extent {
            Extent::Fast => test::without_privileges(),
            Extent::Full => test::all(),
        }
    }
}
