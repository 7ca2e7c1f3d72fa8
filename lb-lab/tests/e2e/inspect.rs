// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a node's kernel holds, read with bpftool as a person would.
//!
//! **Invariant:** only reading; the pins are found under the node's own directory.
//! Read next: the table of maps in the README of `lb-common`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use lb_common::Reason;
use lb_lab::{Node, agent};
use serde_json::Value;

/// The programmed tables: everything that only the agent writes.
pub(crate) const PROGRAMMED: [&str; 5] = [
    "FRONTENDS_V4",
    "FRONTENDS_V6",
    "SLOTS",
    "BACKENDS_V4",
    "BACKENDS_V6",
];

/// What bpftool says in JSON.
pub(crate) fn bpftool(node: &Node, arguments: &str) -> Value {
    let text = node.output(&format!("bpftool -j {arguments}")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The entries of a map, one line of JSON each, sorted.
pub(crate) fn entries(node: &Node, map: &str) -> Vec<String> {
    let path = node.bpffs().join(map);
    let dump = bpftool(node, &format!("map dump pinned {}", path.display()));
    let entries = dump.as_array().unwrap().iter();
    let mut entries: Vec<_> = entries.map(Value::to_string).collect();
    entries.sort();
    entries
}

/// All programmed tables at once.
pub(crate) fn programmed(node: &Node) -> Vec<(&'static str, Vec<String>)> {
    PROGRAMMED.map(|map| (map, entries(node, map))).to_vec()
}

/// A counter, summed over all processors.
pub(crate) fn reason(node: &Node, reason: Reason) -> u64 {
    let path = node.bpffs().join("REASONS");
    let [a, b, c, d] = (reason as u32).to_ne_bytes();
    let lookup = format!("map lookup pinned {} key {a} {b} {c} {d}", path.display());
    let found = bpftool(node, &lookup);
    let values = found["formatted"]["values"].as_array().unwrap().iter();
    values.map(|value| value["value"].as_u64().unwrap()).sum()
}

/// Whether the kernel has a feature, by the name that `lb-agent doctor` gives it.
pub(crate) fn kernel_has(node: &Node, feature: &str) -> bool {
    let binary = agent::find_binary().unwrap();
    let text = node.output(&format!(
        "{} doctor -o json --bpffs {} --cgroup {}",
        binary.display(),
        node.bpffs().display(),
        node.cgroup().display()
    ));
    let told: Value = serde_json::from_str(&text.unwrap()).unwrap();
    let features = told["features"].as_array().unwrap();
    let found = features.iter().find(|found| found["feature"] == feature);
    found.unwrap()["here"].as_bool().unwrap()
}

/// The counters that are not zero.
pub(crate) fn reasons(node: &Node) -> Vec<(Reason, u64)> {
    let counts = Reason::ALL.iter().map(|&each| (each, reason(node, each)));
    counts.filter(|(_, count)| *count > 0).collect()
}
