// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Masquerade ports: who gets which, and when another may have it.
//!
//! **Invariant:** a backend that waits for the last packet of a flow does not meet another client under
//! the same port while others are free.

use lb_common::abi::proto::{TCP, UDP};
use lb_common::abi::{ConnKey, ConnState, Hook, Policy};
use lb_common::{Reason, V4, V6};

use super::nat::{back, client, handshake, node, set_policy, there, with_node};
use super::world::{BACKENDS, CLIENTS, End, Made, TARGET, World};
use crate::packet::tcp::{ACK, FIN, RST, SYN};

both! {
    two_clients_with_one_port_get_two_masquerade_ports
    exhausted_masquerade_ports_are_a_counted_drop
    a_socket_of_the_node_keeps_its_port
    a_closed_flow_gives_its_masquerade_port_back
    the_port_of_a_flow_that_has_just_ended_is_left_alone_while_others_are_free
    a_client_port_that_is_used_again_does_not_free_the_masquerade_port_it_had
    a_masquerade_port_that_is_taken_from_an_ended_flow_leaves_the_clients_newer_one_alone
    a_late_answer_of_an_ended_flow_is_not_its_successors
    a_syn_that_meets_an_earlier_connection_is_repeated_from_another_port
    an_answer_that_was_overtaken_still_opens_the_connection
}

/// Ends a connection by a FIN of each side.
fn close<F: Made>(world: &mut World<F>, from: End<F>, to: End<F>, seen: (End<F>, End<F>)) {
    there(world, from, to, (TCP, FIN | ACK)).unwrap();
    back(world, seen.1, seen.0, (TCP, FIN | ACK)).unwrap();
}

mod case {
    use super::*;

    pub(super) fn two_clients_with_one_port_get_two_masquerade_ports<F: Made>() {
        let mut world = with_node::<F>();
        let frontend = world.service(1, TCP, &[1]);
        set_policy(&mut world, Policy::SNAT_ALWAYS);
        let first = handshake(&mut world, (F::address(CLIENTS, 1), 20_000), frontend);
        let second = handshake(&mut world, (F::address(CLIENTS, 2), 20_000), frontend);
        assert_eq!(first.0, (node::<F>(), 20_000));
        assert_ne!(second.0, first.0);
        world.assert_paired();
    }

    pub(super) fn exhausted_masquerade_ports_are_a_counted_drop<F: Made>() {
        let mut world = with_node::<F>();
        world.pool = 2000..=2003;
        let frontend = world.service(1, UDP, &[1]);
        set_policy(&mut world, Policy::SNAT_ALWAYS);
        let mut outcomes = Vec::new();
        for port in 40_000..40_200 {
            outcomes.push(there(&mut world, client::<F>(port), frontend, (UDP, 0)));
        }
        let served = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(served, 4);
        assert!(
            outcomes
                .iter()
                .filter_map(|outcome| outcome.err())
                .all(|reason| reason == Reason::NoMasqueradePort)
        );
    }

    pub(super) fn a_socket_of_the_node_keeps_its_port<F: Made>() {
        let mut world = with_node::<F>();
        let frontend = world.service(1, TCP, &[1]);
        set_policy(&mut world, Policy::SNAT_ALWAYS);
        let key = ConnKey::new(
            (F::address(BACKENDS, 1), TARGET),
            (node::<F>(), 20_000),
            TCP,
            Hook::Ingress,
        );
        world.sockets.insert(key);
        let (source, _) = handshake(&mut world, client::<F>(20_000), frontend);
        assert_ne!(source.1, 20_000);
    }

    pub(super) fn a_closed_flow_gives_its_masquerade_port_back<F: Made>() {
        for last in [RST, FIN | ACK] {
            let mut world = with_node::<F>();
            world.pool = 2000..=2000;
            let frontend = world.service(1, TCP, &[1]);
            set_policy(&mut world, Policy::SNAT_ALWAYS);
            let seen = handshake(&mut world, client::<F>(40_000), frontend);
            there(&mut world, client::<F>(40_000), frontend, (TCP, last)).unwrap();
            back(&mut world, seen.1, seen.0, (TCP, last)).unwrap();
            let again = handshake(&mut world, client::<F>(40_001), frontend);
            assert_eq!(again.0, seen.0);
            // The same tuple as before, at once.
            there(&mut world, client::<F>(40_001), frontend, (TCP, last)).unwrap();
            back(&mut world, again.1, again.0, (TCP, last)).unwrap();
            handshake(&mut world, client::<F>(40_001), frontend);
            world.assert_paired();
        }
    }

    pub(super) fn the_port_of_a_flow_that_has_just_ended_is_left_alone_while_others_are_free<
        F: Made,
    >() {
        let mut world = with_node::<F>();
        world.pool = 2000..=2001;
        let frontend = world.service(1, TCP, &[1]);
        set_policy(&mut world, Policy::SNAT_ALWAYS);
        for port in 40_000..40_020 {
            let seen = handshake(&mut world, client::<F>(port), frontend);
            close(&mut world, client::<F>(port), frontend, seen);
            let next = handshake(&mut world, client::<F>(port + 100), frontend);
            assert_ne!(next.0, seen.0);
            // The agent sweeps what is over.
            world.conns.clear();
        }
    }

    pub(super) fn a_client_port_that_is_used_again_does_not_free_the_masquerade_port_it_had<
        F: Made,
    >() {
        // The client's next connection goes to another backend, or to the same one.
        for backends in [&[1, 2][..], &[1]] {
            for port in 40_000..40_020 {
                let mut world = with_node::<F>();
                world.pool = 2000..=2002;
                let frontend = world.service(1, TCP, backends);
                set_policy(&mut world, Policy::SNAT_ALWAYS);
                let first = handshake(&mut world, client::<F>(port), frontend);
                close(&mut world, client::<F>(port), frontend, first);
                let second = handshake(&mut world, client::<F>(port), frontend);
                assert_eq!(second.1 == first.1, backends.len() == 1);
                assert_ne!(second, first);
                let third = handshake(&mut world, client::<F>(port + 100), frontend);
                assert_eq!(third.1, first.1);
                assert_ne!(third.0, first.0);
            }
        }
    }

    pub(super) fn a_masquerade_port_that_is_taken_from_an_ended_flow_leaves_the_clients_newer_one_alone<
        F: Made,
    >() {
        let mut world = with_node::<F>();
        world.pool = 2000..=2001;
        let frontend = world.service(1, TCP, &[1]);
        set_policy(&mut world, Policy::SNAT_ALWAYS);
        let from = client::<F>(40_000);
        let first = handshake(&mut world, from, frontend);
        close(&mut world, from, frontend, first);
        let second = handshake(&mut world, from, frontend);
        let other = handshake(&mut world, client::<F>(40_001), frontend);
        assert_eq!(other.0, first.0, "no other port is left");
        assert_eq!(there(&mut world, from, frontend, (TCP, ACK)), Ok(second));
        assert_eq!(
            back(&mut world, second.1, second.0, (TCP, ACK)),
            Ok((frontend, from))
        );
        world.assert_paired();
    }

    pub(super) fn a_late_answer_of_an_ended_flow_is_not_its_successors<F: Made>() {
        let mut world = with_node::<F>();
        let frontend = world.service(1, TCP, &[1]);
        set_policy(&mut world, Policy::SNAT_ALWAYS);
        let from = client::<F>(40_000);
        let first = handshake(&mut world, from, frontend);
        close(&mut world, from, frontend, first);
        handshake(&mut world, from, frontend);
        world.now = 1000;
        assert_eq!(
            world.request(first.1, first.0, TCP, FIN | ACK),
            Ok((first.1, first.0)),
            "left to the stack, which answers with a reset"
        );
        assert_eq!(world.count(Reason::MasqueradeStray), 1);
        world.assert_paired();
    }

    pub(super) fn a_syn_that_meets_an_earlier_connection_is_repeated_from_another_port<F: Made>() {
        for port in 40_000..40_020 {
            let mut world = with_node::<F>();
            world.pool = 2000..=2001;
            let frontend = world.service(1, TCP, &[1]);
            set_policy(&mut world, Policy::SNAT_ALWAYS);
            let from = client::<F>(port);
            let first = there(&mut world, from, frontend, (TCP, SYN)).unwrap();
            back(&mut world, first.1, first.0, (TCP, ACK)).unwrap();
            let second = handshake(&mut world, from, frontend);
            assert_ne!(second, first);
        }
    }

    pub(super) fn an_answer_that_was_overtaken_still_opens_the_connection<F: Made>() {
        let mut world = with_node::<F>();
        let frontend = world.service(1, TCP, &[1]);
        set_policy(&mut world, Policy::SNAT_ALWAYS);
        let from = client::<F>(40_000);
        let seen = there(&mut world, from, frontend, (TCP, SYN)).unwrap();
        back(&mut world, seen.1, seen.0, (TCP, ACK)).unwrap();
        assert_eq!(
            back(&mut world, seen.1, seen.0, (TCP, SYN | ACK)),
            Ok((frontend, from))
        );
        assert_eq!(there(&mut world, from, frontend, (TCP, ACK)), Ok(seen));
        assert!(world.half_open.is_empty());
        world.assert_paired();
        assert!(
            world
                .conns
                .values()
                .all(|conn| !ConnState::is_over(conn.state()))
        );
    }
}
