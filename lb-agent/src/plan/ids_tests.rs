// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ids are dense, stay, come back from the tables, and are given away only when they are free.

use proptest::prelude::*;

use super::*;

fn ids() -> Ids {
    let limits = IdLimits {
        services: 4,
        backends: 4,
    };
    Ids::new(limits, 1)
}

fn key(name: &str) -> PortKey {
    PortKey {
        service: ServiceKey::new("default", name),
        family: IpFamily::V4,
        name: String::new(),
        protocol: Protocol::Tcp,
    }
}

fn address(n: u8) -> EndpointAddress {
    (IpAddr::from([10, 0, 0, n]), 80)
}

#[test]
fn ids_are_dense_from_one_and_end_at_their_limit() {
    let mut ids = ids();
    for (name, id) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(ids.port(&key(name), "", &[]).unwrap().0, id);
    }
    assert_eq!(ids.port(&key("d"), "", &[]), Err(Exhausted));
    for n in 1..=3 {
        assert_eq!(ids.backend(1, address(n)).unwrap().id, u32::from(n));
    }
    assert_eq!(ids.backend(1, address(4)), Err(Exhausted));
}

#[test]
fn a_freed_id_is_given_away_only_after_it_is_settled() {
    let mut ids = ids();
    ids.port(&key("a"), "", &[]).unwrap();
    let first = ids.backend(1, address(1)).unwrap();
    assert_eq!(ids.port(&key("b"), "", &[]).unwrap().0, 2);
    ids.settle(&ServiceKey::new("default", "a"), &TableContent::default());
    ids.end_pass();
    let (id, generation) = ids.port(&key("c"), "", &[]).unwrap();
    assert_eq!(id, 1, "reused before a third one is begun");
    let again = ids.backend(1, address(1)).unwrap();
    assert_eq!(again.id, first.id);
    assert!(again.epoch > first.epoch);
    assert!(generation > 0);
}

#[test]
fn limits_hold_for_what_is_read_back_too() {
    let mut content = TableContent::default();
    content.put_backend(
        u32::MAX,
        (u32::MAX, u32::MAX),
        address(1),
        (lb_common::abi::BackendState::Active, 0),
    );
    let limits = IdLimits {
        services: 4,
        backends: 4,
    };
    let mut ids = Ids::restore(&content, limits, 1);
    assert_eq!(ids.port(&key("a"), "", &[]).unwrap().0, 1);
    assert_eq!(ids.backend(1, address(2)).unwrap().id, 1);
    assert_eq!(ids.orphans(), BTreeSet::from([u32::MAX]));
}

proptest! {
    #[test]
    fn slots_hold_exactly_what_is_wanted_and_move_as_little_as_possible(
        lists in prop::collection::vec(prop::collection::btree_set(1u32..20, 0..12), 1..8)
    ) {
        let mut ids = ids();
        let mut before: Vec<u32> = Vec::new();
        for wanted in lists {
            let wanted: Vec<u32> = wanted.into_iter().collect();
            let after = ids.arrange(1, List::Cluster, &wanted);
            let mut sorted = after.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &wanted);
            let removed = before.iter().filter(|id| !wanted.contains(id)).count();
            let added = wanted.iter().filter(|id| !before.contains(id)).count();
            let kept = before.len().min(after.len());
            let moved = (0..kept).filter(|at| before[*at] != after[*at]).count();
            prop_assert!(moved <= removed.max(added), "{before:?} -> {after:?}");
            before = after;
        }
    }
}
