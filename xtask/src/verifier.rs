// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask verifier`: instructions, states and stack of every BPF program, as the kernel counts
//! them.
//!
//! **Invariant:** the measuring lives in lb-agent/tests/verifier.rs, which is also the gate; this
//! verb only lets it speak.
//! Read next: lb-ebpf/verifier-budget.txt.

use std::fs;

use anyhow::{Context as _, Result, anyhow};

use crate::budget::{Budget, printed_rows};
use crate::doctor::{self, Scope};
use crate::process::{cargo, root, run};

/// Loads every program and prints its instructions, its states and its stack per call chain (needs
/// `CAP_BPF`).
#[derive(clap::Args)]
pub(crate) struct Verifier {}

impl Verifier {
    #[expect(clippy::unused_self, reason = "every verb is run the same way")]
    pub(crate) fn run(&self) -> Result<()> {
        gate(false, None)
    }
}

/// Runs the gate with its output shown; `bless` writes the budget instead of comparing with it, for
/// which numbers that have grown take a reason.
pub(crate) fn gate(bless: bool, reason: Option<&str>) -> Result<()> {
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
        test.env_remove("LB_BLESS_REASON");
        test.envs(reason.map(|reason| ("LB_BLESS_REASON", reason)));
    }
    run(&mut test)
}

/// Takes the rows that gates on other kernels have printed, as a blessing on those would have done;
/// gives the kernels. Nothing is written unless all can be.
pub(crate) fn record(output: &str, reason: Option<&str>) -> Result<Vec<String>> {
    let path = root().join("lb-ebpf/verifier-budget.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (budget, kernels) = merge(&text, output, reason).map_err(|sentence| anyhow!(sentence))?;
    fs::write(&path, budget).with_context(|| format!("write {}", path.display()))?;
    Ok(kernels)
}

fn merge(text: &str, output: &str, reason: Option<&str>) -> Result<(String, Vec<String>), String> {
    let mut budget = Budget::parse(text)?;
    let printed = printed_rows(output)?;
    if printed.is_empty() {
        return Err("there is no line of the verifier gate (BUDGET kernel program ...)".to_owned());
    }
    for (kernel, rows) in &printed {
        budget.bless(kernel, rows, reason)?;
    }
    Ok((budget.to_string(), printed.into_keys().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "6.18 lb_clock 2 0 32\n";

    #[test]
    fn printed_rows_of_several_kernels_are_taken_and_others_kept() {
        let output = "[ 1.0] BUDGET 6.1 lb_clock 2 0 32\r\nBUDGET 5.10 lb_clock 3 1 32\n";
        let (text, kernels) = merge(TEXT, output, None).unwrap();
        assert_eq!(kernels, ["5.10", "6.1"]);
        let rows: Vec<Vec<_>> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[0], ["5.10", "lb_clock", "3", "1", "32"]);
        assert_eq!(rows[1], ["6.1", "lb_clock", "2", "0", "32"]);
        assert_eq!(rows[2], ["6.18", "lb_clock", "2", "0", "32"]);
    }

    #[test]
    fn growth_takes_a_reason_and_output_without_rows_is_an_error() {
        let output = "BUDGET 6.18 lb_clock 4 0 32";
        assert!(merge(TEXT, output, None).is_err());
        let (text, _) = merge(TEXT, output, Some("counts more")).unwrap();
        assert!(text.contains("# counts more\n"));
        assert!(merge(TEXT, "no test was run", None).is_err());
    }
}
