// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Flows that want one reply tuple: two frontends with a common backend, a frontend and the pod.
//!
//! **Invariant:** both flows live, and each reply finds the flow that it belongs to.

use lb_common::abi::proto::{TCP, UDP};
use lb_common::abi::{ConnKey, Hook};
use lb_common::{Reason, V4, V6};

use super::world::{BACKENDS, CLIENTS, End, Made, TARGET, World};
use crate::packet::tcp::{ACK, FIN, RST, SYN};

fn two_frontends_with_one_common_backend<F: Made>(proto: u8) {
    let mut world = World::<F>::new();
    let first = world.service(1, proto, &[1]);
    let second = world.service(2, proto, &[1]);
    let client = (F::address(CLIENTS, 1), 40_000);
    let a = world.request(client, first, proto, SYN).unwrap();
    let b = world.request(client, second, proto, SYN).unwrap();
    assert_eq!(a.1, b.1);
    assert_ne!(
        a.0, b.0,
        "the second flow must have a source port of its own"
    );
    assert_eq!(world.count(Reason::SourcePortChanged), 1);
    assert_eq!(world.reply(a.1, a.0, proto, SYN | ACK), Ok((first, client)));
    assert_eq!(
        world.reply(b.1, b.0, proto, SYN | ACK),
        Ok((second, client))
    );
    assert_eq!(world.request(client, first, proto, ACK), Ok(a));
    assert_eq!(world.request(client, second, proto, ACK), Ok(b));
    world.assert_paired();
}

#[test]
fn one_client_port_to_two_frontends_with_one_common_backend() {
    for proto in [TCP, UDP] {
        two_frontends_with_one_common_backend::<V4>(proto);
        two_frontends_with_one_common_backend::<V6>(proto);
    }
}

#[test]
fn another_backend_is_preferred_to_another_source_port() {
    let mut world = World::<V4>::new();
    let first = world.service(1, TCP, &[1]);
    let second = world.service(2, TCP, &[1, 2]);
    let client = (V4::address(CLIENTS, 1), 40_000);
    world.request(client, first, TCP, SYN).unwrap();
    let (from, to) = world.request(client, second, TCP, SYN).unwrap();
    assert_eq!((from, to), (client, (V4::address(BACKENDS, 2), TARGET)));
    assert_eq!(world.count(Reason::SourcePortChanged), 0);
}

fn frontend_first_then_the_pod_itself<F: Made>(proto: u8) {
    let mut world = World::<F>::new();
    let frontend = world.service(1, proto, &[1]);
    let client = (F::address(CLIENTS, 1), 40_000);
    let pod = (F::address(BACKENDS, 1), TARGET);
    assert_eq!(
        world.request(client, frontend, proto, SYN),
        Ok((client, pod))
    );
    let (changed, to) = world.request(client, pod, proto, SYN).unwrap();
    assert_eq!(to, pod);
    assert_ne!(changed, client);
    assert_eq!(
        world.reply(pod, changed, proto, SYN | ACK),
        Ok((pod, client))
    );
    assert_eq!(
        world.reply(pod, client, proto, SYN | ACK),
        Ok((frontend, client))
    );
    assert_eq!(world.request(client, pod, proto, ACK), Ok((changed, pod)));
    assert_eq!(
        world.request(client, frontend, proto, ACK),
        Ok((client, pod))
    );
    world.assert_paired();
}

#[test]
fn one_client_port_to_a_frontend_and_then_to_the_pod_itself() {
    for proto in [TCP, UDP] {
        frontend_first_then_the_pod_itself::<V4>(proto);
        frontend_first_then_the_pod_itself::<V6>(proto);
    }
}

#[test]
fn one_client_port_to_the_pod_itself_and_then_to_a_frontend() {
    let mut world = World::<V4>::new();
    let frontend = world.service(1, TCP, &[1]);
    let client = (V4::address(CLIENTS, 1), 40_000);
    let pod = (V4::address(BACKENDS, 1), TARGET);
    assert_eq!(world.request(client, pod, TCP, SYN), Ok((client, pod)));
    world
        .sockets
        .insert(ConnKey::new(pod, client, TCP, Hook::Egress));
    let (changed, to) = world.request(client, frontend, TCP, SYN).unwrap();
    assert_eq!(to, pod);
    assert_ne!(changed, client);
    assert_eq!(world.reply(pod, client, TCP, ACK), Ok((pod, client)));
    assert_eq!(
        world.reply(pod, changed, TCP, SYN | ACK),
        Ok((frontend, client))
    );
    world.assert_paired();
}

#[test]
fn when_every_port_that_is_tried_is_taken_the_flow_is_refused_and_counted() {
    let mut world = World::<V4>::new();
    let first = world.service(1, TCP, &[1]);
    let second = world.service(2, TCP, &[1]);
    let third = world.service(3, TCP, &[1]);
    let client = (V4::address(CLIENTS, 1), 40_000);
    world.request(client, first, TCP, SYN).unwrap();
    world.randoms = vec![0; 16];
    world.request(client, second, TCP, SYN).unwrap();
    assert_eq!(
        world.request(client, third, TCP, SYN),
        Err(Reason::NoSourcePort)
    );
    world.assert_paired();
}

/// The same first packet on two CPUs at once; the other one wins at `moment`.
fn two_cpus<F: Made>(pods: &[u8], moment: Hook) {
    let mut world = World::<F>::new();
    let frontend = world.service(1, UDP, pods);
    let client = (F::address(CLIENTS, 1), 40_000);
    let mut other = world.clone();
    let first = other.request(client, frontend, UDP, 0).unwrap();
    world.cursors = other.cursors.clone();
    world.race = Some((moment, other.half_open));
    assert_eq!(world.request(client, frontend, UDP, 0), Ok(first));
    assert!(world.race.is_none());
    assert_eq!(
        world.half_open.len(),
        2,
        "nothing of the slower one is left"
    );
    assert_eq!(
        world.reply(first.1, first.0, UDP, 0),
        Ok((frontend, client))
    );
    assert_eq!(world.request(client, frontend, UDP, 0), Ok(first));
    world.assert_paired();
}

#[test]
fn one_flow_on_two_cpus_has_one_backend_and_one_pair_of_entries() {
    for moment in [Hook::Ingress, Hook::Egress] {
        for pods in [&[1][..], &[1, 2]] {
            two_cpus::<V4>(pods, moment);
            two_cpus::<V6>(pods, moment);
        }
    }
}

#[test]
fn two_flows_that_take_over_one_ended_tuple_at_once_get_one_each() {
    let mut world = World::<V4>::new();
    let ended = world.service(1, TCP, &[1]);
    let second = world.service(2, TCP, &[1]);
    let third = world.service(3, TCP, &[1]);
    let client = (V4::address(CLIENTS, 1), 40_000);
    world.request(client, ended, TCP, SYN).unwrap();
    world.request(client, ended, TCP, RST).unwrap();
    let mut other = world.clone();
    let fast = other.request(client, third, TCP, SYN).unwrap();
    // The first try to insert finds the ended flow, the second one the other CPU's.
    world.race_after(1, other.half_open);
    let slow = world.request(client, second, TCP, SYN).unwrap();
    assert_ne!(slow.0, fast.0);
    assert_eq!(
        world.reply(fast.1, fast.0, TCP, SYN | ACK),
        Ok((third, client))
    );
    assert_eq!(
        world.reply(slow.1, slow.0, TCP, SYN | ACK),
        Ok((second, client))
    );
    world.assert_paired();
}

/// A connection from `client` that both sides close, once it is established.
fn closed<F: Made>(world: &mut World<F>, client: End<F>, frontend: End<F>) -> End<F> {
    let (_, backend) = world.request(client, frontend, TCP, SYN).unwrap();
    world.reply(backend, client, TCP, SYN | ACK).unwrap();
    world.request(client, frontend, TCP, ACK).unwrap();
    world.request(client, frontend, TCP, FIN | ACK).unwrap();
    world.reply(backend, client, TCP, FIN | ACK).unwrap();
    world.request(client, frontend, TCP, ACK).unwrap();
    backend
}

fn a_backend_in_time_wait_gets_another_source_port<F: Made>() {
    let mut world = World::<F>::new();
    let first = world.service(1, TCP, &[1]);
    let second = world.service(2, TCP, &[1]);
    let client = (F::address(CLIENTS, 1), 40_000);
    let backend = closed(&mut world, client, first);
    let (source, destination) = world.request(client, second, TCP, SYN).unwrap();
    assert_eq!(destination, backend);
    assert_eq!(source.0, client.0);
    assert_ne!(source.1, client.1, "the backend still knows it");
    assert_eq!(world.count(Reason::SourcePortChanged), 1);
    assert_eq!(
        world.reply(backend, source, TCP, SYN | ACK),
        Ok((second, client))
    );
    // The client itself knows when it may dial the same again.
    let again = world.request(client, first, TCP, SYN).unwrap();
    assert_eq!(again, (client, backend));
    world.assert_paired();
}

#[test]
fn a_tuple_that_both_sides_have_closed_is_left_to_the_backend_for_a_while() {
    a_backend_in_time_wait_gets_another_source_port::<V4>();
    a_backend_in_time_wait_gets_another_source_port::<V6>();
}
