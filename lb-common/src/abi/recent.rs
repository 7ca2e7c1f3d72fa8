// SPDX-License-Identifier: MIT OR Apache-2.0
//! `RECENT`: which tuples may have entries that are seldom there.
//!
//! One stamp for every hash of a key, written by the packet path whenever such an entry is inserted or
//! used. A packet whose tuple has no fresh stamp has no such entry, which saves traffic that is not ours
//! the lookup in a table of many cache lines.
//! **Invariant:** a stamp is written before the entry that it is for; a fresh one promises nothing.

use super::plain;

/// Stamps of a kind: 128 KiB.
pub const RECENT: usize = 65_536;

/// The only element of the map.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Recent {
    /// Half-open flows: time of the last use by hash, in units of 256 jiffies and never 0; 0: not used
    /// yet.
    pub half_open: [u16; RECENT],
    /// The same of entries at ingress whose destination is no frontend: replies to masqueraded
    /// datagrams, and flows past frontends that have another source port.
    pub unlisted: [u16; RECENT],
}

plain!(Recent, 2 * 2 * RECENT);
