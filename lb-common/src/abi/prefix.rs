// SPDX-License-Identifier: MIT OR Apache-2.0
//! `PREFIXES_V4` and `PREFIXES_V6`: what the node knows about addresses, in several tables.
//!
//! Longest-prefix tries, written by the agent only and read when a flow begins. The table's number
//! is the first word of what is compared: a table of [`PrefixTable`], or the index
//! of a device, whose table tells the address to masquerade with by where a packet goes.
//! **Invariant:** a device without a prefix for a destination has no masquerade address for it.

use super::plain;

/// Numbers of the tables that are not devices.
pub struct PrefixTable;

impl PrefixTable {
    /// Addresses of this node, whole; the value is the address itself.
    pub const OWN: u32 = 0;
    /// One prefix for all addresses; the value is the address that this node's own processes are known
    /// by, its primary one.
    pub const PRIMARY: u32 = u32::MAX - 1;
    /// One prefix for all addresses; the value is an address of this node whose node ports its own
    /// processes also reach at loopback addresses. None: they do not.
    pub const LOOPBACK: u32 = u32::MAX - 2;
    /// Prefixes of this node's pods, where devices do not tell them; the value means nothing.
    pub const PODS: u32 = u32::MAX;
}

/// What follows the prefix length in a key of the trie: compared bit by bit from the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Prefix<A> {
    /// A table of [`PrefixTable`], or an ifindex; always compared whole.
    pub table: u32,
    /// The address.
    pub address: A,
}

plain!(Prefix<[u8; 4]>, 4 + 4);
plain!(Prefix<[u8; 16]>, 4 + 16);

/// Bits of a key's prefix that the table's number takes.
pub const PREFIX_TABLE_BITS: u32 = 32;

/// A key of the trie as the kernel lays it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct PrefixKey<A> {
    /// Bits of `prefix` that count: [`PREFIX_TABLE_BITS`] and the prefix's own length.
    pub prefix_len: u32,
    /// The prefix.
    pub prefix: Prefix<A>,
}

plain!(PrefixKey<[u8; 4]>, 4 + 8);
plain!(PrefixKey<[u8; 16]>, 4 + 20);

impl<A> PrefixKey<A> {
    /// The prefix `address/bits` in `table`.
    #[inline(always)]
    pub const fn new(table: u32, address: A, bits: u8) -> Self {
        Self {
            prefix_len: PREFIX_TABLE_BITS + bits as u32,
            prefix: Prefix { table, address },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_laid_out_as_the_kernel_compares_it() {
        let key = PrefixKey::new(7, [192, 0, 2, 0], 24);
        assert_eq!(key.prefix_len, 56);
        assert_eq!(bytemuck::bytes_of(&key)[8..], [192, 0, 2, 0]);
    }
}
