// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Choosing a backend, by each algorithm.
//!
//! **Invariant:** every case runs for both families; how tables are filled is the agent's business,
//! so those here are filled in turn.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::proto::TCP;
use lb_common::abi::{Algorithm, FrontendKey, List, Policy, SlotKey};
use lb_common::{Reason, V4, V6};

use super::world::{BACKENDS, CLIENTS, End, FRONTENDS, Made, PORT, TARGET, World};
use crate::packet::tcp::SYN;

const SIZE: u16 = 512;
const PODS: [u8; 4] = [1, 2, 3, 4];

/// Makes service `n` choose by `algorithm`, and fills the table beside `list` with `pods` in turn.
fn with_table<F: Made>(world: &mut World<F>, n: u8, algorithm: Algorithm, pods: &[u8]) {
    let key = FrontendKey::new(F::address(FRONTENDS, n), PORT, TCP);
    let frontend = world.frontends.get_mut(&key).unwrap();
    frontend.algorithm = algorithm as u8;
    frontend.table_size = SIZE;
    fill(world, n, List::Cluster, pods);
}

fn fill<F: Made>(world: &mut World<F>, n: u8, list: List, pods: &[u8]) {
    let service = u32::from(n);
    for (slot, pod) in (0..SIZE).zip(pods.iter().cycle()) {
        let id = service * 100 + u32::from(*pod);
        world.slots.insert(SlotKey::table(service, list, slot), id);
    }
}

fn world<F: Made>(algorithm: Algorithm) -> (World<F>, End<F>) {
    let mut world = World::new();
    let frontend = world.service(1, TCP, &PODS);
    with_table(&mut world, 1, algorithm, &PODS);
    (world, frontend)
}

/// The backend that a new flow from `client` gets in a copy of the world.
fn choice<F: Made>(world: &World<F>, client: End<F>, frontend: End<F>) -> End<F> {
    let reached = world.clone().request(client, frontend, TCP, SYN);
    reached.unwrap().1
}

fn clients<F: Made>() -> impl Iterator<Item = End<F>> {
    (0..2_000).map(|n: u16| (F::address(CLIENTS, (n % 200) as u8), 40_000 + n))
}

both! {
    a_hash_spreads_flows_over_all_backends
    one_flow_gets_one_backend_whatever_came_before
    a_source_gets_one_backend_whatever_its_port
    a_flow_whose_backend_is_no_good_gets_another_one
    one_backend_needs_no_table
    each_list_has_a_table_of_its_own
    a_table_that_went_away_during_the_lookup_is_not_missed
    a_table_with_a_hole_is_a_counted_drop
    an_algorithm_of_a_newer_agent_spreads_evenly
}

mod case {
    use super::*;

    pub(super) fn a_hash_spreads_flows_over_all_backends<F: Made>() {
        for (algorithm, least) in [(Algorithm::Maglev, 400), (Algorithm::SourceHash, 300)] {
            let (world, frontend) = world::<F>(algorithm);
            let mut hits = BTreeMap::new();
            for client in clients::<F>() {
                *hits.entry(choice(&world, client, frontend)).or_insert(0) += 1;
            }
            assert_eq!(hits.len(), PODS.len());
            assert!(hits.values().all(|hits| *hits >= least), "{hits:?}");
        }
    }

    pub(super) fn one_flow_gets_one_backend_whatever_came_before<F: Made>() {
        let (fresh, frontend) = world::<F>(Algorithm::Maglev);
        let mut used = fresh.clone();
        for client in clients::<F>().take(100) {
            let reached = used.request(client, frontend, TCP, SYN).unwrap().1;
            assert_eq!(reached, choice(&fresh, client, frontend));
        }
        assert!(used.cursors.is_empty(), "nothing is written but flows");
    }

    pub(super) fn a_source_gets_one_backend_whatever_its_port<F: Made>() {
        let (mut source_hash, frontend) = world::<F>(Algorithm::SourceHash);
        let (maglev, _) = world::<F>(Algorithm::Maglev);
        let other = source_hash.service(2, TCP, &PODS);
        with_table(&mut source_hash, 2, Algorithm::SourceHash, &PODS);
        for n in 1..20 {
            let address = F::address(CLIENTS, n);
            let by = |world: &World<F>, to: End<F>| -> BTreeSet<End<F>> {
                let ports = 40_000..40_060;
                ports
                    .map(|port| choice(world, (address, port), to))
                    .collect()
            };
            assert_eq!(by(&source_hash, frontend).len(), 1);
            assert_eq!(by(&source_hash, frontend), by(&source_hash, other));
            assert_eq!(by(&maglev, frontend).len(), PODS.len());
        }
    }

    pub(super) fn a_flow_whose_backend_is_no_good_gets_another_one<F: Made>() {
        let (mut world, _) = world::<F>(Algorithm::Maglev);
        let client = (F::address(CLIENTS, 1), 40_000);
        let frontends: Vec<End<F>> = (1..=3).map(|n| world.service(n, TCP, &PODS)).collect();
        for n in 1..=3 {
            with_table(&mut world, n, Algorithm::Maglev, &[2]);
        }
        // One tuple each towards the same pod: the others must be used before a port changes.
        let mut reached = BTreeSet::new();
        for frontend in frontends {
            let (from, to) = world.request(client, frontend, TCP, SYN).unwrap();
            assert_eq!(from, client);
            reached.insert(to);
        }
        assert_eq!(reached.len(), 3);
        assert_eq!(world.count(Reason::SourcePortChanged), 0);
        world.assert_paired();
    }

    pub(super) fn one_backend_needs_no_table<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[7]);
        with_table(&mut world, 1, Algorithm::Maglev, &[]);
        for client in clients::<F>().take(20) {
            let expected = (F::address(BACKENDS, 7), TARGET);
            assert_eq!(choice(&world, client, frontend), expected);
        }
    }

    pub(super) fn each_list_has_a_table_of_its_own<F: Made>() {
        let (mut world, frontend) = world::<F>(Algorithm::Maglev);
        for (slot, pod) in [3, 4].into_iter().enumerate() {
            let slot = u16::try_from(slot).unwrap();
            let key = SlotKey::new(1, List::Local, slot);
            world.slots.insert(key, 100 + pod);
        }
        fill(&mut world, 1, List::Local, &[3, 4]);
        let value = world.frontends.values_mut().next().unwrap();
        value.local_count = 2;
        for policy in [
            &mut value.pod_policy,
            &mut value.node_policy,
            &mut value.external_policy,
        ] {
            *policy |= Policy::LOCAL_LIST;
        }
        let reached: BTreeSet<End<F>> = clients::<F>()
            .map(|client| choice(&world, client, frontend))
            .collect();
        let local = [3, 4].map(|pod| (F::address(BACKENDS, pod), TARGET));
        assert_eq!(reached, BTreeSet::from(local));
    }

    pub(super) fn a_table_that_went_away_during_the_lookup_is_not_missed<F: Made>() {
        let (mut world, frontend) = world::<F>(Algorithm::Maglev);
        let key = FrontendKey::new(frontend.0, PORT, TCP);
        // What a lookup that is under way has read of the frontend; the table is gone since.
        let mut work = F::work();
        work.choice.frontend_key = key;
        work.choice.frontend = world.frontends[&key];
        world.slots.retain(|key, _| key.list < List::TABLES);
        world.frontends.get_mut(&key).unwrap().table_size = 0;
        crate::path::select::choose_list(&mut work.choice);
        let position = u64::MAX / 3;
        crate::path::select::select_backend(&mut world, &mut work.choice, position, 0).unwrap();
        assert!(
            PODS.map(|pod| 100 + u32::from(pod))
                .contains(&work.choice.backend_id)
        );
    }

    pub(super) fn a_table_with_a_hole_is_a_counted_drop<F: Made>() {
        let (mut world, frontend) = world::<F>(Algorithm::Maglev);
        world.slots.retain(|key, _| key.list < List::TABLES);
        let client = (F::address(CLIENTS, 1), 40_000);
        assert_eq!(
            world.request(client, frontend, TCP, SYN),
            Err(Reason::TableMiss)
        );
    }

    pub(super) fn an_algorithm_of_a_newer_agent_spreads_evenly<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &PODS);
        world.frontends.values_mut().next().unwrap().algorithm = 200;
        let mut reached = BTreeSet::new();
        for client in clients::<F>().take(PODS.len()) {
            reached.insert(world.request(client, frontend, TCP, SYN).unwrap().1);
        }
        assert_eq!(reached.len(), PODS.len());
    }
}
