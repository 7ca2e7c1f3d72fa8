// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! tc egress: packets from backends back to clients, and requests that must be masqueraded.
//!
//! One lookup for every packet of TCP, ours or not. The backend is not checked again: a late answer
//! of a removed backend still reaches the client under the address it dialled.
//! **Invariant:** the entry alone says what to write; no frontend needs to exist any more.

use lb_common::abi::{Action, ConnFlags, ConnKey, ConnState, Hook, proto};
use lb_common::{Family, Reason};

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
    let found = match tables.find(&work.key, may_be_new) {
        Some((table, conn)) => {
            work.conn.take_over(conn);
            work.table = table;
            true
        }
        None => false,
    };
    if !found && (!marked || tables.masquerades_by_mark()) {
        return Outcome::Pass;
    }
    if work.packet.first_fragment {
        return Outcome::Refused(Reason::Fragment);
    }
    if !found || must_begin(tables, work) {
        if !found {
            work.conn.flags = 0;
        }
        return Outcome::Begin;
    }
    let outcome = flow::apply(tables, work);
    if work.conn.action == Action::Snat as u8 {
        tables.set_mark(false);
    }
    outcome.into()
}

/// Whether the flow in `work.conn` is to be masqueraded and has no address and port yet.
#[inline(always)]
fn must_begin<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> bool {
    if work.conn.action != Action::Snat as u8 {
        return false;
    }
    let opens = work.packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    if opens && ConnState::is_over(work.conn.state()) {
        // The tuple is used anew: the flow before it must not end this one.
        work.other_key = work.conn.pair_key(&work.key);
        tables.remove_conn(work.table, &work.other_key);
        tables.remove_conn(work.table, &work.key);
        return true;
    }
    work.conn.flags & ConnFlags::PENDING != 0
}
