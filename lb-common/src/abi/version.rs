// SPDX-License-Identifier: MIT OR Apache-2.0
//! `VERSIONS`: how often what flows of UDP depend on has changed, by service.
//!
//! The agent adds one after each write of a frontend or a backend. A datagram whose flow was found to
//! be right at the present version goes on without looking at its frontend and its backend, which
//! for many flows lie in cold memory.
//! **Invariant:** the packet path reads the version before the tables that it stands for, the agent
//! writes it after them. So a version never vouches for what was true before it only.

/// Entries. Services share them by the lowest bits of their ids, at the price of looking once too
/// often when another one changes.
pub const VERSIONS: u32 = 4096;

/// The entry of a service id.
#[inline(always)]
pub const fn version_index(service: u32) -> u32 {
    service & (VERSIONS - 1)
}
