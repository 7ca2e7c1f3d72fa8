// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The library's questions about a packet, answered from the maps and by the kernel's helpers.
//!
//! **Invariant:** values that the packet path changes in place are written by the packets of one
//! direction only. What sockets ask as well is in `lookup.rs`.

use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::programs::TcContext;
use lb_common::abi::{Conn, ConnKey, Direction, Hop, Iface, IfaceFlags, PrefixTable};
use lb_ebpf::tables::{InsertError, Lookup, NextHop, Table, Tables};

use super::maps::IFACES;
use super::presence::{
    may_be_half_open, may_be_half_open_apart, may_be_known, stamp, stamp_if_unlisted,
};
use super::{Host, older, settings};

const E_EXIST: i32 = -17;

/// The kernel around one packet.
pub(crate) struct World {
    pub(super) skb: *mut aya_ebpf::bindings::__sk_buff,
    /// Length of the link-layer header, in bytes.
    l2: u32,
}

impl World {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext, l2: u32) -> Self {
        Self {
            skb: ctx.skb.skb,
            l2,
        }
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

    /// Segments, and bytes from the network header on.
    #[inline(always)]
    fn measure(&self) -> (u32, u32) {
        // SAFETY: the context is valid for as long as the program runs.
        let (segments, length) = unsafe { ((*self.skb).gso_segs, (*self.skb).len) };
        let segments = if segments == 0 { 1 } else { segments };
        (segments, length.wrapping_sub(self.l2))
    }

    /// Counts this packet in an entry.
    #[inline(always)]
    fn count_packet<A>(&self, conn: *mut Conn<A>) {
        let (segments, length) = self.measure();
        // SAFETY: a valid element; packets of one direction count here. Two of them on two CPUs can
        // lose one of their counts.
        unsafe {
            (*conn).packets = (*conn).packets.wrapping_add(segments);
            let low = (*conn).bytes[0].wrapping_add(length);
            if low < length {
                (*conn).bytes[1] = (*conn).bytes[1].wrapping_add(1);
            }
            (*conn).bytes[0] = low;
        }
    }
}

/// The entry of a key for changing, in either table, of one that `find` has just found.
#[inline(always)]
fn own_entry<F: Host>(table: Table, key: &ConnKey<F::Addr>) -> Option<*mut Conn<F::Addr>> {
    match table {
        Table::Established => F::conns().get_ptr_mut(key),
        Table::HalfOpen => F::half_open().get_ptr_mut(key),
    }
}

/// The entry of any key for changing, in either table.
#[inline(always)]
fn entry<F: Host>(table: Table, key: &ConnKey<F::Addr>) -> Option<*mut Conn<F::Addr>> {
    let entry = own_entry::<F>(table, key);
    if entry.is_none() && older::carry_over::<F>(table, key) {
        return own_entry::<F>(table, key);
    }
    entry
}

impl<F: Host> Tables<F> for World {
    #[inline(always)]
    fn may_be_known(&self, key: &ConnKey<F::Addr>) -> bool {
        may_be_known(key)
    }

    #[inline(always)]
    fn find(
        &mut self,
        key: &ConnKey<F::Addr>,
        half_open_too: bool,
    ) -> Option<(Table, &Conn<F::Addr>)> {
        let mut table = Table::Established;
        let mut conn = entry::<F>(table, key);
        if conn.is_none() && half_open_too && may_be_half_open(key) {
            table = Table::HalfOpen;
            conn = entry::<F>(table, key);
        }
        let conn = conn?;
        self.count_packet(conn);
        // SAFETY: as in `conn`.
        Some((table, unsafe { &*conn }))
    }

    #[inline(always)]
    fn conn(&self, table: Table, key: &ConnKey<F::Addr>) -> Option<&Conn<F::Addr>> {
        if table as u8 == Table::HalfOpen as u8 && !may_be_half_open_apart(key) {
            return None;
        }
        let conn = entry::<F>(table, key)?;
        // SAFETY: fields that change after insertion are words or written by one direction. An
        // element that is removed while it is read may be used anew within nanoseconds: only
        // flows that have been silent for their whole timeout, or half-open ones that give way,
        // are removed under a reader.
        Some(unsafe { &*conn })
    }

    #[inline(always)]
    fn insert_conn(
        &mut self,
        table: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        insert::<F>(table, key, conn, BPF_NOEXIST)
    }

    #[inline(always)]
    fn replace_conn(
        &mut self,
        table: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        insert::<F>(table, key, conn, BPF_ANY)
    }

    #[inline(always)]
    fn remove_conn(&mut self, table: Table, key: &ConnKey<F::Addr>) {
        older::remove::<F>(table, key);
        // An entry that is gone already is as good as one removed.
        match table {
            Table::Established => F::conns().remove(key).ok(),
            Table::HalfOpen => F::half_open().remove(key).ok(),
        };
    }

    #[inline(always)]
    fn touch_conn(&mut self, table: Table, key: &ConnKey<F::Addr>, now: u32) {
        if table as u8 == Table::HalfOpen as u8 {
            stamp(key, now);
        }
        if let Some(conn) = own_entry::<F>(table, key) {
            // SAFETY: an aligned word of a valid element, of which the others are only read.
            unsafe {
                ptr::write_volatile(&raw mut (*conn).last_seen, now);
                stamp_if_unlisted(key, &*conn, now);
            }
        }
    }

    #[inline(always)]
    fn mark_conn(&mut self, table: Table, key: &ConnKey<F::Addr>, by: Direction, bits: u8) {
        if let Some(conn) = entry::<F>(table, key) {
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
    fn unmark_conn(&mut self, table: Table, key: &ConnKey<F::Addr>, by: Direction, bits: u8) {
        if let Some(conn) = entry::<F>(table, key) {
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
    fn set_next_hop(&mut self, table: Table, key: &ConnKey<F::Addr>, address: [u8; 6]) {
        if let Some(conn) = own_entry::<F>(table, key) {
            // SAFETY: a valid element; only requests of this one flow write these fields.
            unsafe {
                (*conn).next_hop = address;
                (*conn).hop = Hop::Bridged as u8;
            }
        }
    }

    #[inline(always)]
    fn set_validated(&mut self, table: Table, key: &ConnKey<F::Addr>, version: u32) {
        if let Some(conn) = own_entry::<F>(table, key) {
            // SAFETY: an aligned word of a valid element.
            unsafe { ptr::write_volatile(&raw mut (*conn).validated, version) };
        }
    }

    #[inline(always)]
    fn is_pod(&self, source: &F::Addr) -> bool {
        let Some(iface) = self.iface() else {
            return false;
        };
        if iface.flags & IfaceFlags::POD_BY_ADDRESS == 0 {
            return iface.flags & IfaceFlags::POD != 0;
        }
        Lookup::<F>::prefix(self, PrefixTable::PODS, source).is_some()
    }

    #[inline(always)]
    fn size(&self) -> (u32, u32) {
        self.measure()
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*self.skb).ifindex }
    }

    #[inline(always)]
    fn is_marked(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).mark & settings::mark() != 0 }
    }

    #[inline(always)]
    fn set_mark(&mut self, on: bool) {
        // SAFETY: as above, and programs of this kind may write the mark.
        unsafe {
            if on {
                (*self.skb).mark |= settings::mark();
            } else {
                (*self.skb).mark &= !settings::mark();
            }
        }
    }

    #[inline(always)]
    fn masquerades_by_mark(&self) -> bool {
        settings::masquerades_by_mark()
    }

    #[inline(always)]
    fn is_masquerade_port(&self, port: u16) -> bool {
        settings::is_masquerade_port(port)
    }

    #[inline(always)]
    fn masquerade_port(&self, random: u32) -> u16 {
        settings::masquerade_port(random)
    }

    #[inline(always)]
    fn has_own_socket(&self, key: &ConnKey<F::Addr>) -> bool {
        self.node_has_socket::<F>(key)
    }

    #[inline(always)]
    fn has_direct_socket(&self, reply: &ConnKey<F::Addr>) -> bool {
        self.client_has_socket::<F>(reply)
    }

    #[inline(always)]
    fn next_hop(&self, destination: &F::Addr) -> NextHop {
        self.bridge_hop::<F>(destination)
    }
}

#[inline(always)]
fn insert<F: Host>(
    table: Table,
    key: &ConnKey<F::Addr>,
    conn: &Conn<F::Addr>,
    flags: u32,
) -> Result<(), InsertError> {
    stamp_if_unlisted(key, conn, conn.last_seen);
    if flags == BPF_NOEXIST {
        older::carry_over::<F>(table, key);
    } else {
        older::remove::<F>(table, key);
    }
    let inserted = match table {
        Table::Established => F::conns().insert(key, conn, u64::from(flags)),
        Table::HalfOpen => {
            // ORDER: before the entry, so that no packet finds the one without the other.
            stamp(key, conn.last_seen);
            F::half_open().insert(key, conn, u64::from(flags))
        }
    };
    match inserted {
        Ok(()) => Ok(()),
        Err(E_EXIST) => Err(InsertError::Exists),
        Err(_) => Err(InsertError::Full),
    }
}
