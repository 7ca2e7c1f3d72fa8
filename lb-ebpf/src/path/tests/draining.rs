// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! A frontend that drains begins no flow and ends none.
//!
//! **Invariant:** what begins passes as if there were no frontend: nothing is written or counted.

use lb_common::abi::FrontendFlags;
use lb_common::abi::proto::{TCP, UDP};
use lb_common::{Reason, V4, V6};

use super::world::{BACKENDS, CLIENTS, Made, TARGET, World};
use crate::packet::tcp::{ACK, FIN, SYN};

both! {
    what_begins_passes_and_what_has_begun_goes_on
    a_connection_that_is_being_opened_keeps_its_backend
    datagrams_leave_a_backend_that_is_gone_for_whoever_else_serves
    nobody_is_refused
}

fn drain<F: Made>(world: &mut World<F>) {
    for frontend in world.frontends.values_mut() {
        frontend.flags |= FrontendFlags::DRAINING;
    }
}

mod case {
    use super::*;

    pub(super) fn what_begins_passes_and_what_has_begun_goes_on<F: Made>() {
        for proto in [TCP, UDP] {
            let mut world = World::<F>::new();
            let frontend = world.service(1, proto, &[1]);
            let backend = (F::address(BACKENDS, 1), TARGET);
            let [old, new] = [1, 2].map(|n| (F::address(CLIENTS, n), 40_000));
            world.request(old, frontend, proto, SYN).unwrap();
            world.reply(backend, old, proto, SYN | ACK).unwrap();
            world.request(old, frontend, proto, ACK).unwrap();
            drain(&mut world);
            world.writes = 0;
            let passed = world.request(new, frontend, proto, SYN);
            assert_eq!(passed, Ok((new, frontend)));
            assert_eq!((world.writes, world.counts.len()), (0, 0));
            for version in [0, 7, 8] {
                world.version = version;
                world.now += 10_000;
                let sent = world.request(old, frontend, proto, ACK);
                assert_eq!(sent, Ok((old, backend)), "version {version}");
                let answered = world.reply(backend, old, proto, ACK);
                assert_eq!(answered, Ok((frontend, old)));
            }
            assert_eq!(world.conns.len(), 2);
        }
    }

    pub(super) fn a_connection_that_is_being_opened_keeps_its_backend<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[1, 2, 3]);
        let client = (F::address(CLIENTS, 1), 40_000);
        let (_, backend) = world.request(client, frontend, TCP, SYN).unwrap();
        drain(&mut world);
        // The SYN is sent twice, and the answer comes between the two.
        world.reply(backend, client, TCP, SYN | ACK).unwrap();
        for flags in [SYN, ACK] {
            let sent = world.request(client, frontend, TCP, flags);
            assert_eq!(sent, Ok((client, backend)));
        }
        assert_eq!(world.conns.len(), 2);
        // Its port may be used anew: that is a new connection.
        world.request(client, frontend, TCP, FIN | ACK).unwrap();
        world.reply(backend, client, TCP, FIN | ACK).unwrap();
        let sent = world.request(client, frontend, TCP, SYN);
        assert_eq!(sent, Ok((client, frontend)));
        assert!(world.conns.is_empty() && world.half_open.is_empty());
    }

    pub(super) fn datagrams_leave_a_backend_that_is_gone_for_whoever_else_serves<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, UDP, &[1]);
        let client = (F::address(CLIENTS, 1), 40_000);
        world.request(client, frontend, UDP, 0).unwrap();
        drain(&mut world);
        world.backends.clear();
        let sent = world.request(client, frontend, UDP, 0);
        assert_eq!(sent, Ok((client, frontend)));
        assert_eq!(world.count(Reason::Reselected), 1);
    }

    pub(super) fn nobody_is_refused<F: Made>() {
        let mut world = World::<F>::new();
        let frontend = world.service(1, TCP, &[]);
        drain(&mut world);
        let client = (F::address(CLIENTS, 1), 40_000);
        let sent = world.request(client, frontend, TCP, SYN);
        assert_eq!(sent, Ok((client, frontend)));
    }
}
