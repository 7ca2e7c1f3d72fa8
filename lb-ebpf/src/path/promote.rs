// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Moving a flow from the table of those that have only begun to that of the established ones.
//!
//! TCP moves when the client has acknowledged the backend's answer, which a flood of SYNs with made
//! up addresses never does; UDP when the backend has answered.
//! **Invariant:** the entries are in the new table before they leave the old one, so every packet
//! finds its flow.

use lb_common::abi::{Action, Conn, ConnState, Direction, Hook, proto};
use lb_common::{Family, Reason};

use super::Work;
use crate::packet::tcp;
use crate::tables::{InsertError, Table, Tables};

/// Whether a packet of the direction `by` makes its half-open flow an established one.
#[inline(always)]
pub(super) fn is_due<A: Copy>(work: &Work<A>, by: Direction) -> bool {
    let is_reply = by as u8 == Direction::Reply as u8;
    if work.packet.proto == proto::UDP {
        return is_reply;
    }
    !is_reply
        && work.packet.tcp_flags & (tcp::SYN | tcp::RST) == 0
        && work.conn.reply_seen & ConnState::REPLIED != 0
}

/// Moves the flow whose one entry is in `work.conn` after a packet of the direction `by` that showed
/// `bits` of it, which is in the entries already. Without room, TCP is refused and will come again; UDP stays where it is.
#[inline(never)]
pub(super) fn promote<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    by: Direction,
    bits: u8,
) -> Result<(), Reason> {
    work.pair_key = work.conn.pair_key(&work.key);
    if let Some(pair) = tables.conn(Table::HalfOpen, &work.pair_key) {
        work.pair.take_over(pair);
    } else {
        // It gave way to newer flows; all that matters of it is known from this one.
        mirror(work);
    }
    let now = tables.now();
    work.pair.last_seen = now;
    work.conn.last_seen = now;
    match by {
        Direction::Request => work.conn.request_seen |= bits,
        Direction::Reply => work.conn.reply_seen |= bits,
    }
    work.pair.request_seen = work.conn.request_seen;
    work.pair.reply_seen = work.conn.reply_seen;
    let room = put(tables, work);
    if room {
        tables.remove_conn(Table::HalfOpen, &work.key);
        tables.remove_conn(Table::HalfOpen, &work.pair_key);
        work.table = Table::Established;
        return Ok(());
    }
    if work.packet.proto == proto::UDP {
        tables.count(Reason::EstablishedFull);
        return Ok(());
    }
    Err(Reason::EstablishedFull)
}

/// Inserts both entries into the table of established flows; false without room for both.
#[inline(always)]
fn put<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> bool {
    // An entry that is there already was put there by a packet of this flow on another CPU.
    let inserted = tables.insert_conn(Table::Established, &work.pair_key, &work.pair);
    if let Err(InsertError::Full) = inserted {
        return false;
    }
    let own = tables.insert_conn(Table::Established, &work.key, &work.conn);
    if let Err(InsertError::Full) = own {
        if inserted.is_ok() {
            tables.remove_conn(Table::Established, &work.pair_key);
        }
        return false;
    }
    true
}

/// Makes the entry of the other direction from the one in `work.conn`.
#[inline(always)]
fn mirror<A: lb_common::Address>(work: &mut Work<A>)
where
    Conn<A>: Copy,
{
    work.pair.take_over(&work.conn);
    work.pair.packets = 0;
    work.pair.bytes[0] = 0;
    work.pair.bytes[1] = 0;
    work.pair.hop = 0;
    let packet = &work.packet;
    if work.key.hook == Hook::Ingress as u8 {
        work.pair.peer = A::from_words(packet.destination.words());
        work.pair.peer_port = packet.destination_port;
        work.pair.client_port = packet.source_port;
    } else {
        work.pair.peer = A::from_words(packet.source.words());
        work.pair.peer_port = packet.source_port;
        work.pair.client_port = packet.destination_port;
    }
    work.pair.action = match Action::from_byte(work.conn.action) {
        Some(Action::Dnat) | None => Action::UndoDnat as u8,
        Some(Action::UndoDnat) => Action::Dnat as u8,
        Some(Action::Snat) => Action::UndoSnat as u8,
        Some(Action::UndoSnat) => Action::Snat as u8,
    };
}
