// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The library's questions, answered from the maps and by the kernel's helpers.
//!
//! **Invariant:** values that the packet path changes in place are changed atomically or are
//! written by the packets of one direction only.

use core::arch::asm;
use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64};
use aya_ebpf::programs::TcContext;
use lb_common::Reason;
use lb_common::abi::{
    Backend, Conn, ConnKey, Cursor, Direction, Frontend, FrontendKey, Hop, Iface, SlotKey,
};
use lb_ebpf::tables::{InsertError, NextHop, Tables};

use super::Host;
use super::maps::{CURSORS, IFACES, REASONS, SLOTS};

const E_EXIST: i32 = -17;

/// Jiffies in a second on this kernel; written by the loader.
#[unsafe(no_mangle)]
static HZ: u32 = 250;

/// The kernel around one packet.
pub(crate) struct World {
    pub(super) skb: *mut aya_ebpf::bindings::__sk_buff,
}

impl World {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb }
    }

    /// What is known of the device that the packet came in by.
    #[inline(always)]
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "the helper takes the key by address"
    )]
    pub(super) fn iface(&self) -> Option<&'static Iface> {
        // SAFETY: the context is valid for as long as the program runs.
        let index = unsafe { (*self.skb).ifindex };
        // SAFETY: written by the agent only, as a whole.
        unsafe { IFACES.get(&index) }
    }
}

impl<F: Host> Tables<F> for World {
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<&Frontend> {
        // SAFETY: written by the agent only, which replaces elements as a whole.
        unsafe { F::frontends().get(key) }
    }

    #[inline(always)]
    fn slot(&self, key: &SlotKey) -> Option<u32> {
        // SAFETY: an aligned word is read whole.
        unsafe { SLOTS.get(key).copied() }
    }

    #[inline(always)]
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "the helper takes the key by address"
    )]
    fn backend(&self, id: u32) -> Option<&Backend<F::Addr>> {
        // SAFETY: written by the agent only, which replaces elements as a whole. An element that
        // is removed while it is read may be used anew within nanoseconds; the service is checked
        // on the copy, which catches all but another backend of the same service.
        unsafe { F::backends().get(&id) }
    }

    #[inline(always)]
    fn advance_cursor(&mut self, service: u32) -> Cursor {
        let Some(cursor) = CURSORS.get_ptr_mut(service) else {
            return 0;
        };
        fetch_add(cursor, 1)
    }

    #[inline(always)]
    fn conn(&self, key: &ConnKey<F::Addr>) -> Option<&Conn<F::Addr>> {
        // SAFETY: fields that change after insertion are words or written by one direction. An
        // element that is removed while it is read may be used anew within nanoseconds: only
        // flows that have been silent for their whole timeout are removed under a reader.
        unsafe { F::conns().get(key) }
    }

    #[inline(always)]
    fn insert_conn(
        &mut self,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        insert::<F>(key, conn, BPF_NOEXIST)
    }

    #[inline(always)]
    fn replace_conn(
        &mut self,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        insert::<F>(key, conn, BPF_ANY)
    }

    #[inline(always)]
    fn remove_conn(&mut self, key: &ConnKey<F::Addr>) {
        // An entry that is gone already is as good as one removed.
        F::conns().remove(key).ok();
    }

    #[inline(always)]
    fn touch_conn(&mut self, key: &ConnKey<F::Addr>, now: u32) {
        if let Some(conn) = F::conns().get_ptr_mut(key) {
            // SAFETY: an aligned word of a valid element.
            unsafe { ptr::write_volatile(&raw mut (*conn).last_seen, now) };
        }
    }

    #[inline(always)]
    fn mark_conn(&mut self, key: &ConnKey<F::Addr>, by: Direction, bits: u8) {
        if let Some(conn) = F::conns().get_ptr_mut(key) {
            // SAFETY: a byte of a valid element, written by packets of one direction only. Two of
            // them on two CPUs can lose one bit: a FIN then goes unnoticed, and the flow is swept
            // by its longer timeout.
            unsafe {
                match by {
                    Direction::Request => (*conn).request_seen |= bits,
                    Direction::Reply => (*conn).reply_seen |= bits,
                }
            }
        }
    }

    #[inline(always)]
    fn unmark_conn(&mut self, key: &ConnKey<F::Addr>, by: Direction, bits: u8) {
        if let Some(conn) = F::conns().get_ptr_mut(key) {
            // SAFETY: as in `mark_conn`.
            unsafe {
                match by {
                    Direction::Request => (*conn).request_seen &= !bits,
                    Direction::Reply => (*conn).reply_seen &= !bits,
                }
            }
        }
    }

    #[inline(always)]
    fn set_next_hop(&mut self, key: &ConnKey<F::Addr>, address: [u8; 6]) {
        if let Some(conn) = F::conns().get_ptr_mut(key) {
            // SAFETY: a valid element; only requests of this one flow write these fields.
            unsafe {
                (*conn).next_hop = address;
                (*conn).hop = Hop::Bridged as u8;
            }
        }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: the helper has no arguments.
        let jiffies = unsafe { bpf_jiffies64() };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "ages are taken modulo 2^32"
        )]
        let low = jiffies as u32;
        low
    }

    #[inline(always)]
    fn ticks_per_second(&self) -> u32 {
        // SAFETY: a constant of the program, read volatile because the loader replaces it.
        unsafe { ptr::read_volatile(&raw const HZ) }
    }

    #[inline(always)]
    fn random(&mut self) -> u32 {
        // SAFETY: the helper has no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn has_direct_socket(&self, reply: &ConnKey<F::Addr>) -> bool {
        self.client_has_socket::<F>(reply)
    }

    #[inline(always)]
    fn next_hop(&self, destination: &F::Addr) -> NextHop {
        self.bridge_hop::<F>(destination)
    }

    #[inline(always)]
    fn count(&mut self, reason: Reason) {
        if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own element.
            unsafe { *counter += 1 };
        }
    }
}

/// Adds to a word of a map and returns what it was before, as one step for all CPUs.
///
/// The compiler offers no read-modify-write for this target, because the first instruction set
/// had none that returns the old value.
#[inline(always)]
fn fetch_add(word: *mut u64, add: u64) -> u64 {
    let mut value = add;
    // SAFETY: `word` is an aligned element of a map that is only ever used through here.
    // KERNEL: >= 5.12 (BPF_FETCH, commit 5ffa25502b5a).
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            value = inout(reg) value,
            word = in(reg) word,
            options(nostack),
        );
    }
    value
}

#[inline(always)]
fn insert<F: Host>(
    key: &ConnKey<F::Addr>,
    conn: &Conn<F::Addr>,
    flags: u32,
) -> Result<(), InsertError> {
    match F::conns().insert(key, conn, u64::from(flags)) {
        Ok(()) => Ok(()),
        Err(E_EXIST) => Err(InsertError::Exists),
        Err(_) => Err(InsertError::Full),
    }
}
