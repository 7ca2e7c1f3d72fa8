// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The kernel's time as the packet path counts it.
//!
//! **Invariant:** ages are taken modulo 2^32.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_jiffies64;

/// Jiffies in a second on this kernel; written by the loader.
#[unsafe(no_mangle)]
static HZ: u32 = 250;

/// Jiffies in a second.
#[inline(always)]
pub(super) fn ticks() -> u32 {
    // SAFETY: a constant of the program, read volatile because the loader replaces it.
    unsafe { ptr::read_volatile(&raw const HZ) }
}

/// The low 32 bits of jiffies.
#[inline(always)]
pub(super) fn jiffies() -> u32 {
    // SAFETY: the helper has no arguments.
    let jiffies = unsafe { bpf_jiffies64() };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "ages are taken modulo 2^32"
    )]
    let low = jiffies as u32;
    low
}
