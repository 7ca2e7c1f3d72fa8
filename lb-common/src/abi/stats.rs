// SPDX-License-Identifier: MIT OR Apache-2.0
//! `SERVICE_STATS`: how often each service port was dialled, by service id.
//!
//! Counted per CPU when a flow begins. Packets and bytes are counted in the flows' own entries.
//! **Invariant:** counters only grow while the entry exists; the agent removes the entry of a
//! service id that is given up.

use super::plain;

/// Counters of one service port on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceStats {
    /// Flows that were opened to a backend.
    pub opened: u64,
    /// First packets that were refused or dropped.
    pub rejected: u64,
}

plain!(ServiceStats, 8 + 8);
