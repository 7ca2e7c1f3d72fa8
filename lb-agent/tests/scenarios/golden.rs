// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each `*.yaml` of this folder leads to the tables in the `*.txt` of its name: from one list, in
//! any order of arrival, and over a restart; and without its objects the tables are empty again.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use lb_agent::model::snapshot::{Object, Update};
use lb_agent::source::manifests;

use crate::support::Bench;

fn scenarios() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            found.push((path.file_stem().unwrap().to_str().unwrap().to_owned(), path));
        }
    }
    found.sort();
    assert!(found.len() >= 15, "the scenarios are there");
    found
}

/// The objects of a scenario, and what could not be read, as lines.
fn load(path: &Path) -> (Vec<Object>, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(path, folder.path().join("scenario.yaml")).unwrap();
    let (objects, problems) = manifests::load(folder.path()).unwrap();
    let mut text = String::new();
    for problem in problems {
        writeln!(text, "{:?}: {problem}", problem.severity).unwrap();
    }
    (objects, text)
}

fn listed(objects: &[Object]) -> Bench {
    let mut bench = Bench::empty();
    bench.take(Update::Reset(objects.to_vec()));
    bench
}

#[test]
fn every_scenario_leads_to_its_tables() {
    let bless = std::env::var_os("UPDATE_EXPECT").is_some();
    for (name, path) in scenarios() {
        let (objects, problems) = load(&path);
        let bench = listed(&objects);
        let mut text = bench.text();
        for (key, warning) in bench.reconciler.warnings() {
            writeln!(text, "Warning: Service {key}: {warning}").unwrap();
        }
        text.push_str(&problems);
        let golden = path.with_extension("txt");
        if bless {
            fs::write(&golden, &text).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(text, expected, "{name} (UPDATE_EXPECT=1 blesses)");
    }
}

#[test]
fn the_order_of_arrival_does_not_matter() {
    for (name, path) in scenarios() {
        let (objects, _) = load(&path);
        let expected = listed(&objects).text_without_ids();
        let forward: Vec<_> = objects.clone();
        let backward: Vec<_> = objects.iter().rev().cloned().collect();
        for order in [forward, backward] {
            let mut bench = Bench::empty();
            for object in order {
                bench.apply(object);
            }
            assert_eq!(bench.text_without_ids(), expected, "{name}");
        }
    }
}

#[test]
fn a_restart_writes_nothing() {
    for (name, path) in scenarios() {
        let (objects, _) = load(&path);
        let before = listed(&objects);
        let mut after = Bench::on(before.tables.content().clone(), 1_000);
        after.take(Update::Reset(objects));
        assert_eq!(after.writes(), Vec::<String>::new(), "{name}");
        assert_eq!(after.text(), before.text(), "{name}");
    }
}

#[test]
fn without_objects_the_tables_are_empty() {
    for (name, path) in scenarios() {
        let (objects, _) = load(&path);
        let mut bench = listed(&objects);
        for object in &objects {
            bench.delete(object);
        }
        assert!(bench.tables.content().is_empty(), "{name}: one by one");

        let mut bench = listed(&objects);
        bench.take(Update::Reset(Vec::new()));
        assert!(bench.tables.content().is_empty(), "{name}: at once");

        let left = listed(&objects).tables.content().clone();
        let mut bench = Bench::on(left, 1_000);
        bench.take(Update::Reset(Vec::new()));
        assert!(
            bench.tables.content().is_empty(),
            "{name}: while the agent was down"
        );
    }
}
