// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the bench found: as JSON for programs, as a table for people.
//!
//! A program's cost is what a call takes with it, less what it takes without any; the ratio is to the
//! cost of the empty program. Differences of neighbours in time, of which the median counts, because
//! the whole moves by more than the program costs.
//! **Invariant:** the table shows nothing that the JSON lacks.

use serde::Serialize;

use crate::calls::{Dialled, Measured};

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
    /// A call without any program: the median of the rounds.
    bare_ns: f64,
    /// What the empty program adds.
    empty_ns: f64,
    /// What ours adds, in the best quarter of the rounds.
    min_ns: f64,
    /// The median of the rounds.
    median_ns: f64,
    /// Medians by one another.
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
                case.name, case.bare_ns, case.empty_ns, case.median_ns, case.ratio_to_floor
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
        let bare = sorted(of.rounds.iter().map(|[bare, _, _]| *bare));
        let empty = sorted(of.rounds.iter().map(|[bare, empty, _]| empty - bare));
        let ours = sorted(of.rounds.iter().map(|[bare, _, ours]| ours - bare));
        let (empty_ns, median_ns) = (at(&empty, 2), at(&ours, 2));
        Self {
            name: of.case.name(),
            bare_ns: rounded(at(&bare, 2)),
            empty_ns: rounded(empty_ns),
            min_ns: rounded(at(&ours, 4)),
            median_ns: rounded(median_ns),
            ratio_to_floor: (median_ns / empty_ns * 100.0).round() / 100.0,
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
