// SPDX-License-Identifier: MIT OR Apache-2.0
//! Inputs that are near to real ones: scenarios with pieces cut, doubled, moved and replaced, as
//! YAML and as JSON, through the checks of the fuzz targets.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write as _;
use std::fs;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use crate::scenario::{Scenario, scenarios};

#[path = "../../fuzz/check.rs"]
mod check;

/// Words that break things elsewhere.
const WORDS: [&str; 28] = [
    "",
    " ",
    "null",
    "~",
    "0",
    "-1",
    "65535",
    "65536",
    "99999999999999999999",
    "1e3",
    "0x50",
    "true",
    "None",
    "[]",
    "{}",
    "---",
    "...",
    "&a",
    "*a",
    "!!binary AA==",
    "::",
    "0.0.0.0",
    "255.255.255.255",
    "10.0.0.0/8",
    "::/0",
    "fe80::1%eth0",
    "\u{feff}",
    "2026-01-01T00:00:00Z",
];

/// One change of a text.
#[derive(Clone, Debug)]
enum Edit {
    Cut(Index, u8),
    Double(Index),
    Swap(Index, Index),
    Word(Index, Index),
    Character(Index, char),
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, length)| Edit::Cut(at, length)),
        place().prop_map(Edit::Double),
        (place(), place()).prop_map(|(a, b)| Edit::Swap(a, b)),
        (place(), place()).prop_map(|(at, word)| Edit::Word(at, word)),
        (place(), any::<char>()).prop_map(|(at, c)| Edit::Character(at, c)),
    ]
}

impl Edit {
    fn apply(&self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        let mut lines: Vec<&str> = text.lines().collect();
        if chars.is_empty() || lines.is_empty() {
            return text.to_owned();
        }
        match self {
            Self::Cut(at, length) => {
                let at = at.index(chars.len());
                let end = (at + usize::from(*length)).min(chars.len());
                chars.drain(at..end);
                chars.into_iter().collect()
            }
            Self::Character(at, c) => {
                let at = at.index(chars.len());
                chars[at] = *c;
                chars.into_iter().collect()
            }
            Self::Double(at) => {
                let at = at.index(lines.len());
                lines.insert(at, lines[at]);
                lines.join("\n")
            }
            Self::Swap(a, b) => {
                let (a, b) = (a.index(lines.len()), b.index(lines.len()));
                lines.swap(a, b);
                lines.join("\n")
            }
            Self::Word(at, word) => {
                // The word around the place gives way.
                let is_edge = |c: char| " ,:[]{}\n\"".contains(c);
                let at = at.index(chars.len());
                let start = chars[..at]
                    .iter()
                    .rposition(|c| is_edge(*c))
                    .map_or(0, |n| n + 1);
                let end = chars[at..].iter().position(|c| is_edge(*c));
                let end = end.map_or(chars.len(), |n| at + n);
                let word = WORDS[word.index(WORDS.len())].chars();
                chars.splice(start..end.max(start), word);
                chars.into_iter().collect()
            }
        }
    }
}

fn text(scenario: &Scenario) -> String {
    fs::read_to_string(&scenario.path).unwrap()
}

/// A scenario as a list in JSON, without what cannot be read.
fn list(scenario: &Scenario) -> Value {
    let text = text(scenario);
    let documents = text.split("\n---\n");
    let items: Vec<Value> = documents
        .filter_map(|d| serde_yaml_ng::from_str(d).ok())
        .collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// Replaces the value at place `left` of a walk through all values; answers with what is left.
fn replace(value: &mut Value, mut left: usize, with: &Value) -> Option<usize> {
    if left == 0 {
        *value = with.clone();
        return None;
    }
    left -= 1;
    match value {
        Value::Array(items) => {
            for item in items {
                left = replace(item, left, with)?;
            }
        }
        Value::Object(fields) => {
            for field in fields.values_mut() {
                left = replace(field, left, with)?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    Some(left)
}

fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields.values().map(size).sum::<usize>(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let numbers = prop::sample::select(vec![-1, 0, 1, 65_535, 65_536, i64::MAX, i64::MIN]);
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|b| json!(b)),
        numbers.prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        any::<Index>().prop_map(|at| json!(WORDS[at.index(WORDS.len())])),
        ".{0,12}".prop_map(|text| json!(text)),
        Just(json!([])),
        Just(json!({})),
        Just(json!([null, "", 0, {}])),
    ]
}

#[test]
fn every_scenario_passes_the_checks_as_it_is() {
    for scenario in scenarios() {
        for choice in 0..5 {
            let known = check::check("scenario.yaml", &text(scenario), choice);
            assert_eq!(known, scenario.objects.len(), "{}", scenario.name);
        }
        let json = list(scenario).to_string();
        check::check("scenario.json", &json, 0);
    }
}

#[test]
fn deep_and_repeated_structures_are_refused_or_planned() {
    let deep = |open: &str, close: &str| open.repeat(2_000) + &close.repeat(2_000);
    let mut aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let many = format!("*a{}, ", n - 1).repeat(9);
        writeln!(aliases, "a{n}: &a{n} [{many}]").unwrap();
    }
    for text in [deep("[", "]"), deep("{a: ", "}"), deep("- ", ""), aliases] {
        assert_eq!(check::check("deep.yaml", &text, 0), 0);
        assert_eq!(check::check("deep.json", &text, 0), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 700,
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn manifests_that_are_near_to_real_ones_are_planned_or_refused(
        seeds in any::<[Index; 2]>(),
        edits in prop::collection::vec(edit(), 1..6),
        choice in any::<u8>(),
    ) {
        let all = scenarios();
        let [first, second] = seeds.map(|seed| text(seed.get(all)));
        let mut input = first + "---\n" + &second;
        for edit in &edits {
            input = edit.apply(&input);
        }
        check::check("near.yaml", &input, choice);
    }

    #[test]
    fn objects_that_are_near_to_real_ones_are_planned_or_refused(
        seed in any::<Index>(),
        edits in prop::collection::vec((any::<Index>(), any_value()), 1..6),
        choice in any::<u8>(),
    ) {
        let mut value = list(seed.get(scenarios()));
        for (at, with) in &edits {
            let place = at.index(size(&value).max(5) - 4) + 4;
            replace(&mut value, place, with);
        }
        check::check("near.json", &value.to_string(), choice);
    }

    #[test]
    fn text_that_is_nothing_is_refused(input in "\\PC{0,200}", choice in any::<u8>()) {
        check::check("nothing.yaml", &input, choice);
        check::check("nothing.json", &input, choice);
    }
}
