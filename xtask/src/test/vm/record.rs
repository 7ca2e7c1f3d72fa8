// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes down what a run has found: which kernel has which feature, what passed in which time, and what
//! the verifier needed.
//!
//! **Invariant:** only between marks that are there already; nothing of a run in which something failed,
//! and what is not written is named.
//! Read next: summary.rs, which shows the same.

use std::collections::{BTreeMap, BTreeSet};
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

/// What a run in which nothing failed has found.
pub(super) struct Blessing<'a> {
    pub(super) ran: &'a [Ran],
    /// The table that was shown.
    pub(super) results: &'a [Vec<String>],
    /// Whether every kernel ran that there is.
    pub(super) all_kernels: bool,
    /// Whether a word selected the tests.
    pub(super) only: bool,
    pub(super) reason: Option<&'a str>,
}

impl Blessing<'_> {
    /// Writes down what can be; says what was written, and what was not and why.
    pub(super) fn take(&self) -> Result<Vec<String>> {
        let Numbers { rows, mut said } = numbers(self.ran)?;
        if rows.is_empty() {
            said.push(
                "not written: the verifier's numbers, because its gate did not run".to_owned(),
            );
        } else {
            let kernels = verifier::record(&rows.join("\n"), self.reason)?;
            let kernels = kernels.join(", ");
            said.push(format!(
                "written: the verifier's numbers on Linux {kernels}"
            ));
        }
        let table = [("README.md", "features"), ("xtask/README.md", "results")];
        for (file, what) in table {
            // What was left out must not go from the tables; each machine tells all features.
            let why = match what {
                _ if !self.all_kernels => "because not all kernels ran",
                "results" if self.only => "because --only left tests out",
                "results" => {
                    between(file, RESULTS_MARK, &markdown(self.results))?;
                    ""
                }
                _ => {
                    between(file, FEATURES_MARK, &markdown(&features(self.ran)?))?;
                    ""
                }
            };
            said.push(match why {
                "" => format!("written: the table of {what} in {file}"),
                why => format!("not written: the table of {what} in {file}, {why}"),
            });
        }
        Ok(said)
    }
}

/// What the verifier gates have printed, as they did; and what of it was left out.
struct Numbers {
    rows: Vec<String>,
    said: Vec<String>,
}

/// The rows of all kernels; an error where one names fewer programs than another.
fn numbers(ran: &[Ran]) -> Result<Numbers> {
    let mut numbers = Numbers {
        rows: Vec::new(),
        said: Vec::new(),
    };
    let mut taken: BTreeMap<&str, Which> = BTreeMap::new();
    let mut programs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for kernel in ran {
        let (of, name) = (kernel.which, kernel.which.name());
        let here = programs.entry(name).or_default();
        let mut left_out = BTreeSet::new();
        let rows = kernel.machines.iter().flat_map(|of| &of.report.budget);
        for row in rows {
            let (version, rest) = row.split_once(' ').unwrap_or_default();
            here.extend(rest.split(' ').next());
            if *taken.entry(version).or_insert(of) == of {
                numbers.rows.push(format!("BUDGET {row}"));
            } else {
                left_out.insert(version);
            }
        }
        numbers.said.extend(left_out.iter().map(|version| {
            format!("not written: the verifier's numbers of `{name}`: another kernel here is {version}, too")
        }));
    }
    let all: BTreeSet<&str> = programs.values().flatten().copied().collect();
    for (name, here) in &programs {
        let missing: Vec<&str> = all.difference(here).copied().collect();
        if !missing.is_empty() {
            bail!(
                "nothing was blessed: the verifier gate on `{name}` said nothing of {}; look at its log, \
                 and run `cargo xtask test vm {name} --only verifier`",
                missing.join(", ")
            );
        }
    }
    Ok(numbers)
}

/// What a kernel has or has not.
struct Feature {
    name: String,
    since: String,
    without: String,
    here: bool,
}

/// What the doctor told on a kernel.
fn told(kernel: &Ran) -> Result<Vec<Feature>> {
    let mut told = kernel.machines.iter().map(|machine| &machine.report.doctor);
    let name = kernel.which.name();
    let told = told
        .find_map(Option::as_deref)
        .with_context(|| format!("the agent's doctor said nothing on `{name}`"))?;
    let doctor: Value = serde_json::from_str(told)
        .with_context(|| format!("read what the agent's doctor said on `{name}`"))?;
    let found = doctor["features"].as_array();
    let found = found.with_context(|| format!("the doctor told of no features on `{name}`"))?;
    let feature = |feature: &Value| {
        let text = |field: &str| feature[field].as_str().unwrap_or("?").to_owned();
        Feature {
            name: text("feature"),
            since: text("since"),
            without: text("without"),
            here: feature["here"].as_bool().unwrap_or(false),
        }
    };
    Ok(found.iter().map(feature).collect())
}

/// A line for each feature, a column for each kernel.
pub(super) fn features(ran: &[Ran]) -> Result<Vec<Vec<String>>> {
    let all: Vec<(&Ran, Vec<Feature>)> = ran
        .iter()
        .map(|kernel| Ok((kernel, told(kernel)?)))
        .collect::<Result<_>>()?;
    let mut heads = vec!["feature, since".to_owned()];
    heads.extend(ran.iter().map(Ran::series));
    heads.push("without it".to_owned());
    let mut rows = vec![heads];
    let Some((one, expected)) = all.first() else {
        return Ok(rows);
    };
    for (other, features) in &all {
        let names = |of: &[Feature]| -> BTreeSet<String> {
            of.iter().map(|feature| feature.name.clone()).collect()
        };
        let (here, there) = (names(features), names(expected));
        if let Some(name) = here.symmetric_difference(&there).next() {
            bail!(
                "the doctor tells of the feature `{name}` on one of `{}` and `{}` only",
                one.which.name(),
                other.which.name()
            );
        }
    }
    for feature in expected {
        let mut row = vec![format!("{}, {}", feature.name, feature.since)];
        for (_, features) in &all {
            let here = features
                .iter()
                .any(|other| other.name == feature.name && other.here);
            row.push(if here { "yes" } else { "no" }.to_owned());
        }
        row.push(feature.without.clone());
        rows.push(row);
    }
    Ok(rows)
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
    use super::super::kernel::Release;
    use super::super::machines::Machine;
    use super::super::report::Report;
    use super::*;

    fn machine(which: Which, lines: &[String]) -> Ran {
        let mut report = Report::default();
        for line in lines {
            report.read(line);
        }
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

    fn ran(which: Which, version: &str, features: &[(&str, bool)]) -> Ran {
        let features: Vec<String> = features
            .iter()
            .map(|(name, here)| {
                format!(
                    r#"{{"feature": "{name}", "since": "6.6", "here": {here}, "without": "less"}}"#
                )
            })
            .collect();
        let features = features.join(", ");
        let lines = [
            format!("VM-UP 1.0 {version}"),
            format!(r#"VM-DOCTOR {{"findings": [], "features": [{features}]}}"#),
        ];
        machine(which, &lines)
    }

    #[test]
    fn features_have_a_column_for_each_kernel_and_are_told_apart_by_name() {
        let old = Which::Debian(Release::V5_10);
        let of_old = [("TCX", false), ("LRU", true)];
        let of_new = [("LRU", true), ("TCX", true)];
        let old = ran(old, "5.10.0-46-cloud-amd64", &of_old);
        let machines = [old, ran(Which::Own, "6.18.44", &of_new)];
        let rows = features(&machines).unwrap();
        assert_eq!(rows[0], ["feature, since", "5.10", "6.18", "without it"]);
        assert_eq!(rows[1], ["TCX, 6.6", "no", "yes", "less"]);
        assert_eq!(rows[2], ["LRU, 6.6", "yes", "yes", "less"]);
        let silent = Ran {
            which: Which::Own,
            machines: Vec::new(),
        };
        assert!(features(&[silent]).is_err());
    }

    #[test]
    fn kernels_that_tell_of_other_features_are_an_error() {
        let machines = [
            ran(Which::Debian(Release::V6_1), "6.1", &[("TCX", false)]),
            ran(Which::Own, "6.18", &[("TCX", true), ("LRU", true)]),
        ];
        let error = features(&machines).unwrap_err().to_string();
        assert!(error.contains("`LRU`"), "{error}");
    }

    fn gate(which: Which, rows: &[&str]) -> Ran {
        let lines: Vec<String> = rows.iter().map(|row| format!("BUDGET {row}")).collect();
        machine(which, &lines)
    }

    #[test]
    fn numbers_of_each_kernel_are_taken_once() {
        let machines = [
            gate(
                Which::Debian(Release::V6_1),
                &["6.1 a 1 2 3", "6.1 b 1 2 3"],
            ),
            gate(
                Which::Debian(Release::V6_12),
                &["6.12 a 4 5 6", "6.12 b 4 5 6"],
            ),
            gate(Which::Own, &["6.1 a 7 8 9", "6.1 b 7 8 9"]),
        ];
        let Numbers { rows, said } = numbers(&machines).unwrap();
        let expected = ["6.1 a 1 2 3", "6.1 b 1 2 3", "6.12 a 4 5 6", "6.12 b 4 5 6"];
        assert_eq!(rows, expected.map(|row| format!("BUDGET {row}")));
        assert!(said.len() == 1 && said[0].contains("`own`"), "{said:?}");
        // The running kernel alone is one like the others.
        let own = numbers(&machines[2..]).unwrap();
        assert!(own.rows.len() == 2 && own.said.is_empty());
    }

    #[test]
    fn a_kernel_with_fewer_programs_than_another_is_refused() {
        let whole = || {
            gate(
                Which::Debian(Release::V6_1),
                &["6.1 a 1 2 3", "6.1 b 1 2 3"],
            )
        };
        for rows in [&["6.12 a 4 5 6"][..], &[]] {
            let machines = [whole(), gate(Which::Debian(Release::V6_12), rows)];
            let error = numbers(&machines).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("`6.12`") && error.contains('b'), "{error}");
        }
        assert!(numbers(&[]).unwrap().rows.is_empty());
    }

    #[test]
    fn what_is_not_written_is_named_with_the_reason() {
        let blessing = Blessing {
            ran: &[],
            results: &[],
            all_kernels: false,
            only: true,
            reason: None,
        };
        let said = blessing.take().unwrap();
        assert_eq!(said.len(), 3);
        assert!(
            said.iter()
                .all(|sentence| sentence.starts_with("not written"))
        );
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
