// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Whole journeys through a node: in at one device, out at another, and back.
//!
//! **Invariant:** the answer comes from the very address that was dialled, whoever was masqueraded
//! on the way.

use lb_common::abi::proto::{TCP, UDP};
use lb_common::abi::{BackendFlags, ConnFlags, Policy, PrefixTable};
use lb_common::{Reason, V4, V6};

use super::world::{BACKENDS, CLIENTS, End, Made, TARGET, World};
use crate::packet::tcp::{ACK, SYN};

both! {
    a_remote_backend_sees_the_node_and_a_local_one_the_client
    a_client_that_reaches_itself_is_answered_by_the_frontend
    a_lost_mark_is_noticed_and_the_flow_masqueraded_all_the_same
    marked_packets_of_others_are_masqueraded_too
    what_comes_from_the_node_itself_is_not_masqueraded_twice
    masquerading_is_left_to_who_goes_by_the_mark
    without_an_address_to_masquerade_with_the_packet_is_dropped
    a_masqueraded_datagram_is_answered_too
    a_reply_to_a_flow_that_is_gone_is_left_to_the_stack
    a_port_that_the_client_serves_itself_is_changed
    many_half_open_flows_evict_no_established_one
}

/// The device that leads to other nodes.
pub(super) const UPLINK: u32 = 7;
pub(super) const NODE: u8 = 5;

/// The node's address.
pub(super) fn node<F: Made>() -> F::Addr {
    F::address(NODE, 1)
}

/// A world whose node has an address, and whose frontends masquerade towards other nodes.
pub(super) fn with_node<F: Made>() -> World<F> {
    let mut world = World::<F>::new();
    world.from_pod = false;
    world
        .prefixes
        .entry(PrefixTable::OWN)
        .or_default()
        .insert(Some(node::<F>()), node::<F>());
    world
        .prefixes
        .entry(UPLINK)
        .or_default()
        .insert(None, node::<F>());
    world
}

/// Says of every frontend what sources from outside are subject to.
pub(super) fn set_policy<F: Made>(world: &mut World<F>, policy: u8) {
    for frontend in world.frontends.values_mut() {
        frontend.external_policy = policy;
    }
}

/// A request from its client to where it arrives: both hooks.
pub(super) fn there<F: Made>(
    world: &mut World<F>,
    from: End<F>,
    to: End<F>,
    (proto, flags): (u8, u8),
) -> Result<(End<F>, End<F>), Reason> {
    world.marked = false;
    world.device = 1;
    let (from, to) = world.request(from, to, proto, flags)?;
    world.device = UPLINK;
    let arrived = world.reply(from, to, proto, flags);
    world.device = 1;
    arrived
}

/// An answer from its backend to where it arrives: both hooks.
pub(super) fn back<F: Made>(
    world: &mut World<F>,
    from: End<F>,
    to: End<F>,
    (proto, flags): (u8, u8),
) -> Result<(End<F>, End<F>), Reason> {
    world.marked = false;
    world.device = UPLINK;
    let (from, to) = world.request(from, to, proto, flags)?;
    world.device = 1;
    world.reply(from, to, proto, flags)
}

/// The end of the client that these tests have.
pub(super) fn client<F: Made>(port: u16) -> End<F> {
    (F::address(CLIENTS, 1), port)
}

/// Opens a connection and checks that all three packets arrive; gives what the backend sees.
pub(super) fn handshake<F: Made>(
    world: &mut World<F>,
    from: End<F>,
    to: End<F>,
) -> (End<F>, End<F>) {
    let seen = there(world, from, to, (TCP, SYN)).unwrap();
    let answer = back(world, seen.1, seen.0, (TCP, SYN | ACK));
    assert_eq!(answer, Ok((to, from)));
    assert_eq!(there(world, from, to, (TCP, ACK)), Ok(seen));
    assert_eq!(back(world, seen.1, seen.0, (TCP, ACK)), Ok((to, from)));
    seen
}

mod case {
    use super::*;

    pub(super) fn a_remote_backend_sees_the_node_and_a_local_one_the_client<F: Made>() {
        for (flags, sees) in [
            (0, node::<F>()),
            (BackendFlags::ON_THIS_NODE, client::<F>(0).0),
        ] {
            let mut world = with_node::<F>();
            let frontend = world.service(1, TCP, &[1]);
            world.backends.get_mut(&101).unwrap().flags |= flags;
            set_policy(&mut world, Policy::SNAT_REMOTE);
            let (source, backend) = handshake(&mut world, client::<F>(40_000), frontend);
            assert_eq!(source.0, sees);
            assert_eq!(backend, (F::address(BACKENDS, 1), TARGET));
            assert!(!world.marked, "the mark does not leave the node");
            assert!(world.half_open.is_empty(), "all of the flow is established");
            world.assert_paired();
        }
    }

    pub(super) fn a_client_that_reaches_itself_is_answered_by_the_frontend<F: Made>() {
        let mut world = with_node::<F>();
        let frontend = world.service(1, TCP, &[1]);
        let own = (F::address(BACKENDS, 1), 40_000);
        let (source, backend) = handshake(&mut world, own, frontend);
        assert_eq!((source.0, backend), (node::<F>(), (own.0, TARGET)));
    }

    pub(super) fn a_lost_mark_is_noticed_and_the_flow_masqueraded_all_the_same<F: Made>() {
        let mut world = with_node::<F>();
        let frontend = world.service(1, TCP, &[1]);
        set_policy(&mut world, Policy::SNAT_REMOTE);
        let from = client::<F>(40_000);
        let lose = |world: &mut World<F>, flags| {
            world.device = 1;
            let (from, to) = world.request(from, frontend, TCP, flags).unwrap();
            world.marked = false;
            world.device = UPLINK;
            world.reply(from, to, TCP, flags).unwrap()
        };
        let seen = lose(&mut world, SYN);
        assert_eq!(seen.0.0, node::<F>());
        assert_eq!(
            back(&mut world, seen.1, seen.0, (TCP, SYN | ACK)),
            Ok((frontend, from))
        );
        assert_eq!(lose(&mut world, ACK), seen);
        assert_eq!(world.count(Reason::MarkLost), 1);
    }

    pub(super) fn marked_packets_of_others_are_masqueraded_too<F: Made>() {
        let mut world = with_node::<F>();
        let from = client::<F>(20_000);
        let to = (F::address(BACKENDS, 9), 443);
        world.marked = true;
        world.device = UPLINK;
        let seen = world.reply(from, to, TCP, SYN).unwrap();
        assert_eq!(
            seen,
            ((node::<F>(), 20_000), to),
            "its own port, if it is free"
        );
        assert!(!world.marked);
        world.device = UPLINK;
        let answer = world.request(to, seen.0, TCP, SYN | ACK);
        assert_eq!(answer, Ok((to, from)));
    }

    pub(super) fn what_comes_from_the_node_itself_is_not_masqueraded_twice<F: Made>() {
        let mut world = with_node::<F>();
        let from = (node::<F>(), 20_000);
        let to = (F::address(BACKENDS, 9), 443);
        world.marked = true;
        world.device = UPLINK;
        assert_eq!(world.reply(from, to, TCP, SYN), Ok((from, to)));
        assert!(!world.marked && world.half_open.is_empty());
    }

    pub(super) fn masquerading_is_left_to_who_goes_by_the_mark<F: Made>() {
        let mut world = with_node::<F>();
        world.by_mark = true;
        let frontend = world.service(1, TCP, &[1]);
        set_policy(&mut world, Policy::SNAT_REMOTE);
        let from = client::<F>(40_000);
        let seen = there(&mut world, from, frontend, (TCP, SYN)).unwrap();
        assert_eq!(seen.0, from);
        assert!(world.marked);
        assert_eq!(world.half_open.len(), 2);
    }

    pub(super) fn without_an_address_to_masquerade_with_the_packet_is_dropped<F: Made>() {
        let mut world = with_node::<F>();
        world.prefixes.remove(&UPLINK);
        let frontend = world.service(1, TCP, &[1]);
        set_policy(&mut world, Policy::SNAT_ALWAYS);
        assert_eq!(
            there(&mut world, client::<F>(40_000), frontend, (TCP, SYN)),
            Err(Reason::NoMasqueradeAddress)
        );
    }

    pub(super) fn a_masqueraded_datagram_is_answered_too<F: Made>() {
        let mut world = with_node::<F>();
        let frontend = world.service(1, UDP, &[1]);
        set_policy(&mut world, Policy::SNAT_ALWAYS);
        for _ in 0..3 {
            let seen = there(&mut world, client::<F>(40_000), frontend, (UDP, 0)).unwrap();
            assert_eq!(seen.0.0, node::<F>());
            let answer = back(&mut world, seen.1, seen.0, (UDP, 0));
            assert_eq!(answer, Ok((frontend, client::<F>(40_000))));
        }
        assert_eq!((world.conns.len(), world.half_open.len()), (4, 0));
    }

    pub(super) fn a_reply_to_a_flow_that_is_gone_is_left_to_the_stack<F: Made>() {
        let mut world = with_node::<F>();
        let frontend = world.service(1, TCP, &[1]);
        set_policy(&mut world, Policy::SNAT_ALWAYS);
        let seen = handshake(&mut world, client::<F>(40_000), frontend);
        world
            .conns
            .retain(|_, conn| conn.action != lb_common::abi::Action::Snat as u8);
        world.now = 1000;
        let reply = world.request(seen.1, seen.0, TCP, ACK);
        assert_eq!(reply, Ok((seen.1, seen.0)));
        assert_eq!(world.count(Reason::MasqueradeStray), 1);
    }

    pub(super) fn a_port_that_the_client_serves_itself_is_changed<F: Made>() {
        let mut world = with_node::<F>();
        let frontend = world.service(1, TCP, &[1]);
        let own = (F::address(BACKENDS, 1), TARGET);
        let (_, backend) = handshake(&mut world, own, frontend);
        assert_eq!(backend, own);
    }

    pub(super) fn many_half_open_flows_evict_no_established_one<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1]);
        let backend = (F::address(BACKENDS, 1), TARGET);
        world
            .request(client::<F>(40_000), frontend, TCP, SYN)
            .unwrap();
        world
            .reply(backend, client::<F>(40_000), TCP, SYN | ACK)
            .unwrap();
        world
            .request(client::<F>(40_000), frontend, TCP, ACK)
            .unwrap();
        let other = F::address(CLIENTS, 9);
        for port in 1000..1200 {
            world.request((other, port), frontend, TCP, SYN).unwrap();
            world.reply(backend, (other, port), TCP, SYN | ACK).unwrap();
        }
        assert_eq!((world.conns.len(), world.half_open.len()), (2, 400));
        world.half_open.clear();
        let reply = world.reply(backend, client::<F>(40_000), TCP, ACK);
        assert_eq!(reply, Ok((frontend, client::<F>(40_000))));
        assert_eq!(
            world.conns.values().map(|conn| conn.packets).sum::<u32>(),
            4
        );
        assert!(
            world
                .conns
                .values()
                .all(|conn| conn.flags & ConnFlags::PENDING == 0)
        );
    }
}
