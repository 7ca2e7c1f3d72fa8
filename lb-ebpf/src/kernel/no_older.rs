// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What `older.rs` is in a build that has no way from an older layout: nothing.
//!
//! **Invariant:** none of it leaves an instruction in a program.

use lb_common::abi::ConnKey;
use lb_ebpf::tables::Table;

use super::Host;

/// A family; there are no older tables.
pub(crate) trait Older {}

impl<F: lb_common::Family> Older for F {}

#[inline(always)]
pub(super) fn carry_over<F: Host>(_: Table, _: &ConnKey<F::Addr>) -> bool {
    false
}

#[inline(always)]
pub(super) fn remove<F: Host>(_: Table, _: &ConnKey<F::Addr>) {}
