// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The packet path as a whole, on tables in memory.
//!
//! `world.rs` is the world, `flows.rs` single flows and what ends them, `nat.rs` journeys in at one
//! device and out at another, `admission.rs` who is served, `collisions.rs` flows that want the same
//! tuple, `draining.rs` frontends that begin no more, `select.rs` which backend a flow gets,
//! `sockets.rs` calls of sockets, `properties.rs` and `model.rs` what holds for any
//! sequence of packets.
//! **Invariant:** every case runs for both families through the same code.

/// Runs each function of the module `case` as a test, for both families.
macro_rules! both {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            case::$name::<V4>();
            case::$name::<V6>();
        }
    )*};
}

mod admission;
mod collisions;
mod draining;
mod flows;
mod icmp;
mod made;
mod model;
mod nat;
mod ports;
mod properties;
mod select;
mod sockets;
mod world;
