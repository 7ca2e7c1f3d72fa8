// SPDX-License-Identifier: MIT OR Apache-2.0
//! `RECENT`: which tuples may be those of half-open flows.
//!
//! One stamp for every hash of a key of `HALF_OPEN_*`, written by the packet path whenever such an
//! entry is inserted or used. A packet whose tuple has no fresh stamp is of no half-open flow, which
//! saves traffic that is not ours the lookup in a table of many cache lines.
//! **Invariant:** a stamp is written before the entry that it is for; a fresh one promises nothing.

use super::plain;

/// Stamps: 128 KiB.
pub const RECENT: usize = 65_536;

/// The only element of the map.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Recent {
    /// Time of the last use by hash, in units of 256 jiffies and never 0; 0: not used yet.
    pub stamps: [u16; RECENT],
}

plain!(Recent, 2 * RECENT);
