// SPDX-License-Identifier: MIT OR Apache-2.0
//! `FRAGMENTS_V4` and `FRAGMENTS_V6`: the ports of datagrams that come in fragments.
//!
//! Written by the packet path when the first fragment passes, read for the later ones, which have
//! no ports of their own.
//! **Invariant:** addresses are those on the wire at the hook where the fragment was seen.

use super::plain;

/// One datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct FragmentKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Identification: 16 bits in IPv4, 32 in IPv6, as on the wire.
    pub id: u32,
    /// Protocol number of IANA, of what was cut into fragments.
    pub proto: u8,
    /// A `Hook`.
    pub hook: u8,
    _pad: [u8; 2],
}

plain!(FragmentKey<[u8; 4]>, 4 + 4 + 4 + 1 + 1 + 2);
plain!(FragmentKey<[u8; 16]>, 16 + 16 + 4 + 1 + 1 + 2);

impl<A> FragmentKey<A> {
    /// A key; `id` as on the wire.
    #[inline(always)]
    pub const fn new(source: A, destination: A, id: u32, proto: u8, hook: super::Hook) -> Self {
        Self {
            source,
            destination,
            id,
            proto,
            hook: hook as u8,
            _pad: [0; 2],
        }
    }
}

/// What the first fragment said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

plain!(Fragment, 2 + 2);
