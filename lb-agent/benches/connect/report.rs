// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the bench found: as JSON for programs, as a table for people.
//!
//! A program's cost is what a call takes with it in a fast round, less what it takes without any; the
//! ratio is to the cost of the empty program.
//! **Invariant:** the table shows nothing that the JSON lacks.

use serde::Serialize;

use crate::calls::{Dialled, Measured};

/// One in so many rounds is faster than a fast one.
const FAST: usize = 20;
/// Services that the targets are meant for.
const JUDGED: u32 = 10_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    services: u32,
    /// What the empty program costs: the least of all cases.
    floor_ns: f64,
    cases: Vec<Line>,
    targets: Vec<Target>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    name: String,
    /// A call without any program, in a fast round.
    bare_ns: f64,
    /// What the empty program adds.
    empty_ns: f64,
    /// What ours adds.
    min_ns: f64,
    /// What ours adds in the median of the rounds.
    median_ns: f64,
    /// What ours adds by what the empty one adds.
    ratio_to_floor: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    name: String,
    wanted: f64,
    measured: f64,
    met: bool,
}

impl Report {
    pub(crate) fn new(measured: &[Measured], services: u32) -> Self {
        let cases: Vec<Line> = measured.iter().map(Line::new).collect();
        let floors = cases.iter().map(|case| case.empty_ns);
        let judged = |of: &&(&Measured, &Line)| services >= JUDGED && !of.0.case.once;
        let pairs: Vec<_> = measured.iter().zip(&cases).collect();
        let targets = pairs.iter().filter(judged).map(|(of, line)| {
            let wanted = if of.case.dialled == Dialled::Service {
                1.6
            } else {
                1.2
            };
            Target {
                name: line.name.clone(),
                wanted,
                measured: line.ratio_to_floor,
                met: line.ratio_to_floor <= wanted,
            }
        });
        Self {
            services,
            floor_ns: floors.min_by(f64::total_cmp).unwrap_or(f64::NAN),
            targets: targets.collect(),
            cases,
        }
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            format!("{} Services; nanoseconds a call\n", self.services),
            format!(
                "{:<40} {:>7} {:>7} {:>7} {:>9}",
                "", "bare", "empty", "ours", "to empty"
            ),
        ];
        lines.extend(self.cases.iter().map(|case| {
            format!(
                "{:<40} {:>7.0} {:>+7.0} {:>+7.0} {:>8.2}x",
                case.name, case.bare_ns, case.empty_ns, case.min_ns, case.ratio_to_floor
            )
        }));
        lines.push(String::new());
        lines.extend(self.targets.iter().map(|target| {
            let mark = if target.met { "✓" } else { "✗ MISSED" };
            format!(
                "{:<40} wanted {:.1}, measured {:.2} {mark}",
                target.name, target.wanted, target.measured
            )
        }));
        lines.join("\n") + "\n"
    }
}

impl Line {
    fn new(of: &Measured) -> Self {
        let [bare, empty, ours] = [0, 1, 2].map(|way| {
            let took = of.rounds.iter().filter_map(|round| round.get(way));
            sorted(took.copied())
        });
        // What disturbs a call only makes it slower, so the fast ones count; not the very fastest,
        // which may have been lucky.
        let added = |with: &[f64], part| at(with, part) - at(&bare, part);
        let (empty_ns, min_ns) = (added(&empty, FAST), added(&ours, FAST));
        Self {
            name: of.case.name(),
            bare_ns: rounded(at(&bare, FAST)),
            empty_ns: rounded(empty_ns),
            min_ns: rounded(min_ns),
            median_ns: rounded(added(&ours, 2)),
            ratio_to_floor: (min_ns / empty_ns * 100.0).round() / 100.0,
        }
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The value that one in `part` is below.
fn at(sorted: &[f64], part: usize) -> f64 {
    sorted.get(sorted.len() / part).copied().unwrap_or(f64::NAN)
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
