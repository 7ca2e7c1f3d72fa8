// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a node's kernel holds, read with bpftool as a person would.
//!
//! **Invariant:** only reading; the pins are found under the node's own directory.
//! Read next: the table of maps in the README of `lb-common`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use lb_lab::Node;

/// The programmed tables: everything that only the agent writes.
pub(crate) const PROGRAMMED: [&str; 5] = [
    "FRONTENDS_V4",
    "FRONTENDS_V6",
    "SLOTS",
    "BACKENDS_V4",
    "BACKENDS_V6",
];

/// Position of the counter `no-backend` in the map `REASONS`.
pub(crate) const NO_BACKEND: u32 = 0;
/// How many reasons there are.
pub(crate) const REASONS: u32 = 11;

/// The entries of a map, one line of JSON each, sorted.
pub(crate) fn entries(node: &Node, map: &str) -> Vec<String> {
    let path = node.bpffs().join(map);
    let text = node.output(&format!("bpftool -j map dump pinned {}", path.display()));
    let text = text.unwrap();
    let list = text.trim().trim_start_matches('[').trim_end_matches(']');
    let mut entries: Vec<_> = list
        .split("},{\"key\"")
        .map(|entry| entry.trim_start_matches("{\"key\"").to_owned())
        .filter(|entry| !entry.is_empty())
        .collect();
    entries.sort();
    entries
}

/// All programmed tables at once.
pub(crate) fn programmed(node: &Node) -> Vec<(&'static str, Vec<String>)> {
    PROGRAMMED.map(|map| (map, entries(node, map))).to_vec()
}

/// A counter, summed over all processors.
pub(crate) fn reason(node: &Node, number: u32) -> u64 {
    let path = node.bpffs().join("REASONS");
    // Four bytes in the order of the machine; the numbers are small.
    let [a, b, c, d] = number.to_ne_bytes();
    let command = format!(
        "bpftool -j map lookup pinned {} key {a} {b} {c} {d}",
        path.display()
    );
    let text = node.output(&command).unwrap();
    let formatted = text.split("\"formatted\"").nth(1).unwrap();
    let values = formatted.split("\"value\":").skip(1);
    values
        .map(|value| {
            let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap();
            value[..digits].parse::<u64>().unwrap()
        })
        .sum()
}

/// All counters.
pub(crate) fn reasons(node: &Node) -> Vec<u64> {
    (0..REASONS).map(|number| reason(node, number)).collect()
}
