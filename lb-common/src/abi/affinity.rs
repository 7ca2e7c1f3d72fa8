// SPDX-License-Identifier: MIT OR Apache-2.0
//! `AFFINITY_V4` and `AFFINITY_V6`: which backend a client keeps.
//!
//! Written by the packet path alone, when a flow through a frontend with affinity begins. One entry
//! serves every frontend of a service port: cluster address, node port and the others.
//! **Invariant:** an entry counts only while its backend has the same epoch, so a client is never
//! kept at another backend that got the id.

use super::plain;

/// Who keeps a backend of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct AffinityKey<A> {
    /// Service id.
    pub service: u32,
    /// The client's address, before any translation.
    pub client: A,
}

plain!(AffinityKey<[u8; 4]>, 4 + 4);
plain!(AffinityKey<[u8; 16]>, 4 + 16);

/// The backend that is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Affinity {
    /// Backend id.
    pub backend: u32,
    /// The backend's epoch when it was chosen.
    pub epoch: u32,
    /// Low 32 bits of the kernel's jiffies when the client's last flow began.
    pub last_used: u32,
}

plain!(Affinity, 4 + 4 + 4);
