// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Cheap questions before lookups: may a port be a frontend's, may a tuple be a half-open flow's.
//!
//! **Invariant:** "no" is always right; "yes" promises nothing.

use core::ptr;

use lb_common::abi::{ConnKey, PortSet, RECENT as RECENT_STAMPS};

use super::maps::{FRONTEND_PORTS, RECENT};
use super::time::{jiffies, ticks};

/// Bits of jiffies that a stamp of `RECENT` leaves out.
const STAMP_SHIFT: u32 = 8;

/// How long a half-open flow may be silent and still be found: longer than a SYN and its answer are
/// sent again by default (63 s), and than Linux waits for the answer to a datagram (30 s).
const HALF_OPEN_SECS: u32 = 70;

/// False when no frontend has this port.
#[inline(always)]
pub(super) fn is_frontend_port(port: u16, number: u8) -> bool {
    let Some(set) = FRONTEND_PORTS.get_ptr(0) else {
        return true;
    };
    let (row, word, bit) = PortSet::place(port, number);
    // SAFETY: within the bits, for every port; an aligned word, read volatile because the agent
    // writes it while programs run.
    let word = unsafe { ptr::read_volatile((&raw const (*set).bits[row]).cast::<u32>().add(word)) };
    word & bit != 0
}

/// Time in the units of `RECENT`, never 0.
#[inline(always)]
fn stamp_of(now: u32) -> u16 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "differences are taken modulo 2^16"
    )]
    let stamp = (now >> STAMP_SHIFT) as u16;
    if stamp == 0 { 1 } else { stamp }
}

/// Where the stamp of a key is.
#[inline(always)]
fn stamp_ptr<A: lb_common::Address>(key: &ConnKey<A>) -> Option<*mut u16> {
    let from = key.source.words();
    let to = key.destination.words();
    let ports = u32::from(key.source_port) << 16 | u32::from(key.destination_port);
    // Cheap, not strong: two keys with one stamp cost a lookup and nothing else.
    let mut hash = from[0].rotate_left(7) ^ to[0].rotate_left(19) ^ ports;
    if A::LEN == 16 {
        hash ^= from[1] ^ from[2].rotate_left(5) ^ from[3].rotate_left(11);
        hash ^= to[1].rotate_left(23) ^ to[2].rotate_left(13) ^ to[3].rotate_left(29);
    }
    let hash = hash.wrapping_mul(0x9e37_79b1);
    let index = (hash >> 16) as usize & (RECENT_STAMPS - 1);
    let recent = RECENT.get_ptr_mut(0)?;
    // SAFETY: within the array, by the mask.
    Some(unsafe { (&raw mut (*recent).stamps).cast::<u16>().add(index) })
}

/// Notes that a key is one of a half-open flow.
#[inline(never)]
pub(super) fn stamp<A: lb_common::Address>(key: &ConnKey<A>, now: u32) {
    if let Some(stamp) = stamp_ptr(key) {
        // SAFETY: an aligned half word of a valid element.
        unsafe { ptr::write_volatile(stamp, stamp_of(now)) };
    }
}

/// The same, not inlined: for all but the first question about a packet.
#[inline(never)]
pub(super) fn may_be_half_open_apart<A: lb_common::Address>(key: &ConnKey<A>) -> bool {
    may_be_half_open(key)
}

/// False when no half-open flow has had this key for `HALF_OPEN_SECS`.
#[inline(always)]
pub(super) fn may_be_half_open<A: lb_common::Address>(key: &ConnKey<A>) -> bool {
    let Some(stamp) = stamp_ptr(key) else {
        return true;
    };
    // SAFETY: as above.
    let stamp = unsafe { ptr::read_volatile(stamp) };
    if stamp == 0 {
        return false;
    }
    let age = stamp_of(jiffies()).wrapping_sub(stamp);
    u32::from(age) <= ((HALF_OPEN_SECS * ticks()) >> STAMP_SHIFT) + 1
}
