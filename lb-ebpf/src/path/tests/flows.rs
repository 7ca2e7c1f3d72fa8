// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Single flows: opening, answering, ending, and what a change of the Service does to them.
//!
//! **Invariant:** a test names the flow's packets in the order they would be on the wire.

use lb_common::abi::proto::{TCP, UDP};
use lb_common::abi::{ConnState, Hook, Hop, Policy, SlotKey};
use lb_common::{Reason, V4, V6};

use super::world::{BACKENDS, CLIENTS, FRONTENDS, Made, TARGET, World};
use crate::packet::tcp::{ACK, FIN, RST, SYN};
use crate::tables::NextHop;

both! {
    request_goes_to_a_backend_and_its_reply_comes_from_the_frontend
    packets_that_are_not_ours_change_nothing
    established_tcp_writes_once_a_second_at_most
    tcp_without_syn_and_without_entry_is_left_to_the_stack
    syn_sent_twice_keeps_its_backend
    closed_tcp_gives_its_port_to_a_new_connection
    reset_tcp_gives_its_port_to_a_new_connection
    tcp_goes_on_when_its_backend_and_its_service_are_gone
    udp_leaves_a_backend_that_is_gone_and_late_answers_still_arrive
    udp_leaves_a_backend_whose_id_was_used_anew
    udp_looks_at_its_backend_again_when_something_has_changed
    udp_of_a_deleted_service_is_no_longer_ours
    no_backend_is_refused_or_silent_as_the_frontend_says
    a_lookup_between_two_writes_reads_the_frontend_again
    a_policy_of_this_node_only_chooses_from_its_own_list
    every_kind_of_frontend_is_served
    a_broken_table_is_a_counted_drop
    full_connection_table_leaves_no_half_flow
    a_request_entry_without_its_reply_entry_is_made_anew
    a_reset_that_was_ignored_does_not_end_the_flow
    bridged_backend_gets_its_link_layer_address_when_it_is_known
}

mod case {
    use super::*;

    pub(super) fn request_goes_to_a_backend_and_its_reply_comes_from_the_frontend<F: Made>() {
        for proto in [TCP, UDP] {
            let mut world = World::<F>::new();
            let frontend = world.service(1, proto, &[1]);
            let client = (F::address(CLIENTS, 1), 40_000);
            let backend = (F::address(BACKENDS, 1), TARGET);
            assert_eq!(
                world.request(client, frontend, proto, SYN),
                Ok((client, backend))
            );
            assert_eq!(
                world.reply(backend, client, proto, SYN | ACK),
                Ok((frontend, client))
            );
            assert_eq!(
                world.request(client, frontend, proto, ACK),
                Ok((client, backend))
            );
            assert_eq!(world.conns.len(), 2);
            world.assert_paired();
        }
    }

    pub(super) fn packets_that_are_not_ours_change_nothing<F: Made>() {
        let mut world = World::<F>::new();
        let (address, port) = world.service(1, TCP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        for (to, proto) in [
            ((address, port + 1), TCP),
            ((F::address(FRONTENDS, 9), port), TCP),
            ((address, port), UDP),
        ] {
            assert_eq!(world.request(client, to, proto, SYN), Ok((client, to)));
            assert_eq!(world.reply(to, client, proto, SYN | ACK), Ok((to, client)));
        }
        assert_eq!((world.writes, world.counts.len()), (0, 0));
    }

    pub(super) fn established_tcp_writes_once_a_second_at_most<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        let backend = (F::address(BACKENDS, 1), TARGET);
        world.request(client, frontend, TCP, SYN).unwrap();
        world.reply(backend, client, TCP, SYN | ACK).unwrap();
        world.request(client, frontend, TCP, ACK).unwrap();
        world.writes = 0;
        for tick in 0..2500 {
            world.now = tick;
            world.request(client, frontend, TCP, ACK).unwrap();
        }
        assert_eq!(world.writes, 9);
    }

    pub(super) fn tcp_without_syn_and_without_entry_is_left_to_the_stack<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        for flags in [ACK, FIN | ACK, RST, SYN | ACK, 0] {
            assert_eq!(
                world.request(client, frontend, TCP, flags),
                Ok((client, frontend))
            );
        }
        assert_eq!(world.writes, 0);
    }

    pub(super) fn syn_sent_twice_keeps_its_backend<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1, 2, 3]);
        let client = (F::address(CLIENTS, 1), 40_000);
        let first = world.request(client, frontend, TCP, SYN);
        assert_eq!(world.request(client, frontend, TCP, SYN), first);
        assert_eq!(world.half_open.len(), 2);
    }

    pub(super) fn closed_tcp_gives_its_port_to_a_new_connection<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1, 2]);
        let client = (F::address(CLIENTS, 1), 40_000);
        let (_, first) = world.request(client, frontend, TCP, SYN).unwrap();
        world.reply(first, client, TCP, SYN | ACK).unwrap();
        world.request(client, frontend, TCP, FIN | ACK).unwrap();
        // Half closed: the same connection still.
        assert_eq!(world.request(client, frontend, TCP, SYN).unwrap().1, first);
        world.reply(first, client, TCP, FIN | ACK).unwrap();
        let (_, second) = world.request(client, frontend, TCP, SYN).unwrap();
        assert_ne!(second, first);
        assert_eq!((world.conns.len(), world.half_open.len()), (0, 2));
        world.assert_paired();
    }

    pub(super) fn reset_tcp_gives_its_port_to_a_new_connection<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1, 2]);
        let client = (F::address(CLIENTS, 1), 40_000);
        let (_, first) = world.request(client, frontend, TCP, SYN).unwrap();
        assert_eq!(world.reply(first, client, TCP, RST), Ok((frontend, client)));
        assert_ne!(world.request(client, frontend, TCP, SYN).unwrap().1, first);
        world.assert_paired();
    }

    pub(super) fn tcp_goes_on_when_its_backend_and_its_service_are_gone<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        let (_, backend) = world.request(client, frontend, TCP, SYN).unwrap();
        world.reply(backend, client, TCP, SYN | ACK).unwrap();
        world.frontends.clear();
        world.slots.clear();
        world.backends.clear();
        assert_eq!(
            world.request(client, frontend, TCP, ACK),
            Ok((client, backend))
        );
        assert_eq!(
            world.reply(backend, client, TCP, ACK),
            Ok((frontend, client))
        );
    }

    pub(super) fn udp_leaves_a_backend_that_is_gone_and_late_answers_still_arrive<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, UDP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        let (_, old) = world.request(client, frontend, UDP, 0).unwrap();
        world.backends.clear();
        world.service(1, UDP, &[2]);
        let (_, new) = world.request(client, frontend, UDP, 0).unwrap();
        assert_eq!(new, (F::address(BACKENDS, 2), TARGET));
        assert_eq!(world.count(Reason::Reselected), 1);
        assert_eq!(world.reply(old, client, UDP, 0), Ok((frontend, client)));
        assert_eq!(world.reply(new, client, UDP, 0), Ok((frontend, client)));
        assert_eq!(world.request(client, frontend, UDP, 0).unwrap().1, new);
    }

    pub(super) fn udp_leaves_a_backend_whose_id_was_used_anew<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, UDP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        world.request(client, frontend, UDP, 0).unwrap();
        let backend = world.backends.get_mut(&101).unwrap();
        backend.epoch += 1;
        backend.address = F::address(BACKENDS, 7);
        let (_, new) = world.request(client, frontend, UDP, 0).unwrap();
        assert_eq!(new, (F::address(BACKENDS, 7), TARGET));
    }

    pub(super) fn udp_looks_at_its_backend_again_when_something_has_changed<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, UDP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        world.version = 1;
        let (_, old) = world.request(client, frontend, UDP, 0).unwrap();
        world.reply(old, client, UDP, 0).unwrap();
        // As long as the version stays, the tables are not even looked at.

        world.backends.clear();
        world.service(1, UDP, &[2]);
        assert_eq!(world.request(client, frontend, UDP, 0).unwrap().1, old);
        world.version += 1;
        let (_, new) = world.request(client, frontend, UDP, 0).unwrap();
        assert_eq!(new, (F::address(BACKENDS, 2), TARGET));
        world.frontends.clear();
        world.version += 1;
        let gone = world.request(client, frontend, UDP, 0);
        assert_eq!(gone, Ok((client, frontend)));
    }

    pub(super) fn udp_of_a_deleted_service_is_no_longer_ours<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, UDP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        world.request(client, frontend, UDP, 0).unwrap();
        world.frontends.clear();
        assert_eq!(
            world.request(client, frontend, UDP, 0),
            Ok((client, frontend))
        );
    }

    pub(super) fn no_backend_is_refused_or_silent_as_the_frontend_says<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[]);
        let client = (F::address(CLIENTS, 1), 40_000);
        assert_eq!(
            world.request(client, frontend, TCP, SYN),
            Err(Reason::NoBackend)
        );
        for entry in world.frontends.values_mut() {
            entry.pod_policy = Policy::DROP_IF_EMPTY;
        }
        assert_eq!(
            world.request(client, frontend, TCP, SYN),
            Err(Reason::PolicyDrop)
        );
        assert!(world.half_open.is_empty());
    }

    pub(super) fn a_lookup_between_two_writes_reads_the_frontend_again<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1, 2]);
        // The path took its copy of the frontend before the agent shrank the list to one.
        let mut work = F::work();
        let key = lb_common::abi::FrontendKey::new(frontend.0, frontend.1, TCP);
        work.choice.frontend_key = key;
        work.choice.frontend = world.frontends[&key];
        super::super::super::select::choose_list(&mut work.choice);
        world.frontends.get_mut(&key).unwrap().cluster_count = 1;
        world.slots.remove(&SlotKey::cluster(1, 1));
        super::super::super::select::select_backend(&mut world, &mut work.choice, 1, 0).unwrap();
        assert_eq!(work.choice.backend.address, F::address(BACKENDS, 1));
    }

    pub(super) fn a_policy_of_this_node_only_chooses_from_its_own_list<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1, 2]);
        let key = lb_common::abi::FrontendKey::new(frontend.0, frontend.1, TCP);
        let entry = world.frontends.get_mut(&key).unwrap();
        (entry.pod_policy, entry.local_count) = (Policy::LOCAL_LIST, 1);
        let local = SlotKey::new(1, lb_common::abi::List::Local, 0);
        world.slots.insert(local, 102);
        for port in 40_000..40_004 {
            let client = (F::address(CLIENTS, 1), port);
            let (_, to) = world.request(client, frontend, TCP, SYN).unwrap();
            assert_eq!(to, (F::address(BACKENDS, 2), TARGET));
        }
    }

    pub(super) fn every_kind_of_frontend_is_served<F: Made>() {
        use lb_common::abi::Kind;
        for kind in [Kind::NodePort, Kind::ExternalIp, Kind::LoadBalancer] {
            let mut world = World::<F>::new();
            let frontend = world.service(1, TCP, &[1]);
            let key = lb_common::abi::FrontendKey::new(frontend.0, frontend.1, TCP);
            world.frontends.get_mut(&key).unwrap().kind = kind as u8;
            let client = (F::address(CLIENTS, 1), 40_000);
            let (_, to) = world.request(client, frontend, TCP, SYN).unwrap();
            assert_eq!(to, (F::address(BACKENDS, 1), TARGET));
        }
    }

    pub(super) fn a_broken_table_is_a_counted_drop<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        world.backends.get_mut(&101).unwrap().service = 2;
        assert_eq!(
            world.request(client, frontend, TCP, SYN),
            Err(Reason::TableMiss)
        );
        world.slots.clear();
        assert_eq!(
            world.request(client, frontend, TCP, SYN),
            Err(Reason::TableMiss)
        );
        assert!(world.half_open.is_empty());
    }

    pub(super) fn full_connection_table_leaves_no_half_flow<F: Made>() {
        for room in [0, 1] {
            let mut world = World::<F>::new();
            let frontend = world.service(1, TCP, &[1]);
            world.room = room;
            let client = (F::address(CLIENTS, 1), 40_000);
            assert_eq!(
                world.request(client, frontend, TCP, SYN),
                Err(Reason::ConnectionsFull)
            );
            assert!(world.half_open.is_empty());
        }
    }

    pub(super) fn a_request_entry_without_its_reply_entry_is_made_anew<F: Made>() {
        for proto in [TCP, UDP] {
            let mut world = World::<F>::new();
            let frontend = world.service(1, proto, &[1]);
            let client = (F::address(CLIENTS, 1), 40_000);
            let (_, backend) = world.request(client, frontend, proto, SYN).unwrap();
            world
                .half_open
                .retain(|key, _| key.hook == Hook::Ingress as u8);
            world.now = 250;
            world.request(client, frontend, proto, SYN).unwrap();
            assert_eq!(
                world.reply(backend, client, proto, SYN | ACK),
                Ok((frontend, client))
            );
            world.assert_paired();
        }
    }

    pub(super) fn a_reset_that_was_ignored_does_not_end_the_flow<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1, 2]);
        let client = (F::address(CLIENTS, 1), 40_000);
        let (_, backend) = world.request(client, frontend, TCP, SYN).unwrap();
        world.reply(backend, client, TCP, SYN | ACK).unwrap();
        world.request(client, frontend, TCP, ACK).unwrap();
        let over = |world: &World<F>| {
            world
                .conns
                .values()
                .map(|conn| ConnState::is_over(conn.state()))
                .collect::<Vec<_>>()
        };
        for (mine, theirs) in [(RST, ACK), (ACK, RST)] {
            world.request(client, frontend, TCP, mine).unwrap();
            world.reply(backend, client, TCP, theirs).unwrap();
            assert_eq!(over(&world), [true, true]);
            world.request(client, frontend, TCP, ACK).unwrap();
            world.reply(backend, client, TCP, ACK).unwrap();
            assert_eq!(over(&world), [false, false]);
        }
    }

    pub(super) fn bridged_backend_gets_its_link_layer_address_when_it_is_known<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        world.next_hop = NextHop::Unresolved;
        world.request(client, frontend, TCP, SYN).unwrap();
        let hops = |world: &World<F>| {
            world
                .half_open
                .values()
                .map(|conn| (conn.hop, conn.next_hop))
                .collect::<Vec<_>>()
        };
        assert!(hops(&world).contains(&(Hop::Unresolved as u8, [0; 6])));
        world.next_hop = NextHop::Bridged([2, 3, 4, 5, 6, 7]);
        world.request(client, frontend, TCP, ACK).unwrap();
        assert!(hops(&world).contains(&(Hop::Bridged as u8, [2, 3, 4, 5, 6, 7])));
        // The address is kept, not asked for again.
        world.next_hop = NextHop::Routed;
        world.request(client, frontend, TCP, ACK).unwrap();
        assert!(hops(&world).contains(&(Hop::Bridged as u8, [2, 3, 4, 5, 6, 7])));
    }
}
