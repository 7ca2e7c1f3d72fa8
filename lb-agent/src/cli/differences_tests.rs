// SPDX-License-Identifier: MIT OR Apache-2.0
//! Planned tables, and the same with something changed.

use lb_common::abi::{List, SlotKey};

use super::*;
use crate::cli::fixture::{self, Fixture};
use crate::model::tables::{Op, TableOp};

/// The differences that a change of the maps makes, a line each.
fn told(change: impl FnOnce(&Fixture, &mut TableContent)) -> Vec<String> {
    let fixture = fixture::planned();
    let mut actual = fixture.content.clone();
    change(&fixture, &mut actual);
    let names = fixture.names();
    let found = differences(&actual, &fixture.content, &|id| names.port(id).cloned());
    let line = |d: Difference| {
        let service = d.service.unwrap_or_else(|| format!("id {}", d.service_id));
        format!("{service} {} {} {}", d.object, d.is, d.detail)
    };
    found
        .into_iter()
        .map(|d| line(d).trim_end().to_owned())
        .collect()
}

/// The service id of a slot that leads to `backend`, and the slot.
fn slot_of(content: &TableContent, backend: u32) -> SlotKey {
    let mut slots = content.slots.iter();
    *slots.find(|(_, id)| **id == backend).unwrap().0
}

#[test]
fn equal_tables_and_other_orders_of_a_list_do_not_differ() {
    assert!(told(|_, _| {}).is_empty());
    let swapped = told(|fixture, actual| {
        let [a, b] = ["10.244.0.5", "10.244.0.6"].map(|ip| fixture.backend(ip));
        let [of_a, of_b] = [a, b].map(|id| slot_of(&fixture.content, id));
        actual.slots.insert(of_a, b);
        actual.slots.insert(of_b, a);
    });
    assert_eq!(swapped, [""; 0]);
}

#[test]
fn a_slot_that_leads_elsewhere_is_told_by_addresses() {
    let found = told(|fixture, actual| {
        let [a, b] = ["10.244.0.5", "10.244.0.6"].map(|ip| fixture.backend(ip));
        actual.slots.insert(slot_of(&fixture.content, a), b);
    });
    let detail =
        "10.244.0.5:9376 has 0 slots instead of 1, 10.244.0.6:9376 has 2 slots instead of 1";
    assert_eq!(
        found,
        [format!("default/web cluster list different {detail}")]
    );
}

#[test]
fn frontends_that_are_missing_or_nobody_wants_are_told_once() {
    let found = told(|_, actual| {
        let (key, value) = actual.v4.frontends.pop_first().unwrap();
        let strange = FrontendKey::new([10, 0, 9, 9], key.port, key.proto);
        let value = Frontend {
            service: 77,
            ..value
        };
        actual.apply(&Op::V4(TableOp::PutFrontend(strange, value)));
        actual.slots.insert(SlotKey::new(78, List::Cluster, 0), 5);
    });
    assert_eq!(
        found,
        [
            "id 77 frontend 10.0.9.9:80 TCP extra ClusterIP",
            "id 78 leftovers extra 0 backends and 1 slots that no frontend leads to",
            "default/web frontend 10.0.1.175:80 TCP missing ClusterIP",
        ]
    );
}

#[test]
fn what_a_frontend_and_a_backend_say_is_compared_without_stamps() {
    let found = told(|fixture, actual| {
        for value in actual.v6.frontends.values_mut() {
            value.generation += 1;
            value.affinity_secs = 60;
            value.pod_policy ^= 1;
        }
        let id = fixture.backend("10.244.1.10");
        let backend = actual.v4.backends.get_mut(&id).unwrap();
        backend.epoch += 1;
        backend.state = BackendState::Active as u8;
    });
    assert_eq!(
        found,
        [
            "default/web frontend [fd00:10:0:1::175]:80 TCP different affinity seconds 60 instead of 0, \
             pod local/reject/snat never instead of cluster/reject/snat never",
            "monitoring/prometheus-main-prometheus-alertmanager backend 10.244.1.10:9094 different \
             serving instead of terminating",
        ]
    );
}

#[test]
fn lookup_tables_and_source_ranges_are_compared_too() {
    let found = told(|fixture, actual| {
        let near = fixture.backend("10.244.0.9");
        let mut of_table = fixture.content.slots.iter();
        let is_other = |key: &SlotKey, id: u32| key.list == List::TABLES && id != near;
        let (key, _) = of_table.find(|(key, id)| is_other(key, **id)).unwrap();
        actual.slots.insert(*key, near);
        actual.v4.source_ranges.clear();
    });
    let [table, range] = &found[..] else {
        unreachable!("{found:?}")
    };
    assert!(
        table.contains("lookup table of the cluster list different"),
        "{table}"
    );
    assert!(
        range.ends_with("source range 10.0.0.0/8 missing"),
        "{range}"
    );
}
