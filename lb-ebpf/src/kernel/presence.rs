// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Cheap questions before lookups: may a port be a frontend's, may a tuple be a half-open flow's, or
//! that of an entry which no frontend's port shows.
//!
//! **Invariant:** "no" is always right; "yes" promises nothing.

use core::arch::asm;
use core::ptr;

use lb_common::abi::{Action, Conn, ConnKey, Hook, PortSet, RECENT as RECENT_STAMPS, proto};
use lb_common::opaque;

use super::maps::{FRONTEND_PORTS, RECENT};
use super::time::{jiffies, ticks};

/// Bits of jiffies that a stamp of `RECENT` leaves out.
const STAMP_SHIFT: u32 = 8;

/// How long a half-open flow may be silent and still be found: longer than a SYN and its answer are
/// sent again by default (63 s), and than Linux waits for the answer to a datagram (30 s).
const HALF_OPEN_SECS: u32 = 70;

/// How long a datagram's unlisted entry may be silent and still be found: longer than its time-out,
/// which the agent puts here, and less than half of the time after which stamps come again.
#[unsafe(no_mangle)]
static UNLISTED_SECS: u32 = 240;

/// False when no frontend has this port.
#[inline(always)]
pub(super) fn is_frontend_port(port: u16, number: u8) -> bool {
    let Some(set) = FRONTEND_PORTS.get_ptr(0) else {
        return true;
    };
    let (row, word, bit) = PortSet::place(port, number);
    let word = within::<{ PortSet::WORDS - 1 }>(word);
    // SAFETY: within the bits, for every port; an aligned word, read volatile because the agent
    // writes it while programs run.
    let word = unsafe { ptr::read_volatile((&raw const (*set).bits[row]).cast::<u32>().add(word)) };
    word & bit != 0
}

/// A number that is at most `MAX`, one less than a power of two, for the verifier to see.
///
/// VERIFIER: older ones know nothing of what swapping bytes leaves; the compiler does, and would leave
/// the mask out.
#[inline(always)]
fn within<const MAX: usize>(number: usize) -> usize {
    let mut within = number;
    // SAFETY: changes one register.
    unsafe {
        asm!(
            "{within} &= {max}",
            within = inout(reg) within,
            max = const MAX,
            options(pure, nomem, nostack),
        );
    }
    within
}

/// Time in the units of `RECENT`, never 0.
///
/// VERIFIER: without a branch. What follows from wherever this is asked is walked once less.
#[inline(always)]
fn stamp_of(now: u32) -> u16 {
    let stamp = opaque(now >> STAMP_SHIFT) & u32::from(u16::MAX);
    // 1 below zero is the only number with a sign.
    let stamp = stamp + (opaque(stamp.wrapping_sub(1)) >> 31);
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 bits")]
    let stamp = stamp as u16;
    stamp
}

/// Where the stamps of a key are.
#[inline(always)]
fn index<A: lb_common::Address>(key: &ConnKey<A>) -> usize {
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
    (hash >> 16) as usize & (RECENT_STAMPS - 1)
}

/// Where the stamp of a key as one of a half-open flow is.
#[inline(always)]
fn half_open<A: lb_common::Address>(key: &ConnKey<A>) -> Option<*mut u16> {
    let recent = RECENT.get_ptr_mut(0)?;
    // SAFETY: within the array, by the mask.
    Some(unsafe { (&raw mut (*recent).half_open).cast::<u16>().add(index(key)) })
}

/// Where the stamp of a key as one of an unlisted entry is.
#[inline(always)]
fn unlisted<A: lb_common::Address>(key: &ConnKey<A>) -> Option<*mut u16> {
    let recent = RECENT.get_ptr_mut(0)?;
    // SAFETY: within the array, by the mask.
    Some(unsafe { (&raw mut (*recent).unlisted).cast::<u16>().add(index(key)) })
}

/// Notes that a key is one of a half-open flow.
#[inline(never)]
pub(super) fn stamp<A: lb_common::Address>(key: &ConnKey<A>, now: u32) {
    if let Some(stamp) = half_open(key) {
        // SAFETY: an aligned half word of a valid element.
        unsafe { ptr::write_volatile(stamp, stamp_of(now)) };
    }
}

/// Notes that a key is one of an unlisted entry, if it is.
#[inline(never)]
pub(super) fn stamp_if_unlisted<A: lb_common::Address>(key: &ConnKey<A>, conn: &Conn<A>, now: u32) {
    // VERIFIER: differences instead of comparisons, so that there is one branch for all of them.
    let no_reply = conn.action ^ Action::UndoSnat as u8 | key.proto ^ proto::UDP;
    let not_direct =
        u32::from(conn.action ^ Action::Dnat as u8) | conn.service | conn.service >> 16;
    let elsewhere = u32::from(key.hook ^ Hook::Ingress as u8);
    let listed = opaque(elsewhere | (u32::from(no_reply) * (not_direct & u32::from(u16::MAX))));
    if listed != 0 {
        return;
    }
    let Some(stamp) = unlisted(key) else {
        return;
    };
    // SAFETY: an aligned half word of a valid element.
    unsafe { ptr::write_volatile(stamp, stamp_of(now)) };
}

/// False when a packet that may begin a flow has no entry at ingress and is for no frontend.
///
/// For anything but datagrams a stamp never grows old: such an entry may be silent for a day, and
/// replies to masqueraded connections begin none.
#[inline(always)]
pub(super) fn may_be_known<A: lb_common::Address>(key: &ConnKey<A>) -> bool {
    if is_frontend_port(key.destination_port, key.proto) {
        return true;
    }
    let Some(stamp) = unlisted(key) else {
        return true;
    };
    // SAFETY: as above.
    let stamp = unsafe { ptr::read_volatile(stamp) };
    if stamp == 0 {
        return false;
    }
    // SAFETY: a constant of the program, read volatile because the loader replaces it.
    let seconds = unsafe { ptr::read_volatile(&raw const UNLISTED_SECS) };
    key.proto != proto::UDP || !is_older(stamp, seconds)
}

/// True when a stamp is of longer ago than so many seconds.
#[inline(always)]
fn is_older(stamp: u16, seconds: u32) -> bool {
    let age = stamp_of(jiffies()).wrapping_sub(stamp);
    u32::from(age) > ((seconds * ticks()) >> STAMP_SHIFT) + 1
}

/// The same, not inlined: for all but the first question about a packet.
#[inline(never)]
pub(super) fn may_be_half_open_apart<A: lb_common::Address>(key: &ConnKey<A>) -> bool {
    may_be_half_open(key)
}

/// False when no half-open flow has had this key for `HALF_OPEN_SECS`.
#[inline(always)]
pub(super) fn may_be_half_open<A: lb_common::Address>(key: &ConnKey<A>) -> bool {
    let Some(stamp) = half_open(key) else {
        return true;
    };
    // SAFETY: as above.
    let stamp = unsafe { ptr::read_volatile(stamp) };
    stamp != 0 && !is_older(stamp, HALF_OPEN_SECS)
}
