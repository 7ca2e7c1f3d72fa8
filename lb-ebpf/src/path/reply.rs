// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! tc egress: packets from backends back to clients.
//!
//! One lookup for every packet, ours or not. The backend is not checked again: a late answer of a
//! removed backend still reaches the client under the address it dialled.
//! **Invariant:** the reply entry alone says what to write; no frontend needs to exist any more.

use lb_common::abi::{ConnKey, Hook};
use lb_common::{Family, Reason};

use super::{Decision, Outcome, Work, flow};
use crate::tables::Tables;

/// Decides about a packet whose headers are in `work.packet`.
#[inline(always)]
pub fn reply<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Outcome {
    let packet = &work.packet;
    work.reply_key = ConnKey::new(
        (packet.source, packet.source_port),
        (packet.destination, packet.destination_port),
        packet.proto,
        Hook::Egress,
    );
    let Some(conn) = tables.conn(&work.reply_key) else {
        return Ok(Decision::Pass);
    };
    work.reply.take_over(conn);
    if work.packet.first_fragment {
        return Err(Reason::Fragment);
    }
    Ok(flow::back(tables, work))
}
