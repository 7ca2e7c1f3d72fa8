// SPDX-License-Identifier: MIT OR Apache-2.0
//! `SLOTS`: the backend list of every service port, one entry per position.
//!
//! Written by the agent only. The value is a backend id (`u32`, never 0).
//! **Invariant:** a change of one endpoint writes a bounded number of slots.

use super::plain;

/// Which list of a service port a slot belongs to; the `list` field of [`SlotKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum List {
    /// The backends for the frontend's own scope.
    Main = 0,
}

/// One position in a backend list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// Service id.
    pub service: u32,
    /// A [`List`].
    pub list: u16,
    /// Position, counting from 0.
    pub slot: u16,
}

plain!(SlotKey, 4 + 2 + 2);

impl SlotKey {
    /// The position `slot` of the main list of `service`.
    #[inline(always)]
    pub const fn main(service: u32, slot: u16) -> Self {
        Self {
            service,
            list: List::Main as u16,
            slot,
        }
    }
}
