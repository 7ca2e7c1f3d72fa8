// SPDX-License-Identifier: MIT OR Apache-2.0
//! `FRONTENDS_V4` and `FRONTENDS_V6`: what clients dial.
//!
//! Written by the agent only; one entry per (address, port, protocol).
//! **Invariant:** the entry is written after the slots that its `count` covers.

use super::plain;

/// What a client dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct FrontendKey<A> {
    /// Destination address.
    pub address: A,
    /// Destination port.
    pub port: u16,
    /// Protocol number of IANA.
    pub proto: u8,
    _pad: u8,
}

plain!(FrontendKey<[u8; 4]>, 4 + 2 + 1 + 1);
plain!(FrontendKey<[u8; 16]>, 16 + 2 + 1 + 1);

impl<A> FrontendKey<A> {
    /// A key; `port` in host order.
    #[inline(always)]
    pub const fn new(address: A, port: u16, proto: u8) -> Self {
        Self {
            address,
            port,
            proto,
            _pad: 0,
        }
    }
}

/// How a backend is chosen for a new flow; the `algorithm` byte of [`Frontend`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// One after the other, shared by all CPUs of the node.
    #[default]
    RoundRobin = 0,
    /// Uniformly at random.
    Random = 1,
}

impl Algorithm {
    /// The algorithm of a stored byte, or none when it is unknown.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::RoundRobin),
            1 => Some(Self::Random),
            _ => None,
        }
    }
}

/// Bits of [`Frontend::flags`].
pub struct FrontendFlags;

impl FrontendFlags {
    /// Stay silent when there is no backend in the list (a local-only policy).
    pub const DROP_IF_EMPTY: u8 = 1;
}

/// Where a frontend leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Frontend {
    /// Service id: one service port in one family, never 0.
    pub service: u32,
    /// Changes when flows of UDP must choose their backend anew.
    pub generation: u32,
    /// Slots in use, `0..count`.
    pub count: u16,
    /// An [`Algorithm`].
    pub algorithm: u8,
    /// Bits of [`FrontendFlags`].
    pub flags: u8,
}

plain!(Frontend, 4 + 4 + 2 + 1 + 1);

impl Frontend {
    /// Takes every field over; see `Conn::take_over` for why one by one.
    #[inline(always)]
    pub fn take_over(&mut self, other: &Self) {
        self.service = other.service;
        self.generation = other.generation;
        self.count = other.count;
        self.algorithm = other.algorithm;
        self.flags = other.flags;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_survives_its_byte() {
        for algorithm in [Algorithm::RoundRobin, Algorithm::Random] {
            assert_eq!(Algorithm::from_byte(algorithm as u8), Some(algorithm));
        }
        assert_eq!(Algorithm::from_byte(255), None);
    }
}
