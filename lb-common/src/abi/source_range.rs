// SPDX-License-Identifier: MIT OR Apache-2.0
//! `SRC_RANGES_V4` and `SRC_RANGES_V6`: who may dial a load balancer's address.
//!
//! Longest-prefix tries, written by the agent only, one entry per service port and range. An entry
//! that matches lets the source in; its value is the length of the range in bits (`u8`), by which
//! the agent recognises the very entry in a lookup that finds the longest one.
//! **Invariant:** a frontend is marked with `FrontendFlags::SOURCE_RANGES` only after its ranges
//! are in the trie.

use super::plain;

/// What follows the prefix length in a key of the trie: compared bit by bit from the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct SourceRange<A> {
    /// Service id, always compared whole.
    pub service: u32,
    /// Address of the source.
    pub address: A,
}

plain!(SourceRange<[u8; 4]>, 4 + 4);
plain!(SourceRange<[u8; 16]>, 4 + 16);

/// Bits of a key's prefix that the service id takes.
pub const SOURCE_RANGE_SERVICE_BITS: u32 = 32;

/// A key of the trie as the kernel lays it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct SourceRangeKey<A> {
    /// Bits of `range` that count: [`SOURCE_RANGE_SERVICE_BITS`] and the range's own length.
    pub prefix_len: u32,
    /// The range.
    pub range: SourceRange<A>,
}

plain!(SourceRangeKey<[u8; 4]>, 4 + 8);
plain!(SourceRangeKey<[u8; 16]>, 4 + 20);

impl<A> SourceRangeKey<A> {
    /// The range `address/bits` of the service id `service`.
    #[inline(always)]
    pub const fn new(service: u32, address: A, bits: u8) -> Self {
        Self {
            prefix_len: SOURCE_RANGE_SERVICE_BITS + bits as u32,
            range: SourceRange { service, address },
        }
    }

    /// Length of the range in bits.
    pub const fn bits(&self) -> u8 {
        #[expect(clippy::cast_possible_truncation, reason = "at most 128")]
        let bits = self.prefix_len.saturating_sub(SOURCE_RANGE_SERVICE_BITS) as u8;
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_laid_out_as_the_kernel_compares_it() {
        let key = SourceRangeKey::new(7, [192, 0, 2, 0], 24);
        assert_eq!((key.prefix_len, key.bits()), (56, 24));
        assert_eq!(bytemuck::bytes_of(&key)[8..], [192, 0, 2, 0]);
    }
}
