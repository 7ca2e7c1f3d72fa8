// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Addresses and ports that the tests of the packet path make up, in either family.

use lb_common::{Family, V4, V6};

use crate::path::Work;

/// A family whose addresses the tests can make up.
pub(super) trait Made: Family {
    /// The `n`-th address of a group: pods, frontends, …
    fn address(group: u8, n: u8) -> Self::Addr;
    fn work() -> Work<Self::Addr>;
}

impl Made for V4 {
    fn address(group: u8, n: u8) -> [u8; 4] {
        [10, group, 0, n]
    }
    fn work() -> Work<[u8; 4]> {
        Work::new()
    }
}

impl Made for V6 {
    fn address(group: u8, n: u8) -> [u8; 16] {
        [0xfd, 0, 0, 0, 0, 0, 0, group, 0, 0, 0, 0, 0, 0, 0, n]
    }
    fn work() -> Work<[u8; 16]> {
        Work::new()
    }
}

pub(super) const CLIENTS: u8 = 1;
pub(super) const BACKENDS: u8 = 2;
pub(super) const FRONTENDS: u8 = 3;
pub(super) const PORT: u16 = 80;
pub(super) const TARGET: u16 = 9376;
