// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Messages about packets of a flow, at both hooks and from everywhere.

use lb_common::abi::proto::{TCP, UDP};
use lb_common::abi::{Action, Conn, ConnFlags, ConnKey, Hook};
use lb_common::{Reason, V4, V6};

use super::world::{BACKENDS, CLIENTS, End, FRONTENDS, Made, TARGET, World};
use crate::icmp::{Kind, Message};
use crate::packet::Packet;
use crate::packet::tcp::{ACK, SYN};
use crate::path::{Outcome, Work, icmp};

/// A message on the wire: from, to, and the quoted packet's ends.
type Told<F> = (
    <F as lb_common::Family>::Addr,
    <F as lb_common::Family>::Addr,
    End<F>,
    End<F>,
);

/// A message after a hook: as it is then, none when it was passed, or why it was dropped.
fn told<F: Made>(
    world: &mut World<F>,
    hook: Hook,
    kind: Kind,
    proto: u8,
    (source, destination, from, to): Told<F>,
) -> Result<Option<Told<F>>, Reason> {
    let mut work: Work<F::Addr> = F::work();
    work.packet = Packet {
        source: from.0,
        source_port: from.1,
        destination: to.0,
        destination_port: to.1,
        proto,
        ..work.packet
    };
    let message = Message {
        source,
        destination,
        kind,
        ..Message::new()
    };
    match icmp::<F, _>(world, &mut work, &message, hook) {
        Outcome::Edit => {}
        Outcome::Refused(reason) => return Err(reason),
        Outcome::Pass | Outcome::Begin => return Ok(None),
    }
    let edit = work.edit;
    let (mut source, mut destination) = (source, destination);
    let (mut from, mut to) = ((from.0, edit.source_port), (to.0, edit.destination_port));
    match hook {
        Hook::Ingress => {
            from.0 = edit.address;
            destination = edit.address;
        }
        Hook::Egress => {
            to.0 = edit.address;
            source = edit.address;
        }
    }
    Ok(Some((source, destination, from, to)))
}

both! {
    an_error_about_a_request_reaches_the_client_as_about_what_it_sent
    an_error_about_a_reply_reaches_the_backend_as_about_what_it_sent
    errors_about_a_masqueraded_flow_are_translated_at_each_hook
    redirects_about_a_translated_flow_are_dropped
    messages_that_are_not_about_a_flow_are_passed
    a_masquerade_that_is_not_chosen_yet_translates_nothing
}

mod case {
    use super::*;

    fn ends<F: Made>() -> (End<F>, End<F>, End<F>) {
        (
            (F::address(CLIENTS, 1), 40_000),
            (F::address(FRONTENDS, 1), 80),
            (F::address(BACKENDS, 1), TARGET),
        )
    }

    /// A world with one flow from the client by the frontend to the backend.
    fn with_flow<F: Made>(proto: u8) -> World<F> {
        let mut world = World::<F>::new();
        let (client, _, backend) = ends::<F>();
        let frontend = world.service(1, proto, &[1]);
        world.request(client, frontend, proto, SYN).unwrap();
        world.reply(backend, client, proto, SYN | ACK).unwrap();
        world
    }

    pub(super) fn an_error_about_a_request_reaches_the_client_as_about_what_it_sent<F: Made>() {
        let (client, frontend, backend) = ends::<F>();
        let router = F::address(CLIENTS, 99);
        for proto in [TCP, UDP] {
            let mut world = with_flow::<F>(proto);
            for from in [router, backend.0] {
                let there = (from, client.0, client, backend);
                assert_eq!(
                    told(&mut world, Hook::Egress, Kind::Error, proto, there),
                    Ok(Some((frontend.0, client.0, client, frontend)))
                );
            }
            assert_eq!(world.count(Reason::IcmpError), 2);
        }
    }

    pub(super) fn an_error_about_a_reply_reaches_the_backend_as_about_what_it_sent<F: Made>() {
        let (client, frontend, backend) = ends::<F>();
        for proto in [TCP, UDP] {
            let mut world = with_flow::<F>(proto);
            for from in [client.0, F::address(CLIENTS, 99)] {
                let here = (from, frontend.0, frontend, client);
                assert_eq!(
                    told(&mut world, Hook::Ingress, Kind::Error, proto, here),
                    Ok(Some((from, backend.0, backend, client)))
                );
            }
        }
    }

    pub(super) fn errors_about_a_masqueraded_flow_are_translated_at_each_hook<F: Made>() {
        let (client, _, backend) = ends::<F>();
        let node = (F::address(CLIENTS, 200), 61_000);
        let router = F::address(CLIENTS, 99);
        let mut world = World::<F>::new();
        let request = ConnKey::new(client, backend, TCP, Hook::Egress);
        let masquerade = Conn::new(Action::Snat, node, backend.1, 0);
        let reply = masquerade.pair_key(&request);
        world.conns.insert(request, masquerade);
        world
            .conns
            .insert(reply, Conn::new(Action::UndoSnat, client, backend.1, 0));
        let about_request = (router, node.0, node, backend);
        assert_eq!(
            told(&mut world, Hook::Ingress, Kind::Error, TCP, about_request),
            Ok(Some((router, client.0, client, backend)))
        );
        // Where replies must come back to this node, nobody behind it may speak for himself.
        for from in [router, client.0] {
            let about_reply = (from, backend.0, backend, client);
            assert_eq!(
                told(&mut world, Hook::Egress, Kind::Error, TCP, about_reply),
                Ok(Some((node.0, backend.0, backend, node)))
            );
        }
    }

    pub(super) fn redirects_about_a_translated_flow_are_dropped<F: Made>() {
        let (client, frontend, backend) = ends::<F>();
        let mut world = with_flow::<F>(TCP);
        let router = F::address(CLIENTS, 99);
        for (hook, message) in [
            (Hook::Egress, (router, client.0, client, backend)),
            (Hook::Ingress, (router, frontend.0, frontend, client)),
        ] {
            let dropped = told(&mut world, hook, Kind::Redirect, TCP, message);
            assert_eq!(dropped, Err(Reason::Redirect));
        }
        let direct = (router, client.0, client, (backend.0, 22));
        let passed = told(&mut world, Hook::Egress, Kind::Redirect, TCP, direct);
        assert_eq!(passed, Ok(None));
    }

    pub(super) fn messages_that_are_not_about_a_flow_are_passed<F: Made>() {
        let (client, frontend, backend) = ends::<F>();
        let router = F::address(CLIENTS, 99);
        let mut world = with_flow::<F>(TCP);
        let (conns, writes) = (world.conns.clone(), world.writes);
        for (hook, proto, message) in [
            // The flow's own packets, but at the other hook.
            (Hook::Ingress, TCP, (router, client.0, client, backend)),
            (Hook::Egress, TCP, (router, frontend.0, frontend, client)),
            // Another protocol, another port.
            (Hook::Egress, UDP, (router, client.0, client, backend)),
            (
                Hook::Egress,
                TCP,
                (router, client.0, client, (backend.0, 1)),
            ),
            // To somebody else than the quoted packet's sender.
            (Hook::Egress, TCP, (router, router, client, backend)),
            (Hook::Ingress, TCP, (router, client.0, frontend, client)),
        ] {
            for kind in [Kind::Error, Kind::Redirect] {
                assert_eq!(told(&mut world, hook, kind, proto, message), Ok(None));
            }
        }
        assert_eq!((world.conns, world.writes), (conns, writes));
        assert!(world.counts.is_empty());
    }

    pub(super) fn a_masquerade_that_is_not_chosen_yet_translates_nothing<F: Made>() {
        let (client, _, backend) = ends::<F>();
        let mut world = World::<F>::new();
        let mut pending = Conn::new(Action::Snat, backend, backend.1, 0);
        pending.flags = ConnFlags::PENDING;
        let key = ConnKey::new(client, backend, TCP, Hook::Egress);
        world.conns.insert(key, pending);
        let message = (client.0, backend.0, backend, client);
        assert_eq!(
            told(&mut world, Hook::Egress, Kind::Error, TCP, message),
            Ok(None)
        );
    }
}
