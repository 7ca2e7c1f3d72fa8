// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the bench found: as JSON for programs, as a table for people.
//!
//! **Invariant:** the table shows nothing that the JSON lacks; a target that is missed is marked, and
//! a case that these programs do not have is named.
//! Read next: targets.rs.

use std::fs;
use std::thread;

use serde::Serialize;

use super::clock::Took;
use super::round::Found;
use super::targets::{self, Target};

/// Everything that was found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    machine: Machine,
    /// What the empty program takes: the least of all rounds.
    floor_ns: f64,
    pub(crate) cases: Vec<Line>,
    /// Cases that the programs leave alone, so that there is nothing to measure.
    pub(crate) absent: Vec<String>,
    pub(crate) micro: Vec<Micro>,
    targets: Vec<Target>,
}

/// Where it was measured.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    cpus: usize,
    model: String,
    kernel: String,
    /// What else the machine had to do: the load of the last minute, before and after.
    load_before: String,
    load_after: String,
    /// Whether the bench had real-time priority.
    pub(crate) real_time: bool,
}

/// What one case costs for each packet.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    pub(crate) name: String,
    /// The best round.
    min_ns: f64,
    /// The median of the rounds' medians.
    median_ns: f64,
    /// The best round's, to the empty program of that round.
    pub(crate) ratio_to_floor: f64,
    /// Whether the program dropped the packets.
    dropped: bool,
    /// The best of each round, for comparing cases of the same round.
    #[serde(skip)]
    pub(crate) rounds: Vec<f64>,
    #[serde(skip)]
    floor: f64,
}

/// What one operation on a map costs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Micro {
    pub(crate) name: String,
    pub(crate) entries: u32,
    pub(crate) min_ns: f64,
    pub(crate) median_ns: f64,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let processors = read("/proc/cpuinfo");
        let model = processors
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpus: thread::available_parallelism().map_or(1, Into::into),
            model: model.map(|(_, name)| name.to_owned()).unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: load(),
            load_after: String::new(),
            real_time: false,
        }
    }

    pub(crate) fn look_again(&mut self) {
        self.load_after = load();
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn load() -> String {
    let load = read("/proc/loadavg");
    load.split(' ').next().unwrap_or_default().to_owned()
}

impl Line {
    pub(crate) fn new(name: String, found: &[Found]) -> Self {
        let ratio = |found: &Found| found.min / found.floor;
        let best = found.iter().map(ratio).min_by(f64::total_cmp);
        let least = |value: fn(&Found) -> f64| Took::of(found.iter().map(value).collect()).min;
        Self {
            name,
            min_ns: rounded(least(|found| found.min)),
            median_ns: rounded(Took::of(found.iter().map(|found| found.median).collect()).median),
            ratio_to_floor: rounded(best.unwrap_or(f64::NAN)),
            dropped: found.iter().any(|found| found.dropped),
            rounds: found.iter().map(|found| found.min).collect(),
            floor: least(|found| found.floor),
        }
    }
}

impl Report {
    /// Judges what was found.
    pub(crate) fn finish(&mut self, machine: Machine) {
        self.machine = machine;
        let floors = self.cases.iter().map(|case| case.floor);
        self.floor_ns = rounded(floors.min_by(f64::total_cmp).unwrap_or(f64::NAN));
        self.targets = targets::judge(&self.cases);
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The same for people.
    pub(crate) fn table(&self) -> String {
        let Machine {
            model,
            kernel,
            load_before,
            load_after,
            real_time,
            ..
        } = &self.machine;
        let priority = if *real_time { "real-time" } else { "ordinary" };
        let head = format!(
            "{model}, Linux {kernel}, load {load_before} to {load_after}, {priority} priority\n\
             the empty program: {} ns\n",
            self.floor_ns
        );
        let mut parts = vec![head];
        if !self.cases.is_empty() {
            parts.push(aligned(&self.case_rows()));
        }
        if !self.micro.is_empty() {
            parts.push(aligned(&self.micro_rows()));
        }
        if !self.absent.is_empty() {
            parts.push(format!(
                "not in these programs: {}\n",
                self.absent.join("; ")
            ));
        }
        if !self.targets.is_empty() {
            parts.push(aligned(&self.target_rows()));
        }
        parts.join("\n")
    }

    fn case_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![cells(["packet", "ns", "median", "to the floor", ""])];
        rows.extend(self.cases.iter().map(|case| {
            cells([
                &case.name,
                &format!("{:.0}", case.min_ns),
                &format!("{:.0}", case.median_ns),
                &format!("{:.1}", case.ratio_to_floor),
                if case.dropped { "dropped" } else { "" },
            ])
        }));
        rows
    }

    fn micro_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![cells(["operation", "entries", "ns", "median"])];
        rows.extend(self.micro.iter().map(|micro| {
            cells([
                &micro.name,
                &micro.entries.to_string(),
                &format!("{:.0}", micro.min_ns),
                &format!("{:.0}", micro.median_ns),
            ])
        }));
        rows
    }

    fn target_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![cells(["target", "wanted", "measured", ""])];
        rows.extend(self.targets.iter().map(|target| {
            cells([
                &target.name,
                &target.wanted,
                &target.measured.to_string(),
                if target.met { "✓" } else { "✗ MISSED" },
            ])
        }));
        rows
    }
}

fn cells<const N: usize>(row: [&str; N]) -> Vec<String> {
    row.map(str::to_owned).to_vec()
}

/// Columns as wide as their widest cell.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            let pad = width(column) + 2 - cell.chars().count();
            line.extend(std::iter::repeat_n(' ', pad));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// As many digits as the measurement is good for.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
