// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What the agent's flags say, as constants of the programs: the loader replaces them.
//!
//! Read volatile, or the compiler would put the values below in their place.
//! **Invariant:** nothing here changes while a program is loaded.

use core::arch::asm;
use core::ptr;

/// The bit of the packet mark that asks for masquerading.
#[unsafe(no_mangle)]
static MASQUERADE_MARK: u32 = 0x4000;

/// Not 0: who goes by the mark masquerades, and we do not.
#[unsafe(no_mangle)]
static MASQUERADE_BY_MARK: u32 = 0;

/// The cookie of the node's own network namespace; 0: not known, and no socket is served.
#[unsafe(no_mangle)]
static NODE_NETNS: u64 = 0;

/// Not 0: sockets in other namespaces are served as well, those in `NAMESPACES`.
#[unsafe(no_mangle)]
static SOCKETS_OF_PODS: u32 = 0;

/// Not 0: a program at a socket can choose the error that its caller gets.
#[unsafe(no_mangle)]
static CAN_SET_ERROR: u32 = 0;

/// Not 0: the kernel knows additions to memory that tell the value before.
#[unsafe(no_mangle)]
static HAS_FETCH: u32 = 1;

/// For how many seconds a socket that is not connected keeps a backend that it does not send to.
#[unsafe(no_mangle)]
static SOCKET_IDLE_SECS: u32 = 180;

/// The cgroup at the root of the hierarchy: that of kernel threads. Another one only in tests.
#[unsafe(no_mangle)]
static ROOT_CGROUP: u64 = 1;

/// The cookie of the socket by which the agent learns of its namespace.
#[unsafe(no_mangle)]
static LEARNING_SOCKET: u64 = 0;

/// Ranges of ports in the pool.
const RANGES: usize = 4;

/// The pool of masquerade ports: first and last port of each range, in host order; a range whose
/// first port is after its last one is none.
#[unsafe(no_mangle)]
static SNAT_PORTS: [u16; 2 * RANGES] = [1024, 29_999, 61_000, 65_535, 1, 0, 1, 0];

/// The mark that asks for masquerading.
#[inline(always)]
pub(super) fn mark() -> u32 {
    // SAFETY: a constant of the program.
    unsafe { ptr::read_volatile(&raw const MASQUERADE_MARK) }
}

/// Whether masquerading is left to those who go by the mark.
#[inline(always)]
pub(super) fn masquerades_by_mark() -> bool {
    // SAFETY: a constant of the program.
    unsafe { ptr::read_volatile(&raw const MASQUERADE_BY_MARK) != 0 }
}

/// The cookie of the node's own network namespace; 0: not known.
#[inline(always)]
pub(super) fn node_netns() -> u64 {
    // SAFETY: a constant of the program.
    unsafe { ptr::read_volatile(&raw const NODE_NETNS) }
}

/// Whether sockets in other namespaces are served as well.
#[inline(always)]
pub(super) fn serves_pods() -> bool {
    // SAFETY: a constant of the program.
    unsafe { ptr::read_volatile(&raw const SOCKETS_OF_PODS) != 0 }
}

/// Whether a program at a socket can choose the error that its caller gets.
#[inline(always)]
pub(super) fn can_set_error() -> bool {
    // SAFETY: a constant of the program.
    unsafe { ptr::read_volatile(&raw const CAN_SET_ERROR) != 0 }
}

/// Whether the kernel knows additions to memory that tell the value before.
#[inline(always)]
pub(super) fn has_fetch() -> bool {
    // SAFETY: a constant of the program.
    unsafe { ptr::read_volatile(&raw const HAS_FETCH) != 0 }
}

/// For how many seconds a socket that is not connected keeps a backend that it does not send to.
#[inline(always)]
pub(super) fn socket_idle_secs() -> u32 {
    // SAFETY: a constant of the program.
    unsafe { ptr::read_volatile(&raw const SOCKET_IDLE_SECS) }
}

/// The cgroup at the root of the hierarchy.
#[inline(always)]
pub(super) fn root_cgroup() -> u64 {
    // SAFETY: a constant of the program.
    unsafe { ptr::read_volatile(&raw const ROOT_CGROUP) }
}

/// The cookie of the socket by which the agent learns of its namespace.
#[inline(always)]
pub(super) fn learning_socket() -> u64 {
    // SAFETY: a constant of the program.
    unsafe { ptr::read_volatile(&raw const LEARNING_SOCKET) }
}

/// First and last port of a range.
#[inline(always)]
fn range(index: usize) -> (u32, u32) {
    let ports = (&raw const SNAT_PORTS).cast::<u16>();
    // SAFETY: constants of the program; every caller counts up to `RANGES`.
    unsafe {
        (
            ptr::read_volatile(ports.add(2 * index)).into(),
            ptr::read_volatile(ports.add(2 * index + 1)).into(),
        )
    }
}

/// How many ports a range has.
#[inline(always)]
fn ports(index: usize) -> u64 {
    let (first, last) = range(index);
    if first <= last {
        u64::from(last - first + 1)
    } else {
        0
    }
}

/// All ones for what is below zero, else zero; as an instruction, which the compiler cannot make a
/// branch of.
#[inline(always)]
fn is_negative(number: u64) -> u64 {
    let mut mask = number;
    // SAFETY: it changes nothing but its operand.
    unsafe {
        asm!("{0} s>>= 63", inout(reg) mask, options(pure, nomem, nostack));
    }
    mask
}

/// Whether a port is in the pool.
///
/// VERIFIER: one branch for all ranges. Two for each, and verifiers before 6.12 walk half as many
/// instructions again with four ranges as with two.
#[inline(always)]
pub(super) fn is_masquerade_port(port: u16) -> bool {
    let port = u32::from(port);
    // The sign is set while no range holds the port: it is before the first or after the last one.
    let mut outside = u32::MAX;
    let mut index = 0;
    while index < RANGES {
        let (first, last) = range(index);
        outside &= port.wrapping_sub(first) | last.wrapping_sub(port);
        index += 1;
    }
    outside >> 31 == 0
}

/// A port of the pool, each as likely as the others; 0 when the pool is empty.
///
/// VERIFIER: no branch on what is not a constant of the program, for the same reason.
#[inline(never)]
pub(super) fn masquerade_port(random: u32) -> u16 {
    let mut total = 0;
    let mut index = 0;
    while index < RANGES {
        total += ports(index);
        index += 1;
    }
    if total == 0 {
        return 0;
    }
    let mut left = u64::from(random) % total;
    let mut port = 0;
    // All ones until the range is found.
    let mut ahead = u64::MAX;
    index = 0;
    while index < RANGES {
        let count = ports(index);
        let here = is_negative(left.wrapping_sub(count));
        port |= (u64::from(range(index).0) + left) & here & ahead;
        ahead &= !here;
        left = left.wrapping_sub(count & !here);
        index += 1;
    }
    #[expect(clippy::cast_possible_truncation, reason = "within two 16-bit ports")]
    let port = port as u16;
    port
}
