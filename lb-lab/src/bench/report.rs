// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the bench found: as JSON for programs, as a table for people.
//!
//! **Invariant:** the table shows nothing that the JSON lacks; a target that is missed is marked.
//! Read next: `targets`.

use std::fmt::Write as _;
use std::fs;
use std::thread;

use serde::Serialize;

use super::Options;
use super::numbers::Spread;
use super::targets::{self, Target};
use crate::error::LabError;

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    pub(super) machine: Machine,
    pub(super) runs: u32,
    pub(super) clusters: Vec<Cluster>,
    pub(super) gate: Option<Gate>,
    pub(super) targets: Vec<Target>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Machine {
    cpus: usize,
    model: String,
    kernel: String,
    /// What else the machine had to do: the load of the last minute, before and after.
    load_before: String,
    load_after: String,
}

/// One size of cluster.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cluster {
    pub(super) services: u32,
    pub(super) endpoints_per_service: u32,
    pub(super) big_service: u32,
    pub(super) list_to_programmed_ms: Spread,
    pub(super) change_micros: Change,
    pub(super) big_change_micros: Option<Change>,
    pub(super) cpu_per_change_micros: f64,
    #[serde(rename = "rssMiB")]
    pub(super) rss_mib: f64,
    #[serde(rename = "peakRssMiB")]
    pub(super) peak_rss_mib: f64,
    pub(super) idle_cpu_percent: f64,
    /// Of generating the cluster and serving the list.
    pub(super) server_cpu_seconds: f64,
    /// A second agent, which finds everything in the maps already.
    pub(super) restart_to_programmed_ms: Option<f64>,
    /// Processor time of one audit of all maps.
    pub(super) audit_cpu_ms: Option<f64>,
    /// Backends that were counted in the map; none where `bpftool` is missing.
    pub(super) backends_counted: Option<u64>,
}

/// From the arrival of an event to the last write for it.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) changes: usize,
}

/// Two sizes of cluster, compared by turns.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Gate {
    pub(super) services: [u32; 2],
    pub(super) p50_micros: [f64; 2],
    /// The larger one's median by the smaller one's, of each turn.
    pub(super) ratio: Spread,
}

impl Machine {
    pub(super) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
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
        }
    }

    /// The same with what else the machine had to do at the end.
    pub(super) fn at_end(mut self) -> Self {
        self.load_after = load();
        self
    }

    /// Where and beside what, without an end of line.
    pub(super) fn head(&self) -> String {
        format!(
            "{} x {}, Linux {}, load {} before and {} after",
            self.cpus, self.model, self.kernel, self.load_before, self.load_after
        )
    }
}

/// As JSON, for programs.
pub(super) fn json(report: &impl Serialize) -> Result<String, LabError> {
    let text = serde_json::to_string_pretty(report);
    text.map(|text| text + "\n")
        .map_err(|error| LabError::Malformed {
            what: "the numbers".to_owned(),
            why: error.to_string(),
        })
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.unwrap_or_default().to_owned()
}

impl Report {
    pub(super) fn new(
        machine: Machine,
        options: &Options,
        clusters: Vec<Cluster>,
        gate: Option<Gate>,
    ) -> Self {
        let targets = targets::judge(&clusters, gate.as_ref());
        Self {
            machine: machine.at_end(),
            runs: options.runs,
            clusters,
            gate,
            targets,
        }
    }

    /// As JSON, for programs.
    pub fn json(&self) -> Result<String, LabError> {
        json(self)
    }

    /// As a table, for people.
    pub fn table(&self) -> String {
        let mut text = self.machine.head();
        // Writing to a String cannot fail.
        write!(text, "; medians of {} runs\n\n", self.runs).unwrap_or_default();
        text.push_str(&aligned(&self.rows()));
        if let Some(gate) = &self.gate {
            let ([small, large], [first, second]) = (gate.services, gate.p50_micros);
            let Spread { median, min, max } = gate.ratio;
            write!(
                text,
                "\nby turns: {first:.0} us at {small} Services, {second:.0} us at {large}; \
                 ratio {median:.2} ({min:.2} to {max:.2})\n"
            )
            .unwrap_or_default();
        }
        let targets = self.targets.iter().map(|target| {
            let mark = if target.met { "✓" } else { "✗ MISSED" };
            let measured = format!("{} {}", target.measured, target.unit);
            let cells = [&target.name, &target.wanted, measured.trim_end(), mark];
            cells.map(str::to_owned).to_vec()
        });
        let head = ["target", "wanted", "measured", ""].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(head.to_vec()).chain(targets).collect();
        text.push('\n');
        text.push_str(&aligned(&rows));
        text
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let row = |name: &str, cell: &dyn Fn(&Cluster) -> String| {
            let mut row = vec![name.to_owned()];
            row.extend(self.clusters.iter().map(cell));
            row
        };
        let number = |value: Option<f64>| value.map_or_else(String::new, |n| format!("{n:.0}"));
        let change = |change: Option<&Change>| {
            change.map_or_else(String::new, |c| format!("{:.0} / {:.0}", c.p50, c.p99))
        };
        vec![
            row("Services", &|c| c.services.to_string()),
            row("list to programmed, ms", &|c| {
                format!("{:.0}", c.list_to_programmed_ms.median)
            }),
            row("  least to most", &|c| {
                let Spread { min, max, .. } = c.list_to_programmed_ms;
                format!("{min:.0} to {max:.0}")
            }),
            row("change p50 / p99, us", &|c| change(Some(&c.change_micros))),
            row("  of the big Service", &|c| {
                change(c.big_change_micros.as_ref())
            }),
            row("processor time per change, us", &|c| {
                format!("{:.0}", c.cpu_per_change_micros)
            }),
            row("memory (and at most), MiB", &|c| {
                format!("{:.0} ({:.0})", c.rss_mib, c.peak_rss_mib)
            }),
            row("idle, % of a processor", &|c| {
                format!("{:.3}", c.idle_cpu_percent)
            }),
            row("one audit, ms of a processor", &|c| number(c.audit_cpu_ms)),
            row("restart to programmed, ms", &|c| {
                number(c.restart_to_programmed_ms)
            }),
            row("the server's own time, s", &|c| {
                format!("{:.2}", c.server_cpu_seconds)
            }),
            row("backends counted", &|c| {
                c.backends_counted
                    .map_or_else(|| "no bpftool".to_owned(), |count| count.to_string())
            }),
        ]
    }
}

/// Columns as wide as their widest cell.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
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
