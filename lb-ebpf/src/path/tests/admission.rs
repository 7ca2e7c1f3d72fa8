// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Whom a frontend admits, and who keeps a backend.
//!
//! **Invariant:** these are questions of a flow's first packet alone.

use lb_common::abi::proto::TCP;
use lb_common::abi::{BackendFlags, FrontendFlags, FrontendKey, Policy, ServiceStats};
use lb_common::{Reason, V4, V6};

use super::world::{BACKENDS, CLIENTS, End, Made, PORT, World};
use crate::packet::tcp::SYN;

both! {
    affinity_holds_for_every_frontend_of_a_port_and_for_its_time
    affinity_ends_with_its_backend_and_with_an_id_used_anew
    affinity_keeps_to_the_list_that_the_source_chooses_from
    sources_out_of_range_are_dropped
    what_is_dialled_is_counted
}

const NODE: u8 = 5;

fn client<F: Made>(port: u16) -> End<F> {
    (F::address(CLIENTS, 1), port)
}

mod case {
    use super::*;

    pub(super) fn affinity_holds_for_every_frontend_of_a_port_and_for_its_time<F: Made>() {
        let mut world = World::<F>::new();
        let cluster_ip = world.service(1, TCP, &[1, 2, 3]);
        let key = FrontendKey::new(cluster_ip.0, PORT, TCP);
        world.frontends.get_mut(&key).unwrap().affinity_secs = 10;
        let node_port = (F::address(NODE, 1), 30_080);
        let entry = world.frontends[&key];
        world
            .frontends
            .insert(FrontendKey::new(node_port.0, node_port.1, TCP), entry);
        let mut port = 40_000;
        let mut dial = |world: &mut World<F>, to| {
            port += 1;
            world.request(client::<F>(port), to, TCP, SYN).unwrap().1
        };
        let first = dial(&mut world, cluster_ip);
        for frontend in [cluster_ip, node_port, cluster_ip] {
            // Nine seconds since the last one: each refreshes it.
            world.now += 9 * 250;
            assert_eq!(dial(&mut world, frontend), first);
        }
        world.now += 10 * 250;
        assert_ne!(dial(&mut world, cluster_ip), first, "round-robin goes on");
    }

    pub(super) fn affinity_ends_with_its_backend_and_with_an_id_used_anew<F: Made>() {
        for anew in [false, true] {
            let mut world = World::<F>::new();
            let frontend = world.service(1, TCP, &[1]);
            let key = FrontendKey::new(frontend.0, PORT, TCP);
            world.frontends.get_mut(&key).unwrap().affinity_secs = 10_800;
            world
                .request(client::<F>(40_000), frontend, TCP, SYN)
                .unwrap();
            // Another pod is in the list now; its id is a new one, or the one that became free.
            world.service(1, TCP, &[2]);
            world.frontends.get_mut(&key).unwrap().affinity_secs = 10_800;
            let mut backend = world.backends.remove(&102).unwrap();
            world.backends.remove(&101);
            let id = if anew { 101 } else { 102 };
            backend.epoch = 2;
            world.backends.insert(id, backend);
            world
                .slots
                .insert(lb_common::abi::SlotKey::cluster(1, 0), id);
            let (_, to) = world
                .request(client::<F>(40_001), frontend, TCP, SYN)
                .unwrap();
            assert_eq!(to.0, F::address(BACKENDS, 2));
            let kept = world.affinities.values().next().unwrap();
            assert_eq!(
                (kept.backend, kept.epoch),
                (id, 2),
                "chosen afresh, not inherited"
            );
        }
    }

    pub(super) fn affinity_keeps_to_the_list_that_the_source_chooses_from<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1, 2]);
        let key = FrontendKey::new(frontend.0, PORT, TCP);
        let entry = world.frontends.get_mut(&key).unwrap();
        entry.affinity_secs = 10_800;
        let (_, first) = world
            .request(client::<F>(40_000), frontend, TCP, SYN)
            .unwrap();
        assert_eq!(first.0, F::address(BACKENDS, 1));
        // From now on only backends of this node, which the first one is not.
        let entry = world.frontends.get_mut(&key).unwrap();
        (entry.pod_policy, entry.local_count) = (Policy::LOCAL_LIST, 1);
        let local = lb_common::abi::SlotKey::new(1, lb_common::abi::List::Local, 0);
        world.slots.insert(local, 102);
        world.backends.get_mut(&102).unwrap().flags |= BackendFlags::IN_LOCAL_LIST;
        let (_, second) = world
            .request(client::<F>(40_001), frontend, TCP, SYN)
            .unwrap();
        assert_eq!(second.0, F::address(BACKENDS, 2));
        let (_, third) = world
            .request(client::<F>(40_002), frontend, TCP, SYN)
            .unwrap();
        assert_eq!(third, second);
    }

    pub(super) fn sources_out_of_range_are_dropped<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1]);
        for entry in world.frontends.values_mut() {
            entry.flags = FrontendFlags::SOURCE_RANGES;
        }
        world.admitted.insert((1, F::address(CLIENTS, 2)));
        let refused = world.request(client::<F>(40_000), frontend, TCP, SYN);
        assert_eq!(refused, Err(Reason::SourceRange));
        let admitted = (F::address(CLIENTS, 2), 40_000);
        assert!(world.request(admitted, frontend, TCP, SYN).is_ok());
    }

    pub(super) fn what_is_dialled_is_counted<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1]);
        let empty = world.service(2, TCP, &[]);
        for port in 40_000..40_003 {
            world
                .request(client::<F>(port), frontend, TCP, SYN)
                .unwrap();
            world
                .request(client::<F>(port), empty, TCP, SYN)
                .unwrap_err();
        }
        let stats = |opened, rejected| ServiceStats { opened, rejected };
        assert_eq!(world.stats[&1], stats(3, 0));
        assert_eq!(world.stats[&2], stats(0, 3));
        // Again the same SYN: no new flow.
        world
            .request(client::<F>(40_000), frontend, TCP, SYN)
            .unwrap();
        assert_eq!(world.stats[&1], stats(3, 0));
    }
}
