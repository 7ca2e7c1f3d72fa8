// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The smallest translation that is of any use, to compare the packet path with.
//!
//! One lookup in a preallocated hash of flows, then destination address, destination port and
//! checksums as they must be for every kind of checksum offload. It tracks nothing, knows no
//! options, no fragments, no frontends, and no other protocol than TCP and UDP.
//! **Invariant:** what every translation must do is here and nothing else.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::generated::bpf_l4_csum_replace;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use lb_common::abi::{limits, proto};
use lb_ebpf::checksum;

use crate::layout::{Translation, Tuple};

/// As large as the table of connections, since the cost of a lookup depends on it.
#[btf_map]
static FLOWS_V4: HashMap<Tuple, Translation, { limits::CONNECTIONS as usize }, 0> = HashMap::new();

const ETHERTYPE: usize = 12;
const IP: usize = 14;
const PROTO: usize = IP + 9;
const HEADER_SUM: usize = IP + 10;
const SOURCE: usize = IP + 12;
const DESTINATION: usize = IP + 16;
const L4: usize = IP + 20;
const DESTINATION_PORT: usize = L4 + 2;

/// Reads a value at `at`.
///
/// # Safety
/// The caller has compared `start + at + size_of::<T>()` with the packet's end.
#[inline(always)]
unsafe fn get<T: Copy>(start: usize, at: usize) -> T {
    // SAFETY: in the packet; alignment does not matter to the machines that the bench runs on.
    unsafe { ((start + at) as *const T).read() }
}

/// Writes a value at `at`.
///
/// # Safety
/// As for `get`.
#[inline(always)]
unsafe fn put<T>(start: usize, at: usize, value: T) {
    // SAFETY: in the packet; alignment does not matter to the machines that the bench runs on.
    unsafe { ((start + at) as *mut T).write(value) };
}

/// Translates the destination of a packet of a known flow.
#[classifier]
fn dnat_v4(ctx: TcContext) -> i32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + L4 + 8 > end {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: all within the bound just compared.
    let (ethertype, version, protocol, header_sum, source, destination, ports) = unsafe {
        (
            get::<u16>(start, ETHERTYPE),
            get::<u8>(start, IP),
            get::<u8>(start, PROTO),
            get::<[u8; 2]>(start, HEADER_SUM),
            get::<u32>(start, SOURCE),
            get::<u32>(start, DESTINATION),
            get::<u32>(start, L4),
        )
    };
    if ethertype != 0x0800_u16.to_be() || version != 0x45 {
        return TC_ACT_UNSPEC;
    }
    let (sum_at, mangled) = match protocol {
        proto::TCP => (L4 + 16, 0),
        proto::UDP => (L4 + 6, u64::from(BPF_F_MARK_MANGLED_0)),
        _ => return TC_ACT_UNSPEC,
    };
    let key: Tuple = [source, destination, ports, u32::from(protocol)];
    // SAFETY: written before the bench runs.
    let Some(&[address, port]) = (unsafe { FLOWS_V4.get(&key) }) else {
        return TC_ACT_UNSPEC;
    };
    let difference = checksum::difference(&[destination, 0, 0, 0], &[address, 0, 0, 0], 1);
    let header_sum = checksum::update(header_sum, difference);
    // The destination port is the second half of the word that lies in the packet.
    let old_port = ports >> 16;
    let skb = ctx.skb.skb;
    let pseudo = u64::from(BPF_F_PSEUDO_HDR) | mangled;
    // SAFETY: the context is valid, the helpers check offsets.
    let failed = unsafe {
        bpf_l4_csum_replace(skb, sum_at as u32, 0, u64::from(difference), pseudo)
            | bpf_l4_csum_replace(
                skb,
                sum_at as u32,
                u64::from(old_port),
                u64::from(port),
                2 | mangled,
            )
    };
    // VERIFIER: the helpers may have moved the packet, so its bounds are compared anew.
    let (start, end) = (ctx.data(), ctx.data_end());
    if failed != 0 || start + L4 + 4 > end {
        return TC_ACT_SHOT;
    }
    // SAFETY: all within the bound just compared.
    unsafe {
        put(start, HEADER_SUM, u16::from_ne_bytes(header_sum));
        put(start, DESTINATION, address);
        put(start, DESTINATION_PORT, port as u16);
    }
    TC_ACT_UNSPEC
}
