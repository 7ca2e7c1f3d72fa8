// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bless`: takes today's output as the expected one.
//!
//! **Invariant:** writes only files that are committed, so that the change is read before it is kept.
//! Read next: verifier.rs, lb-agent/tests/scenarios.

use anyhow::Result;
use clap::ValueEnum;

use crate::doctor::{self, Scope};
use crate::helm;
use crate::process::{cargo, run};
use crate::verifier;

/// Takes what the tests produce today as what they expect; read the diff before committing it.
#[derive(clap::Args)]
pub(crate) struct Bless {
    /// What to refresh
    #[arg(value_enum)]
    what: What,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// The tables that lb-agent/tests/scenarios expect
    Golden,
    /// The renderings in helm/lb-agent/tests/golden
    Helm,
    /// lb-ebpf/verifier-budget.txt
    Verifier,
    /// lb-agent/config.schema.json
    Config,
}

impl Bless {
    pub(crate) fn run(&self) -> Result<()> {
        match self.what {
            What::Golden => {
                doctor::prepare(Scope::Test)?;
                let mut test = cargo("test");
                test.args(["--locked", "--package", "lb-agent", "--test", "scenarios"]);
                run(test.env("UPDATE_EXPECT", "1").env("LB_BLESS", "1"))?;
            }
            What::Helm => helm::bless()?,
            What::Verifier => verifier::gate(true)?,
            What::Config => {
                doctor::prepare(Scope::Build)?;
                let mut test = cargo("test");
                test.args([
                    "--locked",
                    "--package",
                    "lb-agent",
                    "--lib",
                    "the_schema_in",
                ]);
                run(test.env("LB_BLESS", "1"))?;
            }
        }
        run(crate::process::command("git").args(["diff", "--stat"]))
    }
}
