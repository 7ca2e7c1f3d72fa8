// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What the operator chose, as constants that the loader writes before the programs are verified.
//!
//! **Invariant:** read through the functions only. The compiler sees the values that stand here,
//! so each read is a volatile one.
#![expect(dead_code, reason = "no program masquerades yet")]

use core::ptr;

/// Ranges of [`snat_ports`].
pub(crate) const SNAT_RANGES: usize = 4;

/// The bit of a packet's mark that says it is to be masqueraded.
#[unsafe(no_mangle)]
static MASQUERADE_MARK: u32 = 0x4000;

/// 1 when rules of someone else masquerade what is marked, else 0.
#[unsafe(no_mangle)]
static MASQUERADE_BY_MARK: u32 = 0;

/// First and last port of each range for masqueraded flows, in order and disjoint, at least one;
/// an unused range is 1, 0.
#[unsafe(no_mangle)]
static SNAT_PORTS: [u16; 2 * SNAT_RANGES] = [1024, 29_999, 61_000, 65_535, 1, 0, 1, 0];

/// The bit of a packet's mark that says it is to be masqueraded.
#[inline(always)]
pub(crate) fn masquerade_mark() -> u32 {
    // SAFETY: a static is always valid to read.
    unsafe { ptr::read_volatile(&raw const MASQUERADE_MARK) }
}

/// True when rules of someone else masquerade what is marked.
#[inline(always)]
pub(crate) fn masquerades_by_mark() -> bool {
    // SAFETY: a static is always valid to read.
    unsafe { ptr::read_volatile(&raw const MASQUERADE_BY_MARK) != 0 }
}

/// First and last port of the range `index`, or none beyond the last one.
#[inline(always)]
pub(crate) fn snat_ports(index: usize) -> Option<(u16, u16)> {
    if index >= SNAT_RANGES {
        return None;
    }
    let ports = (&raw const SNAT_PORTS).cast::<[u16; 2]>();
    // SAFETY: the index is within the array, whose pairs have the alignment of their parts.
    let [first, last] = unsafe { ptr::read_volatile(ports.add(index)) };
    Some((first, last))
}
