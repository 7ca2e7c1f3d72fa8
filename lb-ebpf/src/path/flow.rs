// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What a packet does to the entries of its flow, and they to it.
//!
//! Both entries carry the same state; it changes a handful of times in a connection's life, and
//! only then the other entry is looked up.
//! **Invariant:** a packet that changes no state and finds a fresh `last_seen` writes nothing.

use lb_common::abi::{Conn, ConnKey, ConnState, Direction, Hop, copy_link_address, proto};
use lb_common::{Address as _, Family};

use super::{Decision, Side, Work};
use crate::packet::tcp;
use crate::tables::{NextHop, Tables};

/// The flags of the answer to a SYN.
const OPENED: u8 = tcp::SYN | tcp::ACK;

/// Rewrites a request as its entry in `work.request` says.
#[inline(always)]
pub(super) fn forward<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
) -> Decision {
    if work.request.hop == Hop::Unresolved as u8
        && let NextHop::Bridged(address) = tables.next_hop(&work.request.peer)
    {
        work.request.next_hop = address;
        work.request.hop = Hop::Bridged as u8;
        tables.set_next_hop(&work.request_key, address);
    }
    let conn = &work.request;
    work.edit.address = F::Addr::from_words(conn.peer.words());
    work.edit.source_port = conn.client_port;
    work.edit.destination_port = conn.peer_port;
    work.edit.side = Side::Destination;
    work.edit.bridged = conn.hop == Hop::Bridged as u8;
    if work.edit.bridged {
        copy_link_address(&mut work.edit.next_hop, &conn.next_hop);
    }
    let bits = if work.packet.proto == proto::TCP {
        closing(work.packet.tcp_flags, ConnState::FIN_REQUEST)
    } else {
        0
    };
    note(
        tables,
        Direction::Request,
        &work.request_key,
        &work.request,
        bits,
        &mut work.other_key,
    );
    Decision::Edit
}

/// Rewrites a reply as its entry in `work.reply` says.
#[inline(always)]
pub(super) fn back<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Decision {
    let conn = &work.reply;
    work.edit.address = F::Addr::from_words(conn.peer.words());
    work.edit.source_port = conn.peer_port;
    work.edit.destination_port = conn.client_port;
    work.edit.side = Side::Source;
    work.edit.bridged = false;
    let flags = work.packet.tcp_flags;
    let bits = if work.packet.proto == proto::UDP || flags & OPENED == OPENED {
        ConnState::REPLIED
    } else {
        closing(flags, ConnState::FIN_REPLY)
    };
    note(
        tables,
        Direction::Reply,
        &work.reply_key,
        &work.reply,
        bits,
        &mut work.other_key,
    );
    Decision::Edit
}

/// The state bits that a packet of TCP sets when it closes its direction.
#[inline(always)]
fn closing(flags: u8, fin: u8) -> u8 {
    let mut bits = 0;
    if flags & tcp::FIN != 0 {
        bits |= fin;
    }
    if flags & tcp::RST != 0 {
        bits |= ConnState::RESET;
    }
    bits
}

/// Writes down what a packet showed of its flow, in both entries when it is news.
#[inline(always)]
fn note<F: Family, T: Tables<F>>(
    tables: &mut T,
    by: Direction,
    key: &ConnKey<F::Addr>,
    conn: &Conn<F::Addr>,
    bits: u8,
    other_key: &mut ConnKey<F::Addr>,
) {
    if conn.state() & bits != bits {
        *other_key = conn.pair_key(key);
        tables.mark_conn(key, by, bits);
        tables.mark_conn(other_key, by, bits);
    }
    let seen = match by {
        Direction::Request => conn.request_seen,
        Direction::Reply => conn.reply_seen,
    };
    // Who resets a connection says nothing more: the RST was not his, or was ignored for being
    // out of the window (RFC 5961), and the connection lives.
    if seen & ConnState::RESET != 0 && bits & ConnState::RESET == 0 {
        *other_key = conn.pair_key(key);
        tables.unmark_conn(key, by, ConnState::RESET);
        tables.unmark_conn(other_key, by, ConnState::RESET);
    }
    let now = tables.now();
    if now.wrapping_sub(conn.last_seen) >= tables.ticks_per_second() {
        tables.touch_conn(key, now);
    }
}
