// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Answering a refused packet: the packet itself becomes the ICMP error and goes back out of the
//! device that it came in by.
//!
//! The packet is cut down to what is quoted, then gets new headers in front. It does not pass the
//! host's stack, so no address, route or packet filter is needed for it.
//!
//! A packet with checksum offload pending (`CHECKSUM_PARTIAL`, sent by a local socket) gets its
//! transport checksum written later, by the device or for it, into what is by then the quote. The
//! ICMP checksum is made for the quote as it will be then. Written is the complement of the sum
//! over the quoted transport header, which holds the pseudo header's sum `f` in place of the
//! checksum: what was S becomes S - f + (0xffff - S), and that is the complement of f alone.
//!
//! TCP gets a reset as well. A client whose answer arrives while it is still in `connect()`, as it
//! does on one machine, holds its socket then: the kernel puts segments off until it is released, but
//! forgets ICMP errors until the SYN is sent again a second later.
//!
//! **Invariant:** whatever fails, the packet is dropped.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use lb_common::Reason;
use lb_common::abi::proto;
use lb_ebpf::checksum;
use lb_ebpf::packet::Packet;
use lb_ebpf::reset;
use lb_ebpf::tables::Lookup;
use lb_ebpf::unreachable::{self, HEADER_WORDS};

use super::maps::RATE;
use super::{Host, World, work};

/// `BPF_ADJ_ROOM_MAC`: room between the link-layer and the network header.
const ROOM_MAC: u32 = 1;
const E_INVAL: i64 = -22;
/// Kinds of frames by their destination (`include/uapi/linux/if_packet.h`).
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;
/// Words of the longest network header that is quoted: IPv4 with all its options, or IPv6 with 56
/// bytes of extension headers.
const NETWORK_WORDS: usize = 24;
/// The same in bytes.
const NETWORK_BYTES: u32 = 96;
const _: () = assert!(NETWORK_WORDS * 4 == NETWORK_BYTES as usize);
/// Words of the longest transport header that is quoted.
const TRANSPORT_WORDS: usize = 5;

/// Something of the packet could not be changed.
struct Failed;

/// Answers the packet in the work record; gives the action. `l2` is the length of the link-layer
/// header.
///
/// A BPF function of its own, so that its stack and its instructions are no part of other packets'
/// way.
#[inline(never)]
pub(crate) fn reject<F: Host>(skb: *mut __sk_buff, l2: u32) -> i32 {
    let ctx = TcContext::new(skb);
    let mut world = World::new(&ctx, l2);
    let Some(work) = work::<F>() else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the context is valid for as long as the program runs.
    let (kind, device) = unsafe { ((*skb).pkt_type, (*skb).ifindex) };
    let to_several = kind == PACKET_BROADCAST || kind == PACKET_MULTICAST;
    if (l2 != 0 && to_several) || !unreachable::may_answer(&work.packet) {
        return TC_ACT_SHOT;
    }
    let Some(bucket) = RATE.get_ptr_mut(0) else {
        return TC_ACT_SHOT;
    };
    let now = Lookup::<F>::now(&world);
    let hz = Lookup::<F>::ticks_per_second(&world);
    // SAFETY: this CPU's own element; tc programs run with bottom halves disabled.
    if !unsafe { (*bucket).take(now, hz) } {
        Lookup::<F>::count(&mut world, Reason::RejectLimited);
        return TC_ACT_SHOT;
    }
    if answer::<F>(skb, l2, device, &work.packet).is_err() {
        Lookup::<F>::count(&mut world, Reason::RejectFailed);
        return TC_ACT_SHOT;
    }
    #[expect(clippy::cast_possible_truncation, reason = "an action of tc")]
    // SAFETY: the helper takes numbers only.
    let action = unsafe { bpf_redirect(device, 0) } as i32;
    action
}

/// A length of a network header that can be quoted.
///
/// VERIFIER: a length that it knows neither the least nor the most of is refused, and before 6.18
/// what a comparison of `length - 20` says is not known of `length`. So the length is made anew from
/// the difference, which the compiler must not see through.
#[inline(always)]
fn network_length(length: u32) -> Option<u32> {
    const LEAST: u32 = 20;
    let mut beyond = u64::from(length.wrapping_sub(LEAST));
    // SAFETY: moves a register to itself.
    unsafe {
        asm!("{0} = {0}", inout(reg) beyond, options(nomem, nostack, preserves_flags));
    }
    let beyond = u32::try_from(beyond).ok()?;
    (beyond <= NETWORK_BYTES - LEAST).then(|| beyond + LEAST)
}

/// Makes the packet the answer to itself; sends the first one of two by itself.
#[inline(always)]
fn answer<F: Host>(
    skb: *mut __sk_buff,
    l2: u32,
    device: u32,
    packet: &Packet<F::Addr>,
) -> Result<(), Failed> {
    let l4 = network_length(packet.l4).ok_or(Failed)?;
    let mut network = MaybeUninit::uninit();
    let network = zeroed::<NETWORK_WORDS>(&mut network);
    load(skb, l2, network, l4)?;
    let mut transport = MaybeUninit::uninit();
    let transport = zeroed::<TRANSPORT_WORDS>(&mut transport);
    let quoted = if packet.proto == proto::TCP {
        load(skb, l2 + l4, transport, 20)?;
        20
    } else {
        load(skb, l2 + l4, transport, 8)?;
        8
    };

    // ORDER: before the room is made, because this ends segmentation offload of UDP, with which no
    // room can be made.
    let pending = cut(skb, l2, packet, quoted)?;
    let sum = if pending {
        // The checksum is half a word of the transport header.
        let field = if packet.proto == proto::TCP {
            transport[4]
        } else {
            transport[1]
        };
        let [a, b, c, d] = field.to_ne_bytes();
        let field = if packet.proto == proto::TCP {
            [a, b]
        } else {
            [c, d]
        };
        u32::from(!u16::from_ne_bytes(field))
    } else {
        // Cutting took the end of the header away, and gave zeros back.
        store(skb, l2 + l4, transport, quoted)?;
        checksum::sum(transport)
    };
    let sum = checksum::add(sum, checksum::sum(network));

    let mut macs = MaybeUninit::uninit();
    let macs = zeroed::<3>(&mut macs);
    if l2 != 0 {
        load(skb, 0, macs, 12)?;
    }
    let length = unreachable::header_length::<F>();
    // SAFETY: the context is valid; the helper checks the rest.
    if unsafe { bpf_skb_adjust_room(skb, length.cast_signed(), ROOM_MAC, 0) } != 0 {
        return Err(Failed);
    }
    let mut headers = MaybeUninit::uninit();
    let headers = zeroed::<HEADER_WORDS>(&mut headers);
    unreachable::write_headers::<F>(packet, l4 + quoted, sum, headers);
    store(skb, l2, headers, length)?;
    if l2 != 0 {
        swap_halves(macs);
        // Link-layer headers are no part of the sum that the device may have computed.
        store_plainly(skb, 0, macs, 12, 0)?;
    }
    if packet.proto != proto::TCP || packet.first_fragment {
        return Ok(());
    }
    // SAFETY: the context is valid; the helper takes numbers beside it.
    if unsafe { bpf_clone_redirect(skb, device, 0) } != 0 {
        return Err(Failed);
    }
    // SAFETY: as above.
    if unsafe { bpf_skb_adjust_room(skb, -length.cast_signed(), ROOM_MAC, 0) } != 0 {
        return Err(Failed);
    }
    // What was quoted is still there, behind link-layer headers that are an answer's already.
    reset::write_headers::<F>(packet, pending, network, transport);
    store(skb, l2, network, l4)?;
    store(skb, l2 + l4, transport, quoted)
}

/// Cuts the packet down to what is quoted; true when its checksum is still to be written by the
/// device.
///
/// Nothing says so, but then the kernel refuses to cut off any of the checksum's bytes.
#[inline(always)]
fn cut<A>(skb: *mut __sk_buff, l2: u32, packet: &Packet<A>, quoted: u32) -> Result<bool, Failed> {
    let inside = l2 + packet.checksum_offset() + 1;
    // SAFETY: the context is valid; the helper checks the length.
    let pending = match unsafe { bpf_skb_change_tail(skb, inside, 0) } {
        0 => false,
        E_INVAL => true,
        _ => return Err(Failed),
    };
    // SAFETY: as above.
    match unsafe { bpf_skb_change_tail(skb, l2 + packet.l4 + quoted, 0) } {
        0 => Ok(pending),
        _ => Err(Failed),
    }
}

/// Link-layer destination and source in each other's place.
#[inline(always)]
fn swap_halves(macs: &mut [u32; 3]) {
    let [d0, d1, d2, d3] = macs[0].to_ne_bytes();
    let [d4, d5, s0, s1] = macs[1].to_ne_bytes();
    let [s2, s3, s4, s5] = macs[2].to_ne_bytes();
    macs[0] = u32::from_ne_bytes([s0, s1, s2, s3]);
    macs[1] = u32::from_ne_bytes([s4, s5, d0, d1]);
    macs[2] = u32::from_ne_bytes([d2, d3, d4, d5]);
}

/// Zeroes words in place, one by one: the compiler for BPF would call `memset`, which writes
/// single bytes in a loop.
#[inline(always)]
fn zeroed<const N: usize>(words: &mut MaybeUninit<[u32; N]>) -> &mut [u32; N] {
    let first = words.as_mut_ptr().cast::<u32>();
    let mut index = 0;
    while index < N {
        // SAFETY: within the array.
        unsafe { first.add(index).write_volatile(0) };
        index += 1;
    }
    // SAFETY: every word has been written.
    unsafe { words.assume_init_mut() }
}

#[inline(always)]
fn load<const N: usize>(
    skb: *mut __sk_buff,
    at: u32,
    words: &mut [u32; N],
    length: u32,
) -> Result<(), Failed> {
    let to = words.as_mut_ptr().cast::<c_void>();
    // SAFETY: the callers' lengths are at most that of the array; the verifier checks that too.
    match unsafe { bpf_skb_load_bytes(skb.cast(), at, to, length) } {
        0 => Ok(()),
        _ => Err(Failed),
    }
}

/// Writes, and corrects the sum over the packet where the device has computed one.
#[inline(always)]
fn store<const N: usize>(
    skb: *mut __sk_buff,
    at: u32,
    words: &[u32; N],
    length: u32,
) -> Result<(), Failed> {
    store_plainly(skb, at, words, length, BPF_F_RECOMPUTE_CSUM.into())
}

#[inline(always)]
fn store_plainly<const N: usize>(
    skb: *mut __sk_buff,
    at: u32,
    words: &[u32; N],
    length: u32,
    flags: u64,
) -> Result<(), Failed> {
    let from = ptr::from_ref(words).cast::<c_void>();
    // SAFETY: the callers' lengths are at most that of the array; the verifier checks that too.
    match unsafe { bpf_skb_store_bytes(skb, at, from, length, flags) } {
        0 => Ok(()),
        _ => Err(Failed),
    }
}
