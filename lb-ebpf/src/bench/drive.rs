// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Restores a packet's headers from a list, one entry after the other, and jumps to the program
//! under test.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on what it made of the packet itself; with a driver in
//! front each run sees a packet as it comes from the wire, of the flow whose turn it is. The list is
//! read from front to back, so that the processor fetches it ahead: the flows are in a scrambled
//! order in it already.
//! **Invariant:** a driver followed by `empty` does all that a driver followed by another program
//! does before that one begins.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

use crate::layout::{Headers4, Headers6, NO_PROGRAM, Walk};

/// Packets in a list; replaced at load.
const PACKETS: usize = 65_536;

#[btf_map]
static WALK: Array<Walk, 1> = Array::new();
#[btf_map]
static PACKETS_V4: Array<Headers4, PACKETS> = Array::new();
#[btf_map]
static PACKETS_V6: Array<Headers6, PACKETS> = Array::new();
/// The program under test, alone.
#[btf_map]
static UNDER_TEST: ProgramArray<1> = ProgramArray::new();

/// Offsets in a frame without options, in bytes.
const V4_PROTO: usize = 14 + 9;
const V4_SUM: usize = 14 + 10;
const V4_SOURCE: usize = 14 + 12;
const V4_L4: usize = 14 + 20;
const V6_PROTO: usize = 14 + 6;
const V6_SOURCE: usize = 14 + 8;
const V6_L4: usize = 14 + 40;
/// The transport checksum, from the transport header.
const TCP_SUM: usize = 16;
const UDP_SUM: usize = 6;
/// What must be readable from the transport header on.
const TCP_LENGTH: usize = 20;
const UDP_LENGTH: usize = 8;
const UDP: u8 = 17;

/// Does nothing: the floor of every measurement.
#[classifier]
fn empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Restores a packet of IPv4 and jumps.
#[classifier]
fn drive_v4(ctx: TcContext) -> i32 {
    if restore_v4(&ctx).is_none() {
        return TC_ACT_SHOT;
    }
    jump(&ctx)
}

/// Restores a packet of IPv6 and jumps.
#[classifier]
fn drive_v6(ctx: TcContext) -> i32 {
    if restore_v6(&ctx).is_none() {
        return TC_ACT_SHOT;
    }
    jump(&ctx)
}

/// Only jumps: for packets that no program changes.
#[classifier]
fn drive_same(ctx: TcContext) -> i32 {
    jump(&ctx)
}

#[inline(always)]
fn jump(ctx: &TcContext) -> i32 {
    // SAFETY: nothing is left to be dropped; a failed jump returns here.
    unsafe { UNDER_TEST.tail_call(ctx, 0) };
    NO_PROGRAM
}

/// The position of the next packet, and the link-layer destination; restores the mark.
#[inline(always)]
fn step(ctx: &TcContext) -> Option<(u32, [u32; 2])> {
    let walk = WALK.get_ptr_mut(0)?;
    // SAFETY: the only element; one processor runs the bench.
    let walk = unsafe { &mut *walk };
    let at = walk.next;
    walk.next = if at + 1 >= walk.count { 0 } else { at + 1 };
    // SAFETY: the context is valid, and programs may write this field.
    unsafe { (*ctx.skb.skb).mark = walk.mark };
    Some((at, walk.link))
}

/// Writes a value into the packet.
///
/// # Safety
/// The caller has compared `start + at + size_of::<T>()` with the packet's end.
#[inline(always)]
unsafe fn put<T>(start: usize, at: usize, value: T) {
    // SAFETY: in the packet; alignment does not matter to the machines that the bench runs on.
    unsafe { ((start + at) as *mut T).write(value) };
}

#[inline(always)]
fn restore_v4(ctx: &TcContext) -> Option<()> {
    let (at, [link, link_end]) = step(ctx)?;
    let headers = PACKETS_V4.get_ptr(at)?;
    // SAFETY: only the bench writes it, and not meanwhile.
    let headers = unsafe { &*headers };
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + V4_L4 + UDP_LENGTH > end {
        return None;
    }
    // SAFETY: all within the bound just compared.
    let proto = unsafe {
        put(start, 0, link);
        put(start, 4, link_end as u16);
        put(start, V4_SUM, headers.header_sum);
        put(start, V4_SOURCE, headers.source);
        put(start, V4_SOURCE + 4, headers.destination);
        put(start, V4_L4, headers.ports);
        *((start + V4_PROTO) as *const u8)
    };
    if proto == UDP {
        // SAFETY: as above.
        unsafe { put(start, V4_L4 + UDP_SUM, headers.sum) };
    } else {
        if start + V4_L4 + TCP_LENGTH > end {
            return None;
        }
        // SAFETY: within the bound just compared.
        unsafe { put(start, V4_L4 + TCP_SUM, headers.sum) };
    }
    Some(())
}

#[inline(always)]
fn restore_v6(ctx: &TcContext) -> Option<()> {
    let (at, [link, link_end]) = step(ctx)?;
    let headers = PACKETS_V6.get_ptr(at)?;
    // SAFETY: only the bench writes it, and not meanwhile.
    let headers = unsafe { &*headers };
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + V6_L4 + UDP_LENGTH > end {
        return None;
    }
    let [s0, s1, s2, s3] = headers.source;
    let [d0, d1, d2, d3] = headers.destination;
    // SAFETY: all within the bound just compared.
    let proto = unsafe {
        put(start, 0, link);
        put(start, 4, link_end as u16);
        put(start, V6_SOURCE, s0);
        put(start, V6_SOURCE + 4, s1);
        put(start, V6_SOURCE + 8, s2);
        put(start, V6_SOURCE + 12, s3);
        put(start, V6_SOURCE + 16, d0);
        put(start, V6_SOURCE + 20, d1);
        put(start, V6_SOURCE + 24, d2);
        put(start, V6_SOURCE + 28, d3);
        put(start, V6_L4, headers.ports);
        *((start + V6_PROTO) as *const u8)
    };
    if proto == UDP {
        // SAFETY: as above.
        unsafe { put(start, V6_L4 + UDP_SUM, headers.sum) };
    } else {
        if start + V6_L4 + TCP_LENGTH > end {
            return None;
        }
        // SAFETY: within the bound just compared.
        unsafe { put(start, V6_L4 + TCP_SUM, headers.sum) };
    }
    Some(())
}
