// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask verifier`: instructions and stack of every BPF program, as the kernel counts them.
//!
//! **Invariant:** the measuring lives in lb-agent/tests/verifier.rs, which is also the gate; this
//! verb only lets it speak.
//! Read next: lb-ebpf/verifier-budget.txt.

use anyhow::Result;

use crate::doctor::{self, Scope};
use crate::process::{cargo, run};

/// Loads every program and prints its instruction count and its stack per call chain (needs `CAP_BPF`).
#[derive(clap::Args)]
pub(crate) struct Verifier {}

impl Verifier {
    #[expect(clippy::unused_self, reason = "every verb is run the same way")]
    pub(crate) fn run(&self) -> Result<()> {
        gate(false)
    }
}

/// Runs the gate with its output shown; `bless` writes the budget instead of comparing with it.
pub(crate) fn gate(bless: bool) -> Result<()> {
    doctor::require_privileges("the verifier gate loads every program into the kernel")?;
    doctor::prepare(Scope::Test)?;
    let mut test = cargo("test");
    test.args([
        "--locked",
        "--quiet",
        "--package",
        "lb-agent",
        "--test",
        "verifier",
    ]);
    test.args(["--", "--nocapture", "--test-threads=1"])
        .env("LB_REQUIRE_BPF", "1");
    if bless {
        test.env("LB_BLESS", "1");
    }
    run(&mut test)
}
