// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What holds for any sequence of packets.
//!
//! **Invariant under test:** whatever is dialled in whatever order, a reply reaches the client from
//! the very address it dialled, and no two living flows share a reply tuple.

use std::collections::BTreeMap;

use lb_common::V6;
use lb_common::abi::proto::TCP;
use lb_common::abi::{ConnKey, Hook};
use proptest::prelude::*;

use super::world::{BACKENDS, CLIENTS, End, Made as _, TARGET, World};
use crate::packet::tcp::{ACK, RST, SYN};

/// (client port, target) to the tuple behind our hook.
type Live = BTreeMap<(u16, usize), (End<V6>, End<V6>)>;

/// One step: a client port dials a target, or resets what it has there.
#[derive(Clone, Copy, Debug)]
struct Step {
    port: u16,
    target: usize,
    reset: bool,
}

fn step() -> impl Strategy<Value = Step> {
    (0_u16..4, 0_usize..6, prop::bool::weighted(0.2)).prop_map(|(port, target, reset)| Step {
        port: 40_000 + port,
        target,
        reset,
    })
}

/// Three frontends over three pods, and the pods themselves.
fn targets(world: &mut World<V6>) -> Vec<End<V6>> {
    let mut targets = vec![
        world.service(1, TCP, &[1]),
        world.service(2, TCP, &[1, 2]),
        world.service(3, TCP, &[1, 2, 3]),
    ];
    targets.extend((1..=3).map(|pod| (V6::address(BACKENDS, pod), TARGET)));
    targets
}

proptest! {
    #[test]
    fn replies_come_from_what_was_dialled(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::<V6>::new();
        let targets = targets(&mut world);
        let mut live = Live::new();
        for Step { port, target, reset } in steps {
            let client = (V6::address(CLIENTS, 1), port);
            let to = targets[target];
            if reset {
                if let Some(wire) = live.remove(&(port, target)) {
                    prop_assert_eq!(world.request(client, to, TCP, RST), Ok(wire));
                }
                // A direct connection without an entry is known by its socket alone.
                refresh_sockets(&mut world, &live);
                continue;
            }
            let wire = world.request(client, to, TCP, SYN).unwrap();
            world.reply(wire.1, wire.0, TCP, SYN | ACK).unwrap();
            live.insert((port, target), wire);
            refresh_sockets(&mut world, &live);
            for ((port, target), (from, backend)) in &live {
                let client = (V6::address(CLIENTS, 1), *port);
                prop_assert_eq!(
                    world.request(client, targets[*target], TCP, ACK),
                    Ok((*from, *backend))
                );
                prop_assert_eq!(
                    world.reply(*backend, *from, TCP, ACK),
                    Ok((targets[*target], client))
                );
            }
        }
        world.assert_paired();
    }
}

/// The client's own sockets that were made without us.
fn refresh_sockets(world: &mut World<V6>, live: &Live) {
    world.sockets = live
        .iter()
        .filter(|((port, target), (from, _))| *target >= 3 && from.1 == *port)
        .map(|(_, (from, to))| ConnKey::new(*to, *from, TCP, Hook::Egress))
        .collect();
}
