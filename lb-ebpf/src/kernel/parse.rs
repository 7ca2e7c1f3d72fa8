// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Reading the headers of a socket buffer.
//!
//! Directly, where they lie in the linear part; a packet whose headers do not is made linear first,
//! unless that would harm it.
//! **Invariant:** a packet that is not of IPv4 or IPv6 is not even looked at.

use core::arch::asm;
use core::ptr;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use bytemuck::Pod;
use lb_ebpf::packet::{Bytes, Packet};

use super::{Host, World};

/// Most that the headers may take: IPv6 or IPv4 with options, then TCP without.
const HEADERS: u32 = 60 + 20;

/// The ethertype in host order; with the tag offloaded, of what is inside a VLAN.
#[inline(always)]
pub(crate) fn ethertype(ctx: &TcContext) -> u16 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the field holds a 16-bit ethertype"
    )]
    let protocol = ctx.skb.protocol() as u16;
    u16::from_be(protocol)
}

/// Ethertype of an 802.1Q tag.
pub(crate) const TAG: u16 = 0x8100;

/// The ethertype behind an 802.1Q tag that lies in the frame itself, in host order; 0 when the frame
/// ends before it.
#[inline(always)]
pub(crate) fn inner_ethertype(ctx: &TcContext) -> u16 {
    const OFFSET: usize = 16;
    ctx.load::<[u8; 2]>(OFFSET).map_or(0, u16::from_be_bytes)
}

/// Whether the frame is for a VLAN device on this one, or comes from there: that device is where it is
/// looked at, without its tag. A port of a bridge hands tagged frames on to other ports. VLAN 0 is a
/// priority and no VLAN: such a frame is for this very device.
#[inline(always)]
pub(crate) fn is_of_vlan_device(ctx: &TcContext) -> bool {
    const ID: u32 = 0x0fff;
    // SAFETY: the context is valid for as long as the program runs.
    let (present, tag) = unsafe { ((*ctx.skb.skb).vlan_present, (*ctx.skb.skb).vlan_tci) };
    present != 0 && tag & ID != 0 && is_no_bridge_port(ctx.skb.skb) != 0
}

#[inline(never)]
fn is_no_bridge_port(skb: *mut __sk_buff) -> u32 {
    let ctx = TcContext::new(skb);
    let iface = World::new(&ctx, 0).iface();
    u32::from(iface.is_none_or(|iface| iface.bridge == 0))
}

/// The linear part of a socket buffer from the network header on.
struct Linear {
    start: usize,
    end: usize,
}

impl Bytes for Linear {
    #[inline(always)]
    fn read<T: Pod>(&self, offset: u32) -> Option<T> {
        let start = self.start + offset as usize;
        if start + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the packet as just checked. The network header is 4-byte aligned where
        // alignment matters (NET_IP_ALIGN), and every header field read is aligned in it.
        Some(unsafe { (start as *const T).read() })
    }
}

/// Whether the packet is one of SCTP that will be as many as it has buffers (`GSO_BY_FRAGS`).
///
/// What is pulled out of its first buffer would be missing in the first of these packets.
#[inline(always)]
fn is_list(ctx: &TcContext) -> bool {
    const GSO_BY_FRAGS: u32 = 0xffff;
    // SAFETY: the context is valid for as long as the program runs.
    let size = unsafe { (*ctx.skb.skb).gso_size };
    size == GSO_BY_FRAGS
}

/// Reads the headers; see `lb_ebpf::packet::parse`.
#[inline(always)]
pub(crate) fn parse<F: Host>(ctx: &TcContext, l2: u32, packet: &mut Packet<F::Addr>) -> Option<()> {
    (parse_apart::<F>(ctx.skb.skb, l2, packet) != 0).then_some(())
}

/// VERIFIER: a function of its own, so that each way that headers are read ends in one state: what
/// follows is walked two fifths less.
#[inline(never)]
fn parse_apart<F: Host>(skb: *mut __sk_buff, l2: u32, packet: &mut Packet<F::Addr>) -> u32 {
    let ctx = &TcContext::new(skb);
    u32::from(read::<F>(ctx, l2, packet).is_some())
}

#[inline(always)]
fn read<F: Host>(ctx: &TcContext, l2: u32, packet: &mut Packet<F::Addr>) -> Option<()> {
    let wanted = l2 + HEADERS;
    if ctx.data() + wanted as usize > ctx.data_end()
        && ctx.data() + ctx.len() as usize > ctx.data_end()
        && !is_list(ctx)
    {
        let length = if ctx.len() < wanted {
            ctx.len()
        } else {
            wanted
        };
        // When it fails, what is linear is all there is to read.
        ctx.pull_data(length).ok();
    }
    let linear = Linear {
        start: ctx.data() + l2 as usize,
        end: ctx.data_end(),
    };
    lb_ebpf::packet::parse::<F, _>(&linear, packet)
}

/// The same record, of which the compiler knows nothing any more.
///
/// VERIFIER: what the parser found stays in registers otherwise, and every step is walked once for
/// each protocol and for each way that the headers were read.
#[inline(always)]
pub(crate) fn forget<T>(record: &mut T) -> &mut T {
    let mut pointer = ptr::from_mut(record);
    // SAFETY: moves a register to itself; the record's bytes count as touched, but are not.
    unsafe {
        asm!("{0} = {0}", inout(reg) pointer, options(nostack, preserves_flags));
        &mut *pointer
    }
}
