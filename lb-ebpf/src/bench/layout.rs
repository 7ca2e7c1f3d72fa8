// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What the bench's programs and the bench itself must agree on.
//!
//! Included by path on both sides, with nothing but `core`.
//! **Invariant:** every type is words or bytes without padding. Everything is as it lies in a
//! packet, so that the driver only copies.

/// Headers that one packet of IPv4 gets back before the program under test sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Headers4 {
    /// Source address.
    pub(crate) source: u32,
    /// Destination address.
    pub(crate) destination: u32,
    /// Both ports, source first.
    pub(crate) ports: u32,
    /// Checksum of the network header.
    pub(crate) header_sum: u16,
    /// Checksum of TCP or UDP.
    pub(crate) sum: u16,
}

/// The same for IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Headers6 {
    /// Source address.
    pub(crate) source: [u32; 4],
    /// Destination address.
    pub(crate) destination: [u32; 4],
    /// Both ports, source first.
    pub(crate) ports: u32,
    /// Checksum of TCP or UDP.
    pub(crate) sum: u16,
    /// Zero.
    pub(crate) pad: u16,
}

/// Where the driver is in its list, and how long that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Walk {
    /// Position of the next packet.
    pub(crate) next: u32,
    /// Packets in the list.
    pub(crate) count: u32,
    /// Link-layer destination: first four bytes, then two.
    pub(crate) link: [u32; 2],
    /// The packet's mark.
    pub(crate) mark: u32,
}

/// Key of the smallest translation and of the micro cases: source, destination, ports, rest.
pub(crate) type Tuple = [u32; 4];
/// What the smallest translation writes: destination address, destination port.
pub(crate) type Translation = [u32; 2];

/// Which keys a micro case takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Keys {
    /// Counts the keys.
    pub(crate) next: u32,
    /// The counter's bits that are used; one less than a power of two.
    pub(crate) mask: u32,
    /// The last word of each key, to have other keys.
    pub(crate) salt: u32,
    /// What the counter is multiplied with: odd, so that each key has its turn. Another one is
    /// another order.
    pub(crate) scramble: u32,
}

/// Returned by a driver when the jump to the program under test failed.
pub(crate) const NO_PROGRAM: i32 = 99;
