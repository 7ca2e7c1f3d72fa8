// SPDX-License-Identifier: MIT OR Apache-2.0
//! Layout 3, and what becomes of its entries in this build's layouts.
//!
//! Only what differs is here: keys and values that are not named are the same in both.
//! **Invariant:** nothing is lost by a conversion: every field of the older layout has its place in
//! this one. Next: the README says how entries move.

use super::{FrontendKey, plain};
use crate::Address;

/// The version of the layouts that are described here.
pub const VERSION: u32 = 3;

/// The key of `FRONTENDS_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct OldFrontendKey<A> {
    /// Destination address.
    pub address: A,
    /// Destination port.
    pub port: u16,
    /// Protocol number of IANA.
    pub proto: u8,
    _pad: u8,
}

plain!(OldFrontendKey<[u8; 4]>, 8);
plain!(OldFrontendKey<[u8; 16]>, 20);

impl<A: Copy> OldFrontendKey<A> {
    /// The same key in this build's layout.
    pub const fn renewed(&self) -> FrontendKey<A> {
        FrontendKey::new(self.address, self.port, self.proto)
    }
}

/// The value of `CONNS_*` and `HALF_OPEN_*`; the fields are those of [`super::Conn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
#[expect(
    missing_docs,
    reason = "the fields are documented where they are in use"
)]
pub struct OldConn<A> {
    pub peer: A,
    pub peer_port: u16,
    pub client_port: u16,
    pub last_seen: u32,
    pub request_seen: u8,
    pub reply_seen: u8,
    pub action: u8,
    pub flags: u8,
    pub next_hop: [u8; 6],
    pub hop: u8,
    _pad: u8,
    pub packets: u32,
    pub bytes: [u32; 2],
    pub validated: u32,
    pub service: u32,
    pub backend: u32,
    pub epoch: u32,
    pub generation: u32,
    pub opened: u32,
    _reserved: u32,
}

plain!(OldConn<[u8; 4]>, 64);
plain!(OldConn<[u8; 16]>, 76);

impl<A: Address> super::Conn<A> {
    /// Takes every field over from an entry of the older layout; one by one, as in
    /// [`super::Conn::take_over`].
    #[inline(always)]
    pub fn take_over_older(&mut self, other: &OldConn<A>) {
        self.peer = A::from_words(other.peer.words());
        self.peer_port = other.peer_port;
        self.client_port = other.client_port;
        self.last_seen = other.last_seen;
        self.request_seen = other.request_seen;
        self.reply_seen = other.reply_seen;
        self.action = other.action;
        self.flags = other.flags;
        self.hop = other.hop;
        super::copy_link_address(&mut self.next_hop, &other.next_hop);
        self.packets = other.packets;
        self.bytes[0] = other.bytes[0];
        self.bytes[1] = other.bytes[1];
        self.validated = other.validated;
        self.service = other.service;
        self.backend = other.backend;
        self.epoch = other.epoch;
        self.generation = other.generation;
        self.opened = other.opened;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Conn;
    use super::*;

    #[test]
    fn every_field_of_an_older_entry_has_its_place() {
        let mut from: OldConn<[u8; 16]> = bytemuck::Zeroable::zeroed();
        for (value, byte) in (1..).zip(bytemuck::bytes_of_mut(&mut from)) {
            *byte = value;
        }
        let mut to: Conn<[u8; 16]> = bytemuck::Zeroable::zeroed();
        to.take_over_older(&from);
        // Until fields change their places among each other, all that differs is where they begin.
        let moved = size_of_val(&to) - size_of_val(&from);
        let bytes = &bytemuck::bytes_of(&to)[moved..];
        let differing: Vec<usize> = (0..bytes.len())
            .filter(|at| bytes[*at] != bytemuck::bytes_of(&from)[*at])
            .collect();
        // The bytes of padding stay zero.
        assert_eq!(differing, [35, 72, 73, 74, 75]);
    }

    #[test]
    fn an_older_key_is_the_same_key() {
        let key = OldFrontendKey {
            address: [10, 0, 1, 175],
            port: 80,
            proto: 6,
            _pad: 0,
        };
        assert_eq!(key.renewed(), FrontendKey::new([10, 0, 1, 175], 80, 6));
    }
}
