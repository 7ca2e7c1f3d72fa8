// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bless`: takes today's output as the expected one.
//!
//! **Invariant:** writes only files that are committed, so that the change is read before it is kept.
//! Read next: verifier.rs, lb-agent/tests/scenarios.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
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
    /// Why numbers of the verifier's budget may grow: one line, kept beside them
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Take the verifier's numbers from what its test has printed elsewhere, on any kernels
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
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
        let of_verifier = self.reason.is_some() || self.from.is_some();
        if of_verifier && !matches!(self.what, What::Verifier) {
            bail!("--reason and --from are for `cargo xtask bless verifier`");
        }
        match self.what {
            What::Golden => {
                doctor::prepare(Scope::Test)?;
                let mut test = cargo("test");
                test.args(["--locked", "--package", "lb-agent", "--test", "scenarios"]);
                run(test.env("UPDATE_EXPECT", "1").env("LB_BLESS", "1"))?;
            }
            What::Helm => helm::bless()?,
            What::Verifier => self.verifier()?,
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

    fn verifier(&self) -> Result<()> {
        let reason = self.reason.as_deref();
        let Some(file) = &self.from else {
            return verifier::gate(true, reason);
        };
        let output = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let kernels = verifier::record(&String::from_utf8_lossy(&output), reason)?;
        println!("blessed for {}", kernels.join(", "));
        Ok(())
    }
}
