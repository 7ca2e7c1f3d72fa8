// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Questions to the kernel's own tables: sockets and routes. Asked once per new flow.
//!
//! **Invariant:** an answer that cannot be had is "no": the flow then works as it would without
//! the question, save for the rare collision that the question is about.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff as Skb, BPF_F_CURRENT_NETNS, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    bpf_fib_lookup as FibLookup, bpf_sock_tuple as SockTuple,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
};
use lb_common::Address as _;
use lb_common::abi::{ConnKey, IfaceFlags, proto};
use lb_ebpf::tables::NextHop;

use super::{Host, World};

/// States of TCP sockets (`include/net/tcp_states.h`) that hold no connection.
const TIME_WAIT: u32 = 6;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;

/// Zeroes a value in place, word by word: the compiler for BPF would call `memset`, which writes
/// single bytes in a loop.
///
/// # Safety
/// `T` has exactly `N` aligned words `W`, and all bytes zero is a valid value of it.
#[inline(always)]
unsafe fn zeroed<T, W: Copy + Default, const N: usize>(value: &mut MaybeUninit<T>) -> &mut T {
    const { assert!(size_of::<T>() == N * size_of::<W>()) }
    let words = value.as_mut_ptr().cast::<W>();
    let mut index = 0;
    while index < N {
        // SAFETY: within the value as asserted.
        unsafe { words.add(index).write_volatile(W::default()) };
        index += 1;
    }
    // SAFETY: every byte has been written.
    unsafe { value.assume_init_mut() }
}

/// The key as the kernel's lookups of sockets take it, and the size of the part that counts.
#[inline(always)]
fn tuple_of<'a, F: Host>(
    tuple: &'a mut MaybeUninit<SockTuple>,
    key: &ConnKey<F::Addr>,
) -> (&'a mut SockTuple, u32) {
    // SAFETY: nine words of four bytes are the whole tuple, for which zero is valid.
    let tuple = unsafe { zeroed::<_, u32, 9>(tuple) };
    let from = key.source.words();
    let to = key.destination.words();
    let size = if F::IS_V6 {
        // SAFETY: the union's member for this family.
        let v6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        v6.saddr = from;
        v6.daddr = to;
        v6.sport = key.source_port.to_be();
        v6.dport = key.destination_port.to_be();
        36
    } else {
        // SAFETY: the union's member for this family.
        let v4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        v4.saddr = from[0];
        v4.daddr = to[0];
        v4.sport = key.source_port.to_be();
        v4.dport = key.destination_port.to_be();
        12
    };
    (tuple, size)
}

/// Whether a namespace has a connection of TCP that packets with this key belong to.
///
/// VERIFIER: a function of its own, so that the tuple is not on the caller's stack.
#[inline(never)]
fn has_connection<F: Host>(skb: *mut Skb, key: &ConnKey<F::Addr>, netns: u64) -> bool {
    let mut tuple = MaybeUninit::<SockTuple>::uninit();
    let (tuple, size) = tuple_of::<F>(&mut tuple, key);
    // SAFETY: the context is valid, the tuple is on our stack and `size` says which member.
    unsafe {
        let sock = bpf_skc_lookup_tcp(skb.cast(), tuple, size, netns, 0);
        if sock.is_null() {
            return false;
        }
        let state = (*sock).state;
        bpf_sk_release(sock.cast());
        state != LISTEN && state != TIME_WAIT && state != CLOSE
    }
}

/// Whether a namespace has a socket of UDP that packets with this key go to.
#[inline(never)]
fn has_datagram_socket<F: Host>(skb: *mut Skb, key: &ConnKey<F::Addr>, netns: u64) -> bool {
    let mut tuple = MaybeUninit::<SockTuple>::uninit();
    let (tuple, size) = tuple_of::<F>(&mut tuple, key);
    // SAFETY: as in `has_connection`.
    unsafe {
        let sock = bpf_sk_lookup_udp(skb.cast(), tuple, size, netns, 0);
        if sock.is_null() {
            return false;
        }
        bpf_sk_release(sock.cast());
    }
    true
}

impl World {
    /// Whether the namespace behind the device has a connection of its own with the tuple that
    /// the reply would have. Only a veth's other end can be asked.
    #[inline(always)]
    pub(super) fn client_has_socket<F: Host>(&self, reply: &ConnKey<F::Addr>) -> bool {
        let Some(iface) = self.iface() else {
            return false;
        };
        if iface.flags & IfaceFlags::PEER_NETNS == 0 {
            return false;
        }
        has_connection::<F>(self.skb, reply, u64::from(iface.peer_netns))
    }

    /// Whether a socket of this namespace gets packets with this key: a connection of TCP, or any
    /// socket of UDP.
    #[inline(always)]
    pub(super) fn node_has_socket<F: Host>(&self, key: &ConnKey<F::Addr>) -> bool {
        const CURRENT_NETNS: u64 = (BPF_F_CURRENT_NETNS as i64).cast_unsigned();
        if key.proto == proto::TCP {
            return has_connection::<F>(self.skb, key, CURRENT_NETNS);
        }
        if key.proto != proto::UDP {
            return false;
        }
        has_datagram_socket::<F>(self.skb, key, CURRENT_NETNS)
    }

    /// Whether the destination is behind the bridge that the device is a port of.
    #[inline(always)]
    pub(super) fn bridge_hop<F: Host>(&self, destination: &F::Addr) -> NextHop {
        let Some(iface) = self.iface() else {
            return NextHop::Routed;
        };
        if iface.bridge == 0 {
            return NextHop::Routed;
        }
        let hop = neighbour::<F>(self.skb, iface.bridge, destination);
        let [answer, _, d0, d1, d2, d3, d4, d5] = hop.to_be_bytes();
        match answer {
            KNOWN => NextHop::Bridged([d0, d1, d2, d3, d4, d5]),
            UNKNOWN => NextHop::Unresolved,
            _ => NextHop::Routed,
        }
    }
}

/// Answers of [`neighbour`].
const ELSEWHERE: u8 = 0;
const UNKNOWN: u8 = 1;
const KNOWN: u8 = 2;

/// Whether the destination is behind a bridge: one of the answers above in the highest byte, and
/// the link-layer address in the lowest six.
///
/// VERIFIER: a function of its own, so that the request is not on the caller's stack.
#[inline(never)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the size of a request is 64 bytes"
)]
fn neighbour<F: Host>(skb: *mut Skb, bridge: u32, destination: &F::Addr) -> u64 {
    let mut request = MaybeUninit::<FibLookup>::uninit();
    // SAFETY: sixteen words of four bytes are the whole request, for which zero is valid.
    let request = unsafe { zeroed::<_, u32, 16>(&mut request) };
    request.family = F::AF;
    request.ifindex = bridge;
    let words = destination.words();
    if F::IS_V6 {
        request.__bindgen_anon_4.ipv6_dst = words;
    } else {
        request.__bindgen_anon_4.ipv4_dst = words[0];
    }
    // SAFETY: the context is valid and the request is on our stack with its own size.
    let result = unsafe { bpf_fib_lookup(skb.cast(), request, size_of::<FibLookup>() as i32, 0) };
    let answer = if request.ifindex != bridge {
        ELSEWHERE
    } else if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        KNOWN
    } else if result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        UNKNOWN
    } else {
        ELSEWHERE
    };
    let [d0, d1, d2, d3, d4, d5] = request.dmac;
    u64::from_be_bytes([answer, 0, d0, d1, d2, d3, d4, d5])
}
