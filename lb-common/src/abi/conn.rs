// SPDX-License-Identifier: MIT OR Apache-2.0
//! `CONNS_V4` and `CONNS_V6`: two entries for every translated flow, one per direction.
//!
//! Written by the packet path; the agent only removes pairs that have ended.
//! The request entry is found by the packet a client sends, the reply entry by the packet its
//! backend sends back, and each leads to the other.
//! **Invariant:** keys hold the tuple exactly as it is on the wire at our hook.

use super::plain;
use crate::Address;

/// Which way a flow entry's packets go; the `direction` byte of [`ConnKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the client to the frontend, seen at tc ingress.
    Request = 0,
    /// From the backend to the client, seen at tc egress.
    Reply = 1,
}

/// One direction of one flow, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct ConnKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol number of IANA.
    pub proto: u8,
    /// A [`Direction`].
    pub direction: u8,
    _pad: [u8; 2],
}

plain!(ConnKey<[u8; 4]>, 4 + 4 + 2 + 2 + 1 + 1 + 2);
plain!(ConnKey<[u8; 16]>, 16 + 16 + 2 + 2 + 1 + 1 + 2);

impl<A: Copy> ConnKey<A> {
    /// A key; ports in host order.
    #[inline(always)]
    pub const fn new(
        source: (A, u16),
        destination: (A, u16),
        proto: u8,
        direction: Direction,
    ) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            proto,
            direction: direction as u8,
            _pad: [0; 2],
        }
    }
}

/// What has been seen of a flow: bits of [`Conn::request_seen`] and [`Conn::reply_seen`], kept
/// alike in both entries.
pub struct ConnState;

impl ConnState {
    /// The backend has answered (TCP: with SYN and ACK).
    pub const REPLIED: u8 = 1;
    /// The client has sent FIN.
    pub const FIN_REQUEST: u8 = 1 << 1;
    /// The backend has sent FIN.
    pub const FIN_REPLY: u8 = 1 << 2;
    /// Either side has sent RST.
    pub const RESET: u8 = 1 << 3;
    /// Both sides have sent FIN.
    pub const CLOSED: u8 = Self::FIN_REQUEST | Self::FIN_REPLY;

    /// True when no more data can follow, so that the tuple may be used anew.
    #[inline(always)]
    pub const fn is_over(state: u8) -> bool {
        state & Self::RESET != 0 || state & Self::CLOSED == Self::CLOSED
    }
}

/// Copies a link-layer address; see [`Conn::take_over`] for why not as a whole.
#[inline(always)]
pub const fn copy_link_address(to: &mut [u8; 6], from: &[u8; 6]) {
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
    to[3] = from[3];
    to[4] = from[4];
    to[5] = from[5];
}

/// How requests reach the backend; the `hop` byte of [`Conn`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Hop {
    /// By the host's routing.
    #[default]
    Routed = 0,
    /// Across the client's own bridge, as soon as the backend's link-layer address is known.
    Unresolved = 1,
    /// Across the client's own bridge, to `next_hop`.
    Bridged = 2,
}

/// What to do with the packets of one direction.
///
/// The request entry rewrites destination and source port, the reply entry source and destination
/// port: `peer` is the far side's new address, `client_port` the client's new port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Conn<A> {
    /// Request: the backend's address. Reply: the frontend's address.
    pub peer: A,
    /// Port that belongs to `peer`.
    pub peer_port: u16,
    /// Port of the client after translation; differs from the one before only when the reply
    /// tuple was taken.
    pub client_port: u16,
    /// Service id; 0 for a direct flow whose source port had to change.
    pub service: u32,
    /// Backend id; 0 for a direct flow.
    pub backend: u32,
    /// The backend's epoch when it was chosen.
    pub epoch: u32,
    /// The frontend's generation when the backend was chosen.
    pub generation: u32,
    /// Low 32 bits of the kernel's jiffies, written at most once a second.
    pub last_seen: u32,
    /// Bits of [`ConnState`] that requests showed; written by requests only, so that the two
    /// directions cannot lose each other's bits.
    pub request_seen: u8,
    /// Bits of [`ConnState`] that replies showed; written by replies only.
    pub reply_seen: u8,
    _pad: [u8; 2],
    /// Request: link-layer address of a backend on the client's own bridge; valid when `hop` is
    /// [`Hop::Bridged`].
    pub next_hop: [u8; 6],
    /// Request: a [`Hop`].
    pub hop: u8,
    _pad2: u8,
}

plain!(Conn<[u8; 4]>, 4 + 2 + 2 + 5 * 4 + 1 + 1 + 2 + 6 + 1 + 1);
plain!(Conn<[u8; 16]>, 16 + 2 + 2 + 5 * 4 + 1 + 1 + 2 + 6 + 1 + 1);

impl<A: Address> Conn<A> {
    /// Takes every field over from another entry.
    ///
    /// One by one: as a whole, the compiler for BPF calls `memmove`, which copies single bytes in
    /// a loop.
    #[inline(always)]
    pub fn take_over(&mut self, other: &Self) {
        self.peer = A::from_words(other.peer.words());
        self.peer_port = other.peer_port;
        self.client_port = other.client_port;
        self.service = other.service;
        self.backend = other.backend;
        self.epoch = other.epoch;
        self.generation = other.generation;
        self.last_seen = other.last_seen;
        self.request_seen = other.request_seen;
        self.reply_seen = other.reply_seen;
        self.hop = other.hop;
        copy_link_address(&mut self.next_hop, &other.next_hop);
    }
}

impl<A: Copy> Conn<A> {
    /// An entry of a flow that has just begun and is forwarded by routing.
    #[inline(always)]
    pub const fn new(peer: (A, u16), client_port: u16, now: u32) -> Self {
        Self {
            peer: peer.0,
            peer_port: peer.1,
            client_port,
            service: 0,
            backend: 0,
            epoch: 0,
            generation: 0,
            last_seen: now,
            request_seen: 0,
            reply_seen: 0,
            _pad: [0; 2],
            next_hop: [0; 6],
            hop: Hop::Routed as u8,
            _pad2: 0,
        }
    }

    /// Bits of [`ConnState`]: everything seen of the flow in either direction.
    #[inline(always)]
    pub const fn state(&self) -> u8 {
        self.request_seen | self.reply_seen
    }

    /// The key of the other direction's entry, given this one's key.
    #[inline(always)]
    pub const fn pair_key(&self, key: &ConnKey<A>) -> ConnKey<A> {
        if key.direction == Direction::Request as u8 {
            ConnKey::new(
                (self.peer, self.peer_port),
                (key.source, self.client_port),
                key.proto,
                Direction::Reply,
            )
        } else {
            ConnKey::new(
                (key.destination, self.client_port),
                (self.peer, self.peer_port),
                key.proto,
                Direction::Request,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::proto::TCP;

    const CLIENT: [u8; 4] = [10, 244, 0, 9];
    const FRONTEND: [u8; 4] = [10, 0, 1, 175];
    const BACKEND: [u8; 4] = [10, 244, 0, 5];

    #[test]
    fn each_entry_of_a_flow_leads_to_the_other_also_with_a_changed_source_port() {
        for translated_port in [40_000, 61_000] {
            let request = ConnKey::new((CLIENT, 40_000), (FRONTEND, 80), TCP, Direction::Request);
            let to_backend = Conn::new((BACKEND, 9376), translated_port, 0);
            let reply = to_backend.pair_key(&request);
            assert_eq!(
                reply,
                ConnKey::new(
                    (BACKEND, 9376),
                    (CLIENT, translated_port),
                    TCP,
                    Direction::Reply
                )
            );
            let to_client = Conn::new((FRONTEND, 80), 40_000, 0);
            assert_eq!(to_client.pair_key(&reply), request);
        }
    }

    #[test]
    fn every_field_is_taken_over() {
        let mut from: Conn<[u8; 16]> = bytemuck::Zeroable::zeroed();
        for (value, byte) in (1..).zip(bytemuck::bytes_of_mut(&mut from)) {
            *byte = value;
        }
        let mut to = Conn::new(([0; 16], 0), 0, 0);
        to.take_over(&from);
        let differing: Vec<usize> = (0..size_of_val(&to))
            .filter(|at| bytemuck::bytes_of(&to)[*at] != bytemuck::bytes_of(&from)[*at])
            .collect();
        // The three bytes of padding stay zero.
        assert_eq!(differing, [42, 43, 51]);
    }

    #[test]
    fn a_flow_is_over_after_both_fins_or_any_reset() {
        assert!(!ConnState::is_over(
            ConnState::REPLIED | ConnState::FIN_REQUEST
        ));
        assert!(ConnState::is_over(
            ConnState::FIN_REPLY | ConnState::FIN_REQUEST
        ));
        assert!(ConnState::is_over(ConnState::RESET));
    }
}
