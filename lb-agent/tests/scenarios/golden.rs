// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each `*.yaml` of this folder leads to the plan and the tables in the `*.txt` of its name: from
//! one list, in any order of arrival, and over a restart; and without its objects the tables are
//! empty again.

use std::fs;

use lb_agent::model::snapshot::Update;
use lb_agent::model::tables::TableContent;

use crate::scenario::scenarios;

#[test]
fn every_scenario_leads_to_its_plan_and_its_tables() {
    let bless = std::env::var_os("UPDATE_EXPECT").is_some();
    for scenario in scenarios() {
        let text = scenario.text(&scenario.listed());
        let golden = scenario.path.with_extension("txt");
        if bless {
            fs::write(&golden, &text).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(
            text, expected,
            "{} (UPDATE_EXPECT=1 blesses)",
            scenario.name
        );
    }
}

#[test]
fn every_scenario_is_in_the_table_of_the_readme() {
    let readme = include_str!("README.md");
    for scenario in scenarios() {
        let name = format!("`{}`", scenario.name);
        assert!(readme.contains(&name), "{name} shows what?");
    }
}

#[test]
fn the_order_of_arrival_does_not_matter() {
    for scenario in scenarios() {
        let expected = scenario.listed().text_without_ids();
        let forward = scenario.objects.clone();
        let backward = scenario.objects.iter().rev().cloned().collect();
        for order in [forward, backward] {
            let mut bench = scenario.start(TableContent::default(), 1);
            bench.take(Update::reset(Vec::new()));
            for object in order {
                bench.apply(object);
            }
            assert_eq!(bench.text_without_ids(), expected, "{}", scenario.name);
        }
    }
}

#[test]
fn a_restart_writes_nothing() {
    for scenario in scenarios() {
        let before = scenario.listed();
        let mut after = scenario.start(before.tables.content().clone(), 1_000);
        after.take(Update::reset(scenario.objects.clone()));
        assert_eq!(after.writes(), Vec::<String>::new(), "{}", scenario.name);
        assert_eq!(after.text(), before.text(), "{}", scenario.name);
    }
}

#[test]
fn without_objects_the_tables_are_empty() {
    for scenario in scenarios() {
        let name = &scenario.name;
        let mut bench = scenario.listed();
        for object in &scenario.objects {
            bench.delete(object);
        }
        assert!(bench.tables.content().is_empty(), "{name}: one by one");

        let mut bench = scenario.listed();
        bench.take(Update::reset(Vec::new()));
        assert!(bench.tables.content().is_empty(), "{name}: at once");

        let left = scenario.listed().tables.content().clone();
        let mut bench = scenario.start(left, 1_000);
        bench.take(Update::reset(Vec::new()));
        let content = bench.tables.content();
        assert!(content.is_empty(), "{name}: while the agent was down");
    }
}
