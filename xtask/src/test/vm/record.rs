// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes down what a run has found: which kernel has which feature, what passed in which time, and what
//! the verifier needed.
//!
//! **Invariant:** only between marks that are there already; a kernel that failed is in no record.
//! Read next: summary.rs, which shows the same.

use std::fs;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::machines::{Ran, Which};
use crate::process::root;
use crate::verifier;

/// Between lines that begin so, and `<!-- end -->`, nobody else writes.
const FEATURES_MARK: &str = "<!-- features of kernels";
const RESULTS_MARK: &str = "<!-- results on kernels";
const END: &str = "<!-- end -->";

/// A line for each feature, a column for each kernel.
pub(super) fn features(ran: &[Ran]) -> Result<Vec<Vec<String>>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut heads = vec!["feature, since".to_owned()];
    for kernel in ran {
        let mut told = kernel.machines.iter().map(|machine| &machine.report.doctor);
        let told = told.find_map(Option::as_deref).unwrap_or_default();
        let doctor: Value = serde_json::from_str(told)
            .with_context(|| format!("read what the doctor said on {}", kernel.which.name()))?;
        let found = doctor["features"].as_array();
        let found = found.context("the doctor told of no features")?;
        heads.push(kernel.series());
        for (index, feature) in found.iter().enumerate() {
            let text = |field: &str| feature[field].as_str().unwrap_or("?").to_owned();
            if rows.len() <= index {
                let name = format!("{}, {}", text("feature"), text("since"));
                rows.push(vec![name, text("without")]);
            }
            let place = rows[index].len() - 1;
            let here = feature["here"].as_bool().unwrap_or(false);
            rows[index].insert(place, if here { "yes" } else { "no" }.to_owned());
        }
    }
    heads.push("without it".to_owned());
    rows.insert(0, heads);
    Ok(rows)
}

/// Writes down which kernel has which feature.
pub(super) fn write_features(ran: &[Ran]) -> Result<()> {
    between("README.md", FEATURES_MARK, &markdown(&features(ran)?))
}

/// Writes down what passed, and how long it took.
pub(super) fn results(table: &[Vec<String>]) -> Result<()> {
    between("xtask/README.md", RESULTS_MARK, &markdown(table))
}

/// Takes the verifier's numbers on other kernels than the running one.
pub(super) fn budget(ran: &[Ran], reason: Option<&str>) -> Result<()> {
    let kernels = ran.iter().filter(|ran| ran.which != Which::Own);
    let machines = kernels.flat_map(|ran| &ran.machines);
    let rows = machines.flat_map(|machine| &machine.report.budget);
    let lines: Vec<String> = rows.map(|row| format!("BUDGET {row}")).collect();
    if !lines.is_empty() {
        verifier::record(&lines.join("\n"), reason)?;
    }
    Ok(())
}

/// Puts text into a file, between a mark and the end of what it marks.
fn between(file: &str, mark: &str, text: &str) -> Result<()> {
    let path = root().join(file);
    let old = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let Some(new) = replaced(&old, mark, text) else {
        bail!(
            "{} has no lines `{mark} ... -->` and `{END}`",
            path.display()
        );
    };
    fs::write(&path, new).with_context(|| format!("write {}", path.display()))
}

fn replaced(old: &str, mark: &str, text: &str) -> Option<String> {
    let start = old.find(mark)?;
    let start = start + old[start..].find('\n')? + 1;
    let end = start + old[start..].find(END)?;
    Some(format!("{}{text}{}", &old[..start], &old[end..]))
}

/// A table as Markdown has it.
fn markdown(rows: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
    let mut lines = rows.iter();
    let heads = lines.next().map(|row| {
        let rule = "|---".repeat(row.len());
        format!("{}{rule}|\n", line(row))
    });
    heads.into_iter().chain(lines.map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::machines::Machine;
    use super::super::report::Report;
    use super::*;

    fn ran(which: Which, version: &str, here: bool) -> Ran {
        let mut report = Report::default();
        report.read(&format!("VM-UP 1.0 {version}"));
        report.read(&format!(
            r#"VM-DOCTOR {{"findings": [], "features": [{{"feature": "TCX", "since": "6.6", "here": {here}, "without": "clsact"}}]}}"#
        ));
        let machine = Machine {
            which,
            suite: "vm",
            report,
            log: "/l".into(),
        };
        Ran {
            which,
            machines: vec![machine],
        }
    }

    #[test]
    fn features_have_a_column_for_each_kernel() {
        let machines = [
            ran(Which::Own, "5.10.0-46-cloud-amd64", false),
            ran(Which::Own, "6.18.44", true),
        ];
        let rows = features(&machines).unwrap();
        assert_eq!(rows[0], ["feature, since", "5.10", "6.18", "without it"]);
        assert_eq!(rows[1], ["TCX, 6.6", "no", "yes", "clsact"]);
        let silent = Ran {
            which: Which::Own,
            machines: Vec::new(),
        };
        assert!(features(&[silent]).is_err());
    }

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let old = "a\n<!-- features of kernels, by x -->\nold\n<!-- end -->\nb\n<!-- end -->\n";
        let new = "a\n<!-- features of kernels, by x -->\nnew\n<!-- end -->\nb\n<!-- end -->\n";
        assert_eq!(replaced(old, FEATURES_MARK, "new\n").as_deref(), Some(new));
        assert_eq!(replaced("a\nb\n", FEATURES_MARK, ""), None);
    }

    #[test]
    fn tables_are_markdown() {
        let rows = [
            vec!["a".to_owned(), "b".to_owned()],
            vec!["1".to_owned(), "2".to_owned()],
        ];
        assert_eq!(markdown(&rows), "| a | b |\n|---|---|\n| 1 | 2 |\n");
    }
}
