// SPDX-License-Identifier: MIT OR Apache-2.0
//! `CONNS_V4`, `CONNS_V6`, `HALF_OPEN_V4`, `HALF_OPEN_V6`: two entries for every translated flow,
//! one for each direction.
//!
//! Written by the packet path; the agent only removes pairs that have ended. A flow begins in
//! `HALF_OPEN_*`, whose oldest entries give way to new ones, and moves to `CONNS_*`, where nothing
//! gives way, when both sides have spoken.
//! The request entry is found by the packet a client sends, the reply entry by the packet its
//! backend sends back, and each leads to the other. A masqueraded flow has a second pair, whose
//! request entry is found at egress and whose reply entry at ingress.
//! **Invariant:** keys hold the tuple exactly as it is on the wire at our hook.

use super::plain;
use crate::{Address, opaque};

/// Which way packets go: whose bits of [`ConnState`] they set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the client to the backend.
    Request = 0,
    /// From the backend to the client.
    Reply = 1,
}

/// Where a flow entry's packets are seen; the `hook` byte of [`ConnKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// tc ingress of a managed device.
    Ingress = 0,
    /// tc egress of a managed device.
    Egress = 1,
}

/// What becomes of an entry's packets; the `action` byte of [`Conn`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// A request at ingress: its destination becomes the backend.
    #[default]
    Dnat = 0,
    /// A reply at egress: its source becomes the frontend.
    UndoDnat = 1,
    /// A request at egress: its source becomes the masquerade address.
    Snat = 2,
    /// A reply at ingress: its destination becomes the original source.
    UndoSnat = 3,
}

impl Action {
    /// The hook that the action's packets are seen at.
    #[inline(always)]
    pub const fn hook(self) -> Hook {
        match self {
            Self::Dnat | Self::UndoSnat => Hook::Ingress,
            Self::UndoDnat | Self::Snat => Hook::Egress,
        }
    }

    /// The direction of the action's packets.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        match self {
            Self::Dnat | Self::Snat => Direction::Request,
            Self::UndoDnat | Self::UndoSnat => Direction::Reply,
        }
    }

    /// The action of a stored byte.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Dnat),
            1 => Some(Self::UndoDnat),
            2 => Some(Self::Snat),
            3 => Some(Self::UndoSnat),
            _ => None,
        }
    }
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
    /// A [`Hook`].
    pub hook: u8,
    _pad: [u8; 2],
}

plain!(ConnKey<[u8; 4]>, 4 + 4 + 2 + 2 + 1 + 1 + 2);
plain!(ConnKey<[u8; 16]>, 16 + 16 + 2 + 2 + 1 + 1 + 2);

impl<A: Copy> ConnKey<A> {
    /// A key; ports in host order.
    #[inline(always)]
    pub const fn new(source: (A, u16), destination: (A, u16), proto: u8, hook: Hook) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            proto,
            hook: hook as u8,
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

/// Bits of [`Conn::flags`].
pub struct ConnFlags;

impl ConnFlags {
    /// Requests of the flow are masqueraded when they leave the node.
    pub const MASQUERADED: u8 = 1;
    /// The masquerade address and port are not chosen yet: `peer` is void.
    pub const PENDING: u8 = 1 << 1;
}

/// What to do with the packets of one direction, and how many there were.
///
/// With DNAT, the request entry rewrites destination and source port, the reply entry source and
/// destination port: `peer` is the far side's new address, `client_port` the client's new port.
/// With SNAT, `peer` is the new source of requests and the new destination of replies, and
/// `client_port` is the port of the other side, which stays as it is.
///
/// What every packet reads or writes comes first. In IPv4 key and value are 80 bytes, so that an
/// element of the kernel's hash is 128 and never lies in more cache lines than it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Conn<A> {
    /// Zero: it only moves what follows.
    #[cfg(feature = "layout-next")]
    _room: [u32; 2],
    /// Request: the backend's address. Reply: the frontend's address.
    pub peer: A,
    /// Port that belongs to `peer`.
    pub peer_port: u16,
    /// Port of the client after translation; differs from the one before only when the reply
    /// tuple was taken.
    pub client_port: u16,
    /// Low 32 bits of the kernel's jiffies, written at most once a second.
    pub last_seen: u32,
    /// Bits of [`ConnState`] that requests showed; written by requests only, so that the two
    /// directions cannot lose each other's bits.
    pub request_seen: u8,
    /// Bits of [`ConnState`] that replies showed; written by replies only.
    pub reply_seen: u8,
    /// An [`Action`].
    pub action: u8,
    /// Bits of [`ConnFlags`].
    pub flags: u8,
    /// Request: link-layer address of a backend on the client's own bridge; valid when `hop` is
    /// [`Hop::Bridged`].
    pub next_hop: [u8; 6],
    /// Request: a [`Hop`].
    pub hop: u8,
    _pad: u8,
    /// Packets of this entry's direction.
    pub packets: u32,
    /// Bytes in them from the network header on: low and high 32 bits.
    pub bytes: [u32; 2],
    /// Request of UDP: the entry of `VERSIONS` at which backend and frontend were last found to be
    /// the flow's own; 0: never.
    pub validated: u32,
    /// Service id; 0 for a direct flow whose source port had to change.
    pub service: u32,
    /// Backend id; 0 for a direct flow.
    pub backend: u32,
    /// The backend's epoch when it was chosen.
    pub epoch: u32,
    /// The frontend's generation when the backend was chosen.
    pub generation: u32,
    /// `last_seen` when the flow began.
    pub opened: u32,
    /// Zero.
    pub reserved: u32,
}

/// What the layout of the next version has more than this one's.
const ROOM: usize = if cfg!(feature = "layout-next") { 8 } else { 0 };

plain!(Conn<[u8; 4]>, ROOM + 64);
plain!(Conn<[u8; 16]>, ROOM + 76);

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
        self.last_seen = other.last_seen;
        self.request_seen = other.request_seen;
        self.reply_seen = other.reply_seen;
        self.action = other.action;
        self.flags = other.flags;
        self.hop = other.hop;
        copy_link_address(&mut self.next_hop, &other.next_hop);
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

impl<A: Copy> Conn<A> {
    /// An entry of a flow that has just begun and is forwarded by routing.
    ///
    /// The compiler is not told that zero is zero: it would make one `memset` of zeros in a row, a loop
    /// over bytes. The flags part what is before them from what is after them.
    #[inline(always)]
    pub fn new(action: Action, peer: (A, u16), client_port: u16, now: u32) -> Self {
        let zero = opaque(0);
        #[expect(clippy::cast_possible_truncation, reason = "zero")]
        let no_flags = zero as u8;
        Self {
            #[cfg(feature = "layout-next")]
            _room: [0; 2],
            peer: peer.0,
            peer_port: peer.1,
            client_port,
            last_seen: now,
            request_seen: 0,
            reply_seen: 0,
            action: action as u8,
            flags: no_flags,
            next_hop: [0; 6],
            hop: Hop::Routed as u8,
            _pad: 0,
            packets: zero,
            bytes: [zero, zero],
            validated: zero,
            service: zero,
            backend: zero,
            epoch: zero,
            generation: zero,
            opened: now,
            reserved: 0,
        }
    }

    /// Bits of [`ConnState`]: everything seen of the flow in either direction.
    #[inline(always)]
    pub const fn state(&self) -> u8 {
        self.request_seen | self.reply_seen
    }

    /// Bytes of this entry's direction.
    #[inline(always)]
    pub const fn byte_count(&self) -> u64 {
        (self.bytes[1] as u64) << 32 | self.bytes[0] as u64
    }

    /// The key of the other direction's entry, given this one's key.
    #[inline(always)]
    pub const fn pair_key(&self, key: &ConnKey<A>) -> ConnKey<A> {
        let hook = if key.hook == Hook::Ingress as u8 {
            Hook::Egress
        } else {
            Hook::Ingress
        };
        // What is rewritten: the destination at ingress, the source at egress.
        if key.hook == Hook::Ingress as u8 {
            ConnKey::new(
                (self.peer, self.peer_port),
                (key.source, self.client_port),
                key.proto,
                hook,
            )
        } else {
            ConnKey::new(
                (key.destination, self.client_port),
                (self.peer, self.peer_port),
                key.proto,
                hook,
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
    const NODE: [u8; 4] = [192, 0, 2, 1];

    #[test]
    fn each_entry_of_a_flow_leads_to_the_other_also_with_a_changed_source_port() {
        for translated_port in [40_000, 61_000] {
            let request = ConnKey::new((CLIENT, 40_000), (FRONTEND, 80), TCP, Hook::Ingress);
            let to_backend = Conn::new(Action::Dnat, (BACKEND, 9376), translated_port, 0);
            let reply = to_backend.pair_key(&request);
            assert_eq!(
                reply,
                ConnKey::new(
                    (BACKEND, 9376),
                    (CLIENT, translated_port),
                    TCP,
                    Hook::Egress
                )
            );
            let to_client = Conn::new(Action::UndoDnat, (FRONTEND, 80), 40_000, 0);
            assert_eq!(to_client.pair_key(&reply), request);
        }
    }

    #[test]
    fn each_entry_of_a_masqueraded_flow_leads_to_the_other() {
        let request = ConnKey::new((CLIENT, 40_000), (BACKEND, 9376), TCP, Hook::Egress);
        let masquerade = Conn::new(Action::Snat, (NODE, 61_000), 9376, 0);
        let reply = ConnKey::new((BACKEND, 9376), (NODE, 61_000), TCP, Hook::Ingress);
        assert_eq!(masquerade.pair_key(&request), reply);
        let undo = Conn::new(Action::UndoSnat, (CLIENT, 40_000), 9376, 0);
        assert_eq!(undo.pair_key(&reply), request);
    }

    #[test]
    fn the_action_tells_hook_and_direction() {
        for byte in 0..4 {
            let action = Action::from_byte(byte).unwrap();
            assert_eq!(action as u8, byte);
            let at_ingress = action.hook() == Hook::Ingress;
            let is_request = action.direction() == Direction::Request;
            assert_eq!(at_ingress == is_request, byte < 2, "{action:?}");
        }
        assert_eq!(Action::from_byte(4), None);
    }

    #[test]
    fn every_field_is_taken_over() {
        let mut from: Conn<[u8; 16]> = bytemuck::Zeroable::zeroed();
        for (value, byte) in (1..).zip(bytemuck::bytes_of_mut(&mut from)) {
            *byte = value;
        }
        let mut to = Conn::new(Action::Dnat, ([0; 16], 0), 0, 0);
        to.take_over(&from);
        let differing: Vec<usize> = (0..size_of_val(&to))
            .filter(|at| bytemuck::bytes_of(&to)[*at] != bytemuck::bytes_of(&from)[*at])
            .collect();
        // The bytes of padding stay zero.
        let padding = [35, 72, 73, 74, 75].map(|at| ROOM + at);
        let expected: Vec<_> = (0..ROOM).chain(padding).collect();
        assert_eq!(differing, expected);
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
