// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every prefix of the writes between any two worlds is a working data plane, for all kinds of
//! frontends, both lists and all scopes; and who may dial a frontend is never wider or narrower
//! meanwhile than before or after.
//!
//! `order.rs` says what a lookup does, and asks the same of simpler worlds with the packet path.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_agent::model::prefix::Prefix;
use lb_agent::model::snapshot::Update;
use lb_agent::model::tables::{FamilyTables, TableContent};
use lb_common::abi::{Frontend, FrontendFlags, FrontendKey, Scope};
use proptest::prelude::*;

use crate::order::{looked_up, lookup, prefixes};
use crate::support::Bench;
use crate::worlds::{World, any_settings, world};

const SOURCES: [&str; 6] = [
    "10.1.2.3",
    "192.0.2.10",
    "203.0.113.5",
    "198.51.100.1",
    "2001:db8::1",
    "fd00::1",
];

/// The tables of one family.
type Family<A> = fn(&TableContent) -> &FamilyTables<A>;

/// What the slots of `service` lead to, of both lists.
fn members<A: Ord + Copy + Into<IpAddr>>(
    content: &TableContent,
    family: Family<A>,
    service: u32,
) -> BTreeSet<(IpAddr, u16)> {
    let slots = content
        .slots
        .iter()
        .filter(|(key, _)| key.service == service);
    let backends = slots.filter_map(|(_, id)| family(content).backends.get(id));
    backends.map(|b| (b.address.into(), b.port)).collect()
}

fn check_lookups<A: Ord + Copy + Into<IpAddr> + std::fmt::Debug>(
    states: &[TableContent],
    family: Family<A>,
) -> Result<(), TestCaseError> {
    let (first, last) = (&states[0], &states[states.len() - 1]);
    for (key, before) in &family(first).frontends {
        let Some(after) = family(last).frontends.get(key) else {
            continue;
        };
        let mut allowed = BTreeSet::new();
        for state in [first, last] {
            for service in [before.service, after.service] {
                allowed.extend(members(state, family, service));
            }
        }
        for scope in Scope::ALL {
            let begun = lookup(states, family, (key, scope), 0);
            prop_assert!(
                begun.hits.is_subset(&allowed),
                "{:?}: {:?}",
                key,
                begun.hits
            );
            let is_empty = |f: &Frontend| f.count(f.list(scope)) == 0;
            if is_empty(before) || is_empty(after) {
                continue;
            }
            prop_assert!(!begun.nothing, "{:?} {:?} is there throughout", key, scope);
            for miss in begun.misses {
                let again = lookup(states, family, (key, scope), miss);
                prop_assert!(!again.nothing && again.misses.is_empty(), "second try");
                prop_assert!(again.hits.is_subset(&allowed));
            }
        }
    }
    Ok(())
}

/// Each slot below a count names a backend of the frontend's service, in every state.
fn check_slots<A: Ord + Copy>(
    states: &[TableContent],
    family: Family<A>,
) -> Result<(), TestCaseError> {
    for state in states {
        for frontend in family(state).frontends.values() {
            for list in [0, 1] {
                for key in looked_up(frontend, list) {
                    let backend = state.slots.get(&key);
                    let backend = backend.and_then(|id| family(state).backends.get(id));
                    prop_assert_eq!(backend.map(|b| b.service), Some(frontend.service));
                }
            }
        }
    }
    Ok(())
}

/// Whether `source` may dial the frontend.
fn admits<A: Ord + Copy + Into<IpAddr>>(
    tables: &FamilyTables<A>,
    frontend: &Frontend,
    source: IpAddr,
) -> bool {
    let mut ranges = tables.source_ranges.iter();
    frontend.flags & FrontendFlags::SOURCE_RANGES == 0
        || ranges.any(|r| {
            let range = Prefix::new(r.range.address.into(), r.bits()).unwrap();
            r.range.service == frontend.service && range.contains(source)
        })
}

fn check_ranges<A: Ord + Copy + Into<IpAddr>>(
    states: &[TableContent],
    family: Family<A>,
) -> Result<(), TestCaseError> {
    let frontend =
        |state: &TableContent, key: &FrontendKey<A>| family(state).frontends.get(key).copied();
    let (first, last) = (&states[0], &states[states.len() - 1]);
    for state in states {
        for (key, now) in &family(state).frontends {
            let mut ranges = family(state).source_ranges.iter();
            let asks = now.flags & FrontendFlags::SOURCE_RANGES != 0;
            let has = ranges.any(|r| r.range.service == now.service);
            prop_assert!(
                has || !asks,
                "a frontend asks for ranges that are not there"
            );
            let ends = (frontend(first, key), frontend(last, key));
            let (Some(before), Some(after)) = ends else {
                continue;
            };
            for source in SOURCES.map(|ip| ip.parse().unwrap()) {
                let before_admits = admits(family(first), &before, source);
                let after_admits = admits(family(last), &after, source);
                let admits = admits(family(state), now, source);
                prop_assert!(
                    admits || !(before_admits && after_admits),
                    "{source} is kept out"
                );
                // The ranges of another service may have changed too by the time it lets go.
                if before.service == after.service {
                    prop_assert!(
                        !admits || before_admits || after_admits,
                        "{source} is let in"
                    );
                }
            }
        }
    }
    Ok(())
}

fn check(states: &[TableContent]) -> Result<(), TestCaseError> {
    check_slots(states, |s| &s.v4)?;
    check_slots(states, |s| &s.v6)?;
    check_lookups(states, |s| &s.v4)?;
    check_lookups(states, |s| &s.v6)?;
    check_ranges(states, |s| &s.v4)?;
    check_ranges(states, |s| &s.v6)
}

/// A world, whether it is told as a whole, and a write that fails.
type Step = (World, bool, Option<usize>);

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![3 => Just(None), 1 => (0..40usize).prop_map(Some)];
    (world(), any::<bool>(), fault)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_prefix_serves_every_scope_of_every_kind(
        settings in any_settings(),
        steps in prop::collection::vec(step(), 2..5),
    ) {
        let mut bench = Bench::with(settings.clone(), TableContent::default(), 1);
        bench.take(Update::reset(Vec::new()));
        let mut told = Vec::new();
        for (world, whole, fault) in steps {
            let before = bench.tables.content().clone();
            bench.tables.take_log();
            if let Some(write) = fault {
                bench.tables.fail_nth(write);
            }
            bench.reconciler.receive_addresses(world.addresses.clone());
            let update = if whole {
                Update::reset(world.objects.clone())
            } else {
                Update::Changes(world.changes_from(&told))
            };
            let outcome = bench.take(update);
            check(&prefixes(&before, &bench.tables.take_log()))?;
            if outcome.pending == 0 {
                let fresh = world.listed(&settings);
                prop_assert_eq!(bench.text_without_ids(), fresh.text_without_ids());
            }
            told = world.objects;
        }
    }
}
