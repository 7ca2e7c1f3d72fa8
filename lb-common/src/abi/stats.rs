// SPDX-License-Identifier: MIT OR Apache-2.0
//! `SERVICE_STATS`: how often each service port was dialled, by service id.
//!
//! An array, counted by all CPUs when a flow begins. Packets and bytes are counted in the flows' own
//! entries.
//! **Invariant:** counters only grow while a service has its id; the agent clears those of an id
//! that is given up.

use super::plain;

/// Counters of one service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceStats {
    /// Flows that were opened to a backend.
    pub opened: u64,
    /// First packets that were refused or dropped.
    pub rejected: u64,
}

plain!(ServiceStats, 8 + 8);
