// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent doctor`: what this node offers, and what an agent has put in place.
//!
//! **Invariant:** it works beside a running agent and without one, and changes nothing.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::Style;

use super::output::{self, Output};
use crate::config;
use crate::datapath::{Finding, Found, Health, features, probe};
use crate::error_chain;

/// The flags of `doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Where the agent pins maps and programs.
    #[arg(long, value_name = "DIR", default_value = config::BPFFS_DEFAULT)]
    bpffs: PathBuf,
    /// The cgroup v2 folder that the agent was given [default: the root of the hierarchy].
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// How to write what was found.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn doctor(args: &DoctorArgs) -> Result<(), String> {
    let cgroup = config::cgroup(args.cgroup.as_deref()).map_err(|e| error_chain(&e))?;
    let found = Report {
        findings: probe(&args.bpffs, cgroup.as_deref()),
        features: features(),
    };
    let text = match args.output {
        Output::Text => format!("{}\n{}", table(&found.findings), of_kernel(&found.features)),
        Output::Json => output::json(&found)?,
    };
    output::print("what was found", &text)?;
    let findings = &found.findings;
    let lacking = findings.iter().filter(|f| f.health == Health::Lacking);
    match lacking.count() {
        0 => Ok(()),
        lacking => Err(format!(
            "{lacking} of {} things are lacking",
            findings.len()
        )),
    }
}

/// What `-o json` writes.
#[derive(Debug, Serialize)]
struct Report {
    /// What is fine and what is not.
    findings: Vec<Finding>,
    /// What this kernel has of what not every kernel has.
    features: Vec<Found>,
}

/// The features that this kernel has with their use, the others with what is done instead.
fn of_kernel(features: &[Found]) -> String {
    let mut rows = Builder::default();
    rows.push_record(["kernel", "since", "feature", "used for, or lost without it"]);
    for found in features {
        let (mark, words) = if found.here {
            ("has", found.used)
        } else {
            ("lacks", found.without)
        };
        rows.push_record([mark, found.since, found.feature, words]);
    }
    lines(rows)
}

fn table(found: &[Finding]) -> String {
    let mut rows = Builder::default();
    rows.push_record(["", "what", "found"]);
    for finding in found {
        let mark = match finding.health {
            Health::Fine => "ok",
            Health::Less => "less",
            Health::Lacking => "LACKING",
        };
        rows.push_record([mark, finding.what, &finding.detail]);
    }
    lines(rows)
}

/// A table without blanks at the ends of its lines.
fn lines(rows: Builder) -> String {
    let mut table = rows.build();
    table.with(Style::blank());
    let lines = table.to_string();
    let lines = lines.lines().map(str::trim_end);
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_is_missing_is_shown_with_what_is_lost() {
        let found = |here| Found {
            feature: "TCX",
            since: "6.6",
            here,
            used: "links",
            without: "filters",
        };
        let text = of_kernel(&[found(true), found(false)]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1], ["has", "6.6", "TCX", "links"]);
        assert_eq!(lines[2], ["lacks", "6.6", "TCX", "filters"]);
    }
}
