// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What a packet does to the entries of its flow, and they to it.
//!
//! Both entries carry the same state; it changes a handful of times in a connection's life, and
//! only then the other entry is looked up.
//! **Invariant:** a packet that changes no state and finds a fresh `last_seen` writes nothing but
//! the counters of its own entry.

use lb_common::abi::{
    Action, ConnFlags, ConnState, Direction, Hook, Hop, copy_link_address, proto,
};
use lb_common::{Family, Reason};

use super::{Side, Work, promote};
use crate::packet::tcp;
use crate::tables::{NextHop, Table, Tables};

/// The flags of the answer to a SYN.
const OPENED: u8 = tcp::SYN | tcp::ACK;

/// Looks for the packet's entry, counts the packet in it and puts it into the work record.
#[inline(always)]
pub(super) fn find<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    half_open_too: bool,
) -> bool {
    let Some((table, conn)) = tables.find(&work.key, half_open_too) else {
        return false;
    };
    work.conn.take_over(conn);
    work.table = table;
    true
}

/// Rewrites a packet as its entry in `work.conn` says, and notes what it showed of its flow.
#[inline(always)]
pub(super) fn apply<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
) -> Result<(), Reason> {
    resolve_hop(tables, work);
    fill_edit(work);
    let by = match Action::from_byte(work.conn.action) {
        Some(action) => action.direction(),
        None => Direction::Request,
    };
    let mut bits = shown(work.packet.proto, work.packet.tcp_flags, by);
    if work.table as u8 == Table::HalfOpen as u8 && is_of_earlier_connection(work) {
        bits = ConnState::RESET;
    }
    note(tables, work, by, bits);
    if work.table as u8 == Table::HalfOpen as u8 && promote::is_due(work, by) {
        promote::promote(tables, work, by, bits)?;
    }
    if work.conn.flags & ConnFlags::MASQUERADED != 0 && work.conn.action == Action::Dnat as u8 {
        tables.set_mark(true);
    }
    Ok(())
}

/// Asks again for the link-layer address of a backend on the client's bridge.
#[inline(always)]
fn resolve_hop<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) {
    if work.conn.hop == Hop::Unresolved as u8
        && let NextHop::Bridged(address) = tables.next_hop(&work.conn.peer)
    {
        work.conn.next_hop = address;
        work.conn.hop = Hop::Bridged as u8;
        tables.set_next_hop(work.table, &work.key, address);
    }
}

/// What an entry rewrites depends on nothing but the hook.
#[inline(always)]
fn fill_edit<A: lb_common::Address>(work: &mut Work<A>) {
    let conn = &work.conn;
    work.edit.address = A::from_words(conn.peer.words());
    if work.key.hook == Hook::Ingress as u8 {
        work.edit.source_port = conn.client_port;
        work.edit.destination_port = conn.peer_port;
        work.edit.side = Side::Destination;
        work.edit.bridged = conn.hop == Hop::Bridged as u8;
        if work.edit.bridged {
            copy_link_address(&mut work.edit.next_hop, &conn.next_hop);
        }
    } else {
        work.edit.source_port = conn.peer_port;
        work.edit.destination_port = conn.client_port;
        work.edit.side = Side::Source;
        work.edit.bridged = false;
    }
}

/// The state bits that a packet sets.
#[inline(always)]
fn shown(proto: u8, flags: u8, by: Direction) -> u8 {
    let is_reply = by as u8 == Direction::Reply as u8;
    if proto == proto::UDP {
        return if is_reply { ConnState::REPLIED } else { 0 };
    }
    if is_reply && flags & OPENED == OPENED {
        return ConnState::REPLIED;
    }
    let mut bits = 0;
    if flags & tcp::FIN != 0 {
        bits |= if is_reply {
            ConnState::FIN_REPLY
        } else {
            ConnState::FIN_REQUEST
        };
    }
    if flags & tcp::RST != 0 {
        bits |= ConnState::RESET;
    }
    bits
}

/// True when a backend answers a masqueraded SYN by what is no answer to one: it has an earlier connection
/// from that port, and goes on saying so (RFC 9293, 3.10.7.4). Over as it is then, the flow gets another
/// port when its SYN is repeated. An answer that does come after all makes good for it.
#[inline(always)]
fn is_of_earlier_connection<A: Copy>(work: &Work<A>) -> bool {
    work.conn.action == Action::UndoSnat as u8
        && work.packet.proto == proto::TCP
        && work.packet.tcp_flags & (tcp::SYN | tcp::RST) == 0
        && work.conn.reply_seen & ConnState::REPLIED == 0
}

/// Writes down what a packet showed of its flow, in both entries when it is news.
#[inline(always)]
fn note<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    by: Direction,
    bits: u8,
) {
    if work.conn.state() & bits != bits {
        work.other_key = work.conn.pair_key(&work.key);
        tables.mark_conn(work.table, &work.key, by, bits);
        tables.mark_conn(work.table, &work.other_key, by, bits);
    }
    let seen = match by {
        Direction::Request => work.conn.request_seen,
        Direction::Reply => work.conn.reply_seen,
    };
    // Who resets a connection says nothing more: the RST was not his, or was ignored for being
    // out of the window (RFC 5961), and the connection lives.
    if seen & ConnState::RESET != 0 && bits & ConnState::RESET == 0 {
        work.other_key = work.conn.pair_key(&work.key);
        tables.unmark_conn(work.table, &work.key, by, ConnState::RESET);
        tables.unmark_conn(work.table, &work.other_key, by, ConnState::RESET);
    }
    let now = tables.now();
    if now.wrapping_sub(work.conn.last_seen) >= tables.ticks_per_second() {
        tables.touch_conn(work.table, &work.key, now);
    }
}

/// True when the entry in `work.conn` is one of masqueraded replies whose other half is gone or is a
/// newer flow's: what looks like ours may then belong to the kernel's own masquerading, which chooses
/// ports by itself. Looked at once a second, together with `last_seen`.
#[inline(always)]
pub(super) fn is_stray<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> bool {
    if work.conn.action != Action::UndoSnat as u8 {
        return false;
    }
    let age = tables.now().wrapping_sub(work.conn.last_seen);
    if age < tables.ticks_per_second() {
        return false;
    }
    work.other_key = work.conn.pair_key(&work.key);
    let paired = tables
        .conn(work.table, &work.other_key)
        .is_some_and(|other| other.pair_key(&work.other_key) == work.key);
    if paired {
        return false;
    }
    tables.remove_conn(work.table, &work.key);
    tables.count(Reason::MasqueradeStray);
    true
}
