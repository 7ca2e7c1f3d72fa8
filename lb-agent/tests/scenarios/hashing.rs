// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lookup tables and weights as flows meet them: the agent's tables under the packet path.
//!
//! What a table is worth by itself, `src/plan/maglev_tests.rs` says.
#![expect(clippy::panic, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_agent::model::endpoint::EndpointSlice;
use lb_agent::model::service::Service;
use lb_agent::model::snapshot::{Object, Update};
use lb_agent::model::tables::{Op, TableContent};
use lb_common::abi::{Algorithm, Frontend, FrontendKey, List, SlotKey};
use lb_common::{V4, V6};
use lb_ebpf::path::Work;

use crate::order::prefixes;
use crate::path;
use crate::support::{Bench, service, slice};

const VIP: &str = "10.0.0.10";

fn hashed(algorithm: &str) -> Service {
    Service {
        algorithm: Some(algorithm.to_owned()),
        ..service("web", VIP)
    }
}

fn pods(numbers: impl IntoIterator<Item = u8>) -> EndpointSlice {
    let addresses: Vec<String> = numbers
        .into_iter()
        .map(|n| format!("10.244.0.{n}"))
        .collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    slice("web", &addresses)
}

fn bench(algorithm: &str, slice: EndpointSlice) -> Bench {
    let mut bench = Bench::empty();
    bench.apply(Object::Service(hashed(algorithm)));
    bench.apply(Object::EndpointSlice(slice));
    bench
}

/// The last byte of the backend that flow `n` gets.
fn choice(bench: &Bench, n: u16) -> u8 {
    let client = ([10, 244, 7, n.to_be_bytes()[1]], 32_768 + n);
    let ends = (client, [10, 0, 0, 10]);
    let content = bench.tables.content();
    let reached = path::backend::<V4>(content, |c| &c.v4, Work::new(), ends, n.into());
    match reached {
        Ok((IpAddr::V4(address), 8080)) => address.octets()[3],
        other => panic!("{other:?}"),
    }
}

fn choices(bench: &Bench, flows: u16) -> Vec<u8> {
    (0..flows).map(|n| choice(bench, n)).collect()
}

#[test]
fn nodes_with_different_pasts_send_each_flow_to_the_same_backend() {
    for algorithm in ["maglev", "source-hash"] {
        let one = bench(algorithm, pods(1..=7));
        let mut other = Bench::empty();
        for name in ["a", "b"] {
            other.apply(Object::Service(service(name, "10.0.0.11")));
            other.apply(Object::EndpointSlice(slice(name, &["10.244.0.3"])));
        }
        other.apply(Object::Service(service("web", VIP)));
        other.apply(Object::EndpointSlice(pods([9, 7, 3])));
        other.apply(Object::Service(hashed(algorithm)));
        other.apply(Object::EndpointSlice(pods([8, 5, 1, 7])));
        other.apply(Object::EndpointSlice(pods((1..=7).rev())));
        assert_ne!(one.tables.content(), other.tables.content(), "ids differ");
        assert_eq!(choices(&one, 400), choices(&other, 400), "{algorithm}");
    }
}

#[test]
fn families_share_nothing_but_the_code() {
    let mut bench = Bench::empty();
    bench.apply(Object::Service(Service {
        cluster_ips: vec!["fd00:1::a".parse().unwrap()],
        ..hashed("maglev")
    }));
    bench.apply(Object::EndpointSlice(slice(
        "web",
        &["fd00:2::1", "fd00:2::2"],
    )));
    let frontend = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa];
    let mut reached = BTreeSet::new();
    for n in 0..40 {
        let ends = (([0xfd; 16], 40_000 + n), frontend);
        let content = bench.tables.content();
        reached.insert(path::backend::<V6>(content, |c| &c.v6, Work::new(), ends, 0).unwrap());
    }
    assert_eq!(reached.len(), 2);
}

#[test]
fn a_backend_that_goes_moves_its_own_flows_and_few_of_the_others() {
    const FLOWS: u16 = 2_000;
    // 6 to 5 and 5 to 6 are also another size of table.
    for n in [3_u8, 6, 10, 21] {
        let mut bench = bench("maglev", pods(1..=n));
        let before = choices(&bench, FLOWS);
        bench.apply(Object::EndpointSlice(pods((1..=n).filter(|pod| *pod != 2))));
        let without = choices(&bench, FLOWS);
        assert!(!without.contains(&2));
        let both = before.iter().zip(&without);
        let moved = both.filter(|(a, b)| **a != 2 && a != b).count();
        assert!(moved <= usize::from(FLOWS) * 15 / 100, "{n}: {moved}");
        bench.apply(Object::EndpointSlice(pods(1..=n)));
        assert_eq!(choices(&bench, FLOWS), before, "as it was");
    }
}

#[test]
fn a_change_of_one_endpoint_writes_about_its_share_of_the_table() {
    let mut bench = bench("maglev", pods(1..=10));
    for next in [pods(1..=9), pods(1..=10), pods((1..=10).map(|n| n + 1))] {
        bench.tables.take_log();
        bench.apply(Object::EndpointSlice(next));
        let log = bench.tables.take_log();
        let slots = log.iter().filter(|op| matches!(op, Op::PutSlot(..)));
        let slots = slots.count();
        assert!((204..=500).contains(&slots), "{slots} of 2048");
    }
    bench.tables.take_log();
    bench.apply(Object::Service(hashed("maglev")));
    assert_eq!(bench.writes(), Vec::<String>::new(), "the same again");
}

#[test]
fn weights_divide_flows() {
    let weighted = |algorithm: &str| {
        let mut slice = pods([1, 2, 3]);
        for (endpoint, weight) in slice.endpoints.iter_mut().zip([1, 2, 3]) {
            endpoint.weight = weight;
        }
        let mut counts = BTreeMap::new();
        for pod in choices(&bench(algorithm, slice), 1_200) {
            *counts.entry(pod).or_insert(0) += 1;
        }
        counts
    };
    let exactly = BTreeMap::from([(1, 200), (2, 400), (3, 600)]);
    assert_eq!(weighted("round-robin"), exactly);
    let counts = weighted("maglev");
    for (pod, fair) in exactly {
        let off = counts[&pod] - fair;
        assert!((-80..=80).contains(&off), "{counts:?}");
    }
}

#[test]
fn a_weight_that_changes_leaves_backends_and_their_flows_alone() {
    let mut bench = bench("round-robin", pods([1, 2]));
    bench.tables.take_log();
    let mut heavier = pods([1, 2]);
    heavier.endpoints[0].weight = 2;
    bench.apply(Object::EndpointSlice(heavier));
    let writes = bench.writes();
    let expected = [
        "put slot 2 of service 1 -> backend 1",
        "put frontend 10.0.0.10:80 TCP -> service 1 count 3",
    ];
    assert_eq!(writes, expected);
    bench.apply(Object::EndpointSlice(pods([1, 2])));
    let expected = [
        "put frontend 10.0.0.10:80 TCP -> service 1 count 2",
        "delete slot 2 of service 1",
    ];
    assert_eq!(bench.writes(), expected);
}

/// Every slot of every list and table that the frontend leads to names a backend of its service.
fn assert_whole(content: &TableContent, at: &str) {
    for frontend in content.v4.frontends.values() {
        for list in List::ALL {
            let count = frontend.count(list as u16);
            let size = if count > 1 { frontend.table_size } else { 0 };
            let slots = (0..count).map(|slot| SlotKey::new(frontend.service, list, slot));
            let table = (0..size).map(|slot| SlotKey::table(frontend.service, list, slot));
            for key in slots.chain(table) {
                let backend = content.slots.get(&key);
                let backend = backend.and_then(|id| content.v4.backends.get(id));
                let owner = backend.map(|backend| backend.service);
                assert_eq!(owner, Some(frontend.service), "{at}: {key:?}");
            }
        }
    }
}

/// What a Service may turn into, one after the other: algorithms, sizes of tables, no table.
fn history() -> Vec<(&'static str, EndpointSlice)> {
    let mut weighted = pods([1, 2, 3]);
    weighted.endpoints[1].weight = 40;
    let mut spared = pods([1, 2]);
    spared.endpoints[0].weight = 0;
    vec![
        ("round-robin", pods([1, 2])),
        ("maglev", pods([1, 2])),
        ("maglev", pods([2, 3, 4])),
        ("source-hash", weighted.clone()),
        ("random", weighted.clone()),
        ("maglev", weighted),
        ("maglev", pods([3])),
        ("maglev", pods([4, 5])),
        ("maglev", spared),
        ("source-hash", pods([1, 2, 3])),
        ("random", pods([3, 4])),
    ]
}

/// Carries `history` out, with a fault at write `fault` of each step, and gives the tables after
/// every write of each step to `check`, with the addresses of old and new backends.
fn play(
    history: Vec<(&'static str, EndpointSlice)>,
    fault: Option<usize>,
    mut check: impl FnMut(&str, &TableContent, &[Op], &BTreeSet<(IpAddr, u16)>),
) {
    let mut bench = Bench::empty();
    let mut before = BTreeSet::new();
    for (algorithm, slice) in history {
        let after: BTreeSet<_> = slice.endpoints.iter().map(|e| (e.address, 8080)).collect();
        let name = format!("{algorithm} {after:?}");
        let start = bench.tables.content().clone();
        bench.tables.take_log();
        if let Some(write) = fault {
            bench.tables.fail_nth(write);
        }
        let objects = vec![
            Object::Service(hashed(algorithm)),
            Object::EndpointSlice(slice),
        ];
        bench.take(Update::reset(objects));
        bench.sync();
        let ops = bench.tables.take_log();
        if !before.is_empty() {
            let allowed = before.union(&after).copied().collect();
            check(&name, &start, &ops, &allowed);
        }
        before = after;
    }
}

#[test]
fn every_slot_that_is_looked_up_names_a_backend_after_every_write() {
    for fault in [None, Some(0), Some(2), Some(300), Some(514)] {
        let mut writes = 0;
        let mut larger = history();
        larger.insert(3, ("maglev", pods(1..=6)));
        larger.insert(4, ("source-hash", pods(2..=6)));
        play(larger, fault, |name, start, ops, _| {
            let mut content = start.clone();
            for (at, op) in ops.iter().enumerate() {
                content.apply(op);
                // Puts of slots that nobody leads to yet are alike; each is checked now and then.
                if !matches!(op, Op::PutSlot(..)) || at % 64 == 0 {
                    assert_whole(&content, &format!("{name}, write {at}"));
                }
            }
            writes += ops.len();
        });
        assert!(writes > 5_000, "{writes}");
    }
}

#[test]
fn new_flows_are_served_between_any_two_writes_of_a_table() {
    // Each way to fall between the writes is gone through, so few writes are left of each kind.
    play(history(), None, |name, start, ops, allowed| {
        let states = prefixes(start, ops);
        let ends = ([10, 244, 9, 9], [10, 0, 0, 10], 6);
        let checked = path::check::<V4>(&states, |s| &s.v4, Work::new(), ends, allowed);
        assert!(checked.is_ok(), "{name}: {checked:?}");
    });
}

#[test]
fn the_checks_see_a_table_that_is_deleted_too_early() {
    let mut bench = bench("maglev", pods([1, 2]));
    let before = bench.tables.content().clone();
    assert_whole(&before, "complete");
    bench.tables.take_log();
    bench.apply(Object::Service(hashed("random")));
    let mut ops = bench.tables.take_log();
    ops.reverse();
    let states = prefixes(&before, &ops);
    let allowed = [1, 2].map(|n| ([10, 244, 0, n].into(), 8080)).into();
    let ends = ([10, 244, 9, 9], [10, 0, 0, 10], 6);
    assert!(path::check::<V4>(&states, |s| &s.v4, Work::new(), ends, &allowed).is_err());
}

#[test]
fn a_frontend_says_which_table_it_leads_to() {
    let key = FrontendKey::new([10, 0, 0, 10], 80, 6);
    let frontend = |bench: &Bench| -> Frontend { bench.tables.content().v4.frontends[&key] };
    let six = frontend(&bench("source-hash", pods(1..=6)));
    assert_eq!((six.cluster_count, six.table_size), (6, 2_048));
    assert_eq!(six.algorithm, Algorithm::SourceHash as u8);
    for (algorithm, pods) in [("maglev", pods([1])), ("random", pods(1..=6))] {
        assert_eq!(frontend(&bench(algorithm, pods)).table_size, 0);
    }
}
