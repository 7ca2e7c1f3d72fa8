// SPDX-License-Identifier: MIT OR Apache-2.0
//! `FRONTEND_PORTS`: ports that some frontend has, so that packets to all others need no lookup.
//!
//! One bit for each port and protocol, whatever the address. The agent sets a bit before the first
//! frontend with that port is written, and never clears one: a bit too many costs a lookup.
//! **Invariant:** a port without its bit is no frontend's.

use super::{plain, proto};

/// Words of one protocol.
const WORDS: usize = 65_536 / 32;

/// The only element of the map: 24 KiB.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PortSet {
    /// Bits of TCP, of UDP and of SCTP: word `port / 32`, bit `port % 32`.
    pub bits: [[u32; WORDS]; 3],
}

plain!(PortSet, 3 * WORDS * 4);

impl PortSet {
    /// Words of one protocol, a power of two.
    pub const WORDS: usize = WORDS;

    /// Row, word and bit of a port; unknown protocols have those of TCP.
    #[inline(always)]
    pub const fn place(port: u16, number: u8) -> (usize, usize, u32) {
        let row = match number {
            proto::UDP => 1,
            proto::SCTP => 2,
            _ => 0,
        };
        (row, (port >> 5) as usize, 1 << (port & 31))
    }

    /// True when a frontend has had this port.
    pub const fn contains(&self, port: u16, number: u8) -> bool {
        let (row, word, bit) = Self::place(port, number);
        self.bits[row][word] & bit != 0
    }

    /// Adds a port; false when it was there already.
    pub const fn insert(&mut self, port: u16, number: u8) -> bool {
        let (row, word, bit) = Self::place(port, number);
        let before = self.bits[row][word];
        self.bits[row][word] = before | bit;
        before & bit == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_of_each_protocol_has_a_bit_of_its_own() {
        let mut set: PortSet = bytemuck::Zeroable::zeroed();
        for number in [proto::TCP, proto::UDP, proto::SCTP] {
            for port in [0, 1, 31, 32, 53, 80, 30_080, 65_535] {
                assert!(set.insert(port, number), "{port} {number}");
                assert!(!set.insert(port, number), "{port} {number}");
            }
        }
        let ones: u32 = set
            .bits
            .iter()
            .flatten()
            .map(|word| word.count_ones())
            .sum();
        assert_eq!(ones, 24);
    }
}
