// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Rewriting a packet as the work record says; the only place where packet bytes change.
//!
//! What happens to the transport checksum, by the state the socket buffer is in:
//! - NONE, UNNECESSARY: the checksum in the packet is complete and gets the difference.
//! - PARTIAL (sent by a local socket, offload pending): the field holds the sum of the pseudo
//!   header, so the address counts and the ports do not. Hence two calls, of which only the one
//!   for the address has `BPF_F_PSEUDO_HDR`.
//! - COMPLETE: the sum over the packet must stay true as well. For IPv4 the header checksum makes
//!   up for the address, so the helper corrects the sum by the change of the transport checksum;
//!   for IPv6 address and transport checksum cancel out, which the helper knows only with
//!   `BPF_F_IPV6`, set where the kernel has it. A veth never produces COMPLETE.
//!
//! UDP's checksum zero means "none" and stays zero. SCTP's is another one, see `sctp.rs`.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use lb_common::abi::proto;
use lb_common::{Address as _, Reason};
use lb_ebpf::checksum;
use lb_ebpf::path::{Side, Work};

use super::{Host, sctp};

/// `BPF_F_IPV6` where the kernel has it, else 0; written by the loader.
#[unsafe(no_mangle)]
static CSUM_IPV6: u32 = 0;

/// Offsets within the network headers, in bytes.
const V4_CHECKSUM: u32 = 10;
const V6_SOURCE: u32 = 8;
const V6_DESTINATION: u32 = 24;

/// Checksum and addresses of IPv4, as they lie in the packet.
#[repr(C)]
struct Ipv4Tail {
    checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
}

/// Carries out `work.edit`.
#[inline(always)]
pub(crate) fn edit<F: Host>(ctx: &TcContext, l2: u32, work: &Work<F::Addr>) -> Result<(), Reason> {
    let packet = &work.packet;
    let new = &work.edit;
    let old = match new.side {
        Side::Destination => packet.destination.words(),
        Side::Source => packet.source.words(),
    };
    let words = F::Addr::LEN / 4;
    let difference = checksum::difference(&old, &new.address.words(), words);

    transport::<F>(ctx, l2, work, difference)?;
    addresses::<F>(ctx, l2, work, difference, 0)?;
    link(ctx, l2, work)
}

/// Writes the ports, and the transport checksum for them and for an address that changed by
/// `difference`.
#[inline(always)]
fn transport<F: Host>(
    ctx: &TcContext,
    l2: u32,
    work: &Work<F::Addr>,
    difference: u32,
) -> Result<(), Reason> {
    let packet = &work.packet;
    let new = &work.edit;
    let from = ports(packet.source_port, packet.destination_port);
    let to = ports(new.source_port, new.destination_port);
    if packet.proto == proto::SCTP {
        if from == to {
            return Ok(());
        }
        // Its checksum is over a whole of which this is a part.
        if packet.first_fragment {
            return Err(Reason::Fragment);
        }
        let length = packet.length.wrapping_sub(packet.l4);
        return match sctp::write_ports(ctx.skb.skb, l2 + packet.l4, from, to, length) {
            0 => Ok(()),
            _ => Err(Reason::Malformed),
        };
    }
    let at = l2 + packet.checksum_offset();
    let mut flags = u64::from(BPF_F_PSEUDO_HDR);
    let mut port_flags = 4;
    if packet.proto == proto::UDP {
        flags |= u64::from(BPF_F_MARK_MANGLED_0);
        port_flags |= u64::from(BPF_F_MARK_MANGLED_0);
    }
    if F::IS_V6 {
        // SAFETY: a constant of the program, read volatile because the loader replaces it.
        flags |= u64::from(unsafe { ptr::read_volatile(&raw const CSUM_IPV6) });
    }
    replace_sum(ctx, at, 0, difference, flags)?;
    if from != to {
        replace_sum(ctx, at, from, to, port_flags)?;
        store(ctx, l2 + packet.l4, &to, 0)?;
    }
    Ok(())
}

/// Writes the address that changes by `difference`, and the IPv4 header checksum.
#[inline(always)]
pub(super) fn addresses<F: Host>(
    ctx: &TcContext,
    l2: u32,
    work: &Work<F::Addr>,
    difference: u32,
    flags: u64,
) -> Result<(), Reason> {
    let packet = &work.packet;
    let new = &work.edit;
    if F::IS_V6 {
        let offset = match new.side {
            Side::Destination => V6_DESTINATION,
            Side::Source => V6_SOURCE,
        };
        return store(ctx, l2 + offset, &new.address, flags);
    }
    let changed = new.address.words()[0].to_ne_bytes();
    let (source, destination) = match new.side {
        Side::Destination => (packet.source.words()[0].to_ne_bytes(), changed),
        Side::Source => (changed, packet.destination.words()[0].to_ne_bytes()),
    };
    let tail = Ipv4Tail {
        checksum: checksum::update(packet.header_checksum, difference),
        source,
        destination,
    };
    store(ctx, l2 + V4_CHECKSUM, &tail, flags)
}

/// Writes the link-layer destination, if it changes.
#[inline(always)]
pub(super) fn link<A>(ctx: &TcContext, l2: u32, work: &Work<A>) -> Result<(), Reason> {
    if work.edit.bridged && l2 != 0 {
        store(ctx, 0, &work.edit.next_hop, 0)?;
    }
    Ok(())
}

/// Both ports as the word that lies in the packet.
#[inline(always)]
pub(super) fn ports(source: u16, destination: u16) -> u32 {
    let [s0, s1] = source.to_be_bytes();
    let [d0, d1] = destination.to_be_bytes();
    u32::from_ne_bytes([s0, s1, d0, d1])
}

#[inline(always)]
fn replace_sum(ctx: &TcContext, at: u32, from: u32, to: u32, flags: u64) -> Result<(), Reason> {
    // SAFETY: the context is valid; the helper checks the offset.
    let result =
        unsafe { bpf_l4_csum_replace(ctx.skb.skb, at, u64::from(from), u64::from(to), flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(Reason::Malformed)
    }
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "what is stored is a header field"
)]
fn store<T>(ctx: &TcContext, at: u32, value: &T, flags: u64) -> Result<(), Reason> {
    // SAFETY: the value is readable for its size; the helper checks the offset.
    let result = unsafe {
        bpf_skb_store_bytes(
            ctx.skb.skb,
            at,
            ptr::from_ref(value).cast::<c_void>(),
            size_of::<T>() as u32,
            flags,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Reason::Malformed)
    }
}
