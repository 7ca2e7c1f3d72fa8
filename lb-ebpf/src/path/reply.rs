// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! tc egress: packets from backends back to clients, and requests that must be masqueraded.
//!
//! One lookup for every packet of TCP, ours or not. The backend is not checked again: a late answer
//! of a removed backend still reaches the client under the address it dialled.
//! **Invariant:** the entry alone says what to write; no frontend needs to exist any more.

use lb_common::Family;
use lb_common::abi::{Action, ConnFlags, ConnKey, ConnState, Hook, proto};

use super::{Outcome, Work, flow};
use crate::packet::tcp;
use crate::tables::Tables;

/// Decides about a packet whose headers are in `work.packet`.
#[inline(always)]
pub fn reply<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Outcome {
    let packet = &work.packet;
    work.key = ConnKey::new(
        (packet.source, packet.source_port),
        (packet.destination, packet.destination_port),
        packet.proto,
        Hook::Egress,
    );
    let marked = tables.is_marked();
    // An answer to a SYN, a refusal, or the request of a masqueraded flow: all else of TCP that is
    // ours is established.
    let may_be_new =
        packet.proto == proto::UDP || packet.tcp_flags & (tcp::SYN | tcp::RST) != 0 || marked;
    let mut found = flow::find(tables, work, may_be_new);
    if found && is_reused(work) {
        // The flow before this one must neither end it nor masquerade it unasked. Its reply entry stays
        // and keeps the port from others, for as long as its backend may wait for the last
        // acknowledgement.
        tables.remove_conn(work.table, &work.key);
        found = flow::find(tables, work, may_be_new);
    }
    if !found && (!marked || tables.masquerades_by_mark()) {
        return Outcome::Pass;
    }
    if !found {
        work.conn.flags = 0;
        return Outcome::Begin;
    }
    if work.conn.flags & ConnFlags::PENDING != 0 {
        return Outcome::Begin;
    }
    let outcome = flow::apply(tables, work);
    if work.conn.action == Action::Snat as u8 {
        tables.set_mark(false);
    }
    outcome.into()
}

/// Whether the packet opens a connection with the tuple of a masqueraded one that is over.
#[inline(always)]
fn is_reused<A: Copy>(work: &Work<A>) -> bool {
    work.conn.action == Action::Snat as u8
        && work.packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
        && ConnState::is_over(work.conn.state())
}
