// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables that somebody else has changed are mended, and only those entries.
#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests"
)]

use lb_agent::diff::diff;
use lb_agent::model::snapshot::{Object, Update};
use lb_agent::model::tables::{Op, TableContent, TableOp};
use lb_agent::reconcile::audit::Audit;
use lb_agent::tables::Tables as _;
use proptest::prelude::*;

use crate::support::{Bench, service, slice};

const ADDRESSES: [&str; 3] = ["10.244.0.1", "10.244.0.2", "10.244.0.3"];

fn bench() -> Bench {
    let mut bench = Bench::empty();
    let mut objects: Vec<Object> = Vec::new();
    for number in 1..=5 {
        let name = format!("web-{number}");
        let mut service = service(&name, &format!("10.0.0.{number}"));
        service.load_balancer_ips = vec![format!("203.0.113.{number}").parse().unwrap()];
        service.source_ranges = vec!["192.0.2.0/24".parse().unwrap()];
        objects.push(Object::Service(service));
        objects.push(Object::EndpointSlice(slice(&name, &ADDRESSES)));
    }
    bench.take(Update::reset(objects));
    bench.writes();
    bench
}

/// The same write with something else in its value.
fn spoiled(op: Op) -> Op {
    match op {
        Op::V4(TableOp::PutFrontend(key, mut value)) => {
            value.cluster_count += 1;
            Op::V4(TableOp::PutFrontend(key, value))
        }
        Op::V4(TableOp::PutBackend(id, mut value)) => {
            value.port ^= 1;
            Op::V4(TableOp::PutBackend(id, value))
        }
        Op::PutSlot(key, backend) => Op::PutSlot(key, backend + 1),
        other => other.deletion(),
    }
}

/// Entries that nobody planned, under keys that are free.
fn strangers() -> Vec<Op> {
    let mut foreign = Bench::empty();
    foreign.take(Update::reset(vec![
        Object::Service(service("foreign", "10.9.9.9")),
        Object::EndpointSlice(slice("foreign", &ADDRESSES)),
    ]));
    let mut content = TableContent::default();
    for op in diff(&TableContent::default(), foreign.tables.content()) {
        content.apply(&match op {
            Op::V4(TableOp::PutFrontend(key, mut value)) => {
                value.service += 1_000;
                Op::V4(TableOp::PutFrontend(key, value))
            }
            Op::V4(TableOp::PutBackend(id, mut value)) => {
                value.service += 1_000;
                Op::V4(TableOp::PutBackend(id + 1_000, value))
            }
            Op::PutSlot(mut key, backend) => {
                key.service += 1_000;
                Op::PutSlot(key, backend + 1_000)
            }
            other => other,
        });
    }
    diff(&TableContent::default(), &content)
}

#[test]
fn tables_that_nobody_touched_are_left_alone() {
    let mut bench = bench();
    let report = bench.reconciler.audit(&mut bench.tables);
    assert_eq!(report.drift(), 0);
    assert!(bench.writes().is_empty());
}

proptest! {
    #[test]
    fn whatever_was_changed_removed_or_added_is_mended(
        changed in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        added in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let mut bench = bench();
        let before = bench.tables.content().clone();
        let puts = diff(&TableContent::default(), &before);
        for at in changed {
            bench.tables.tamper(&spoiled(*at.get(&puts)));
        }
        for at in removed {
            bench.tables.tamper(&at.get(&puts).deletion());
        }
        let strangers = strangers();
        for at in added {
            bench.tables.tamper(at.get(&strangers));
        }
        let differing = puts.iter().filter(|put| !bench.tables.holds(put).unwrap()).count();
        let report = bench.reconciler.audit(&mut bench.tables);
        prop_assert_eq!(bench.tables.content(), &before);
        prop_assert_eq!(report.restored, u64::try_from(differing).unwrap());
        prop_assert_eq!(report.failed, 0);
        prop_assert_eq!(bench.reconciler.audit(&mut bench.tables).drift(), 0);
    }
}

#[test]
fn an_audit_in_steps_looks_at_everything_once() {
    let mut bench = bench();
    let puts = diff(&TableContent::default(), bench.tables.content());
    for put in &puts {
        bench.tables.tamper(&put.deletion());
    }
    let mut audit = Audit::default();
    let mut steps = 0;
    let report = loop {
        let before = bench.tables.content().len();
        let done = bench
            .reconciler
            .audit_step(&mut audit, 2, &mut bench.tables);
        let written = bench.tables.content().len() - before;
        if let Some(report) = done {
            assert_eq!(written, puts.len() % 2);
            break report;
        }
        assert_eq!(written, 2, "whatever Service they are of");
        steps += 1;
    };
    assert_eq!(report.restored, u64::try_from(puts.len()).unwrap());
    assert_eq!(steps, puts.len() / 2);
    assert_eq!(bench.reconciler.content(), *bench.tables.content());
}

/// Endpoints of one Service come and go, and another Service goes.
fn change(bench: &mut Bench) {
    bench.apply(Object::EndpointSlice(slice(
        "web-3",
        &["10.244.0.1", "10.244.0.9"],
    )));
    bench.delete(&Object::Service(service("web-4", "10.0.0.4")));
}

#[test]
fn what_changes_between_two_steps_of_an_audit_is_not_taken_back() {
    let mut unwatched = bench();
    let entries = unwatched.tables.content().len();
    change(&mut unwatched);
    for step in 0..=entries {
        let mut bench = bench();
        let mut audit = Audit::default();
        bench
            .reconciler
            .audit_step(&mut audit, step, &mut bench.tables);
        change(&mut bench);
        let mut report = None;
        while report.is_none() {
            report = bench
                .reconciler
                .audit_step(&mut audit, 1, &mut bench.tables);
        }
        assert_eq!(report.unwrap().drift(), 0, "after {step} entries");
        assert_eq!(bench.text(), unwatched.text(), "after {step} entries");
    }
}

#[test]
fn an_entry_that_was_met_before_it_was_planned_away_is_no_stranger() {
    let mut bench = bench();
    let mut met = Vec::new();
    bench.tables.walk(&mut |op| met.push(op)).unwrap();
    bench.take(Update::reset(Vec::new()));
    let report = bench.reconciler.audit_strangers(&met, &mut bench.tables);
    assert_eq!(report.drift(), 0);
}

#[test]
fn a_write_that_fails_in_an_audit_is_counted_and_found_again() {
    let mut bench = bench();
    let puts = diff(&TableContent::default(), bench.tables.content());
    bench.tables.tamper(&puts[0].deletion());
    bench.tables.fail_nth(0);
    let report = bench.reconciler.audit(&mut bench.tables);
    assert_eq!((report.restored, report.failed), (0, 1));
    let report = bench.reconciler.audit(&mut bench.tables);
    assert_eq!((report.restored, report.failed), (1, 0));
}
