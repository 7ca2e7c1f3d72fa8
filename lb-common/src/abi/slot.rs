// SPDX-License-Identifier: MIT OR Apache-2.0
//! `SLOTS`: the backend lists of every service port and the lookup tables beside them, one entry
//! per position.
//!
//! Written by the agent only. The value is a backend id (`u32`, never 0).
//! **Invariant:** a change of one endpoint writes a bounded number of slots of a list, and of a
//! table about as many as that endpoint has there.

use super::plain;

/// Which list of a service port a slot belongs to; the `list` field of [`SlotKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum List {
    /// Backends anywhere in the cluster.
    Cluster = 0,
    /// Backends on this node.
    Local = 1,
}

/// One position in a backend list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// Service id.
    pub service: u32,
    /// A [`List`], or [`List::TABLES`] more for its lookup table.
    pub list: u16,
    /// Position, counting from 0.
    pub slot: u16,
}

plain!(SlotKey, 4 + 2 + 2);

impl List {
    /// All lists, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Local];

    /// From the number of a list to that of its lookup table.
    pub const TABLES: u16 = 2;
}

impl SlotKey {
    /// The position `slot` of `list` of `service`.
    #[inline(always)]
    pub const fn new(service: u32, list: List, slot: u16) -> Self {
        Self {
            service,
            list: list as u16,
            slot,
        }
    }

    /// The position `slot` of the list of number `list` of `service`.
    #[inline(always)]
    pub const fn numbered(service: u32, list: u16, slot: u16) -> Self {
        Self {
            service,
            list,
            slot,
        }
    }

    /// The position `slot` of the lookup table beside `list` of `service`.
    #[inline(always)]
    pub const fn table(service: u32, list: List, slot: u16) -> Self {
        Self::numbered(service, list as u16 + List::TABLES, slot)
    }

    /// The position `slot` of the cluster list of `service`.
    #[inline(always)]
    pub const fn cluster(service: u32, slot: u16) -> Self {
        Self::new(service, List::Cluster, slot)
    }
}
