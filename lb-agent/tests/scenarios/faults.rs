// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes that fail, and maps that are full, for every scenario and between any two of them: once
//! writes work again the tables are as if nothing had been, and meanwhile no other Service lacks
//! anything.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};

use lb_agent::model::snapshot::Update;
use lb_agent::model::tables::{Op, TableContent};
use lb_common::abi::List;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::scenario::{Scenario, scenarios};
use crate::support::Bench;

/// What each Service has in the tables, without ids.
fn shares(bench: &Bench) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for block in bench.blocks_without_ids() {
        let owner = block[0].split("  ").nth(1).unwrap();
        let service = owner.split(' ').next().unwrap().to_owned();
        found.entry(service).or_default().insert(block.concat());
    }
    found
}

/// Services whose share in `bench` is not the one that it should be.
fn lacking(bench: &Bench, wanted: &BTreeMap<String, BTreeSet<String>>) -> usize {
    let shares = shares(bench);
    let all: BTreeSet<_> = shares.keys().chain(wanted.keys()).collect();
    let differ = |name: &&&String| shares.get(**name) != wanted.get(**name);
    all.iter().filter(differ).count()
}

/// A node that knows `before` and comes to know `after`, with `fault` in its way.
fn transition(before: Option<&Scenario>, after: &Scenario, fault: impl Fn(&mut Bench)) -> Bench {
    let mut bench = after.start(TableContent::default(), 1);
    let objects = before.map(|scenario| scenario.objects.clone());
    bench.take(Update::reset(objects.unwrap_or_default()));
    bench.tables.take_log();
    fault(&mut bench);
    bench
}

/// Takes the scenario in, checks that others do not suffer, and tries again without faults.
fn recover(mut bench: Bench, scenario: &Scenario, calm: impl Fn(&mut Bench)) -> Bench {
    let expected = scenario.listed();
    let outcome = bench.take(Update::reset(scenario.objects.clone()));
    let lacking = lacking(&bench, &shares(&expected));
    assert!(
        lacking <= outcome.pending,
        "{}: {lacking} Services lack something, {} are pending",
        scenario.name,
        outcome.pending
    );
    calm(&mut bench);
    bench.sync();
    assert!(!bench.reconciler.is_pending(), "{}", scenario.name);
    assert_eq!(
        bench.text_without_ids(),
        expected.text_without_ids(),
        "{}",
        scenario.name
    );
    bench
}

/// The numbers of the writes that the change makes when nothing fails; of those to lookup tables,
/// which are alike and come by the thousand, some.
fn writes(before: Option<&Scenario>, after: &Scenario) -> Vec<usize> {
    let mut bench = transition(before, after, |_| {});
    bench.take(Update::reset(after.objects.clone()));
    let log = bench.tables.take_log();
    let is_table = |op: &Op| match op {
        Op::PutSlot(key, _) | Op::DeleteSlot(key) => key.list >= List::TABLES,
        Op::V4(_) | Op::V6(_) => false,
    };
    let numbered = log.iter().enumerate();
    let sampled = numbered.filter(|(at, op)| !is_table(op) || at % 211 == 0);
    sampled.map(|(at, _)| at).collect()
}

#[test]
fn a_write_that_fails_anywhere_in_any_scenario_is_made_up_for() {
    for scenario in scenarios() {
        for write in writes(None, scenario) {
            let bench = transition(None, scenario, |b| b.tables.fail_nth(write));
            let mut bench = recover(bench, scenario, |_| {});
            // And so is one on the way back to nothing.
            bench.tables.fail_nth(write);
            bench.take(Update::reset(Vec::new()));
            bench.sync();
            let left = bench.tables.content();
            assert!(left.is_empty(), "{} {write}: {left:?}", scenario.name);
        }
    }
}

#[test]
fn maps_of_any_size_fill_up_and_go_on_once_there_is_room() {
    for scenario in scenarios() {
        for limit in 0..4 {
            let bench = transition(None, scenario, |b| b.tables.set_limit(Some(limit)));
            recover(bench, scenario, |b| b.tables.set_limit(None));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_change_from_one_scenario_to_another_survives_faults(pair in any::<[Index; 2]>()) {
        let all = scenarios();
        let [before, after] = pair.map(|index| index.get(all));
        for write in writes(Some(before), after) {
            let bench = transition(Some(before), after, |b| b.tables.fail_nth(write));
            recover(bench, after, |_| {});
        }
        for limit in 0..4 {
            let bench = transition(Some(before), after, |b| b.tables.set_limit(Some(limit)));
            recover(bench, after, |b| b.tables.set_limit(None));
        }
    }
}
