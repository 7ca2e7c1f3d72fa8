// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! tc ingress: packets from clients towards frontends, and replies to masqueraded requests.
//!
//! An established flow costs one lookup; one of UDP also reads a word of an array, because a datagram
//! must not go to a backend that is gone. See the README for what each packet costs.
//! **Invariant:** TCP that neither opens a connection nor has an entry goes to the stack, so
//! connections that something else translates live on.

use lb_common::abi::{Action, ConnFlags, ConnKey, ConnState, Hook, proto};
use lb_common::{Family, Reason};

use super::{Outcome, Work, flow, select};
use crate::packet::tcp;
use crate::tables::{Table, Tables};

/// What is to be done with a packet before its entry is applied.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    /// Nothing at all: it is not ours.
    Leave,
    /// It is for no frontend and may begin a flow: see [`direct`].
    Direct,
    /// Its entry is in `work.conn`.
    Apply,
    /// A flow through the frontend in `work.choice.frontend` begins.
    Open,
    /// A flow that needs another source port begins.
    OpenDirect,
}

/// Decides about a packet whose headers are in `work.packet`.
#[inline(always)]
pub fn request<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Outcome {
    let packet = &work.packet;
    work.key = ConnKey::new(
        (packet.source, packet.source_port),
        (packet.destination, packet.destination_port),
        packet.proto,
        Hook::Ingress,
    );
    let opens = packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    // One way in for each step, so that each is there once in the program.
    let begins = packet.proto == proto::UDP || opens;
    let mut step = if begins && !tables.may_be_known(&work.key) {
        work.found = false;
        Step::Direct
    } else if packet.proto == proto::UDP {
        datagram(tables, work)
    } else if opens {
        opening(tables, work)
    } else if flow::find(tables, work, true) && !flow::is_stray(tables, work) {
        Step::Apply
    } else {
        Step::Leave
    };
    if step == Step::Direct {
        step = direct(tables, work);
    }
    // What a frontend that drains would begin is whoever else's.
    let drains = step == Step::Open && work.choice.frontend.is_draining();
    if step == Step::Leave || drains {
        return Outcome::Pass;
    }
    if step == Step::Apply {
        return flow::apply(tables, work).into();
    }
    work.direct = step == Step::OpenDirect;
    Outcome::Begin
}

/// A datagram: of a flow that keeps its backend, a reply to a masqueraded one, or the first one of a
/// flow.
#[inline(always)]
fn datagram<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Step {
    let found = flow::find(tables, work, true);
    let mut version = 0;
    if found {
        if work.conn.action == Action::UndoSnat as u8 {
            return reply_or_stray(tables, work);
        }
        // ORDER: before the tables that it stands for.
        version = tables.version(work.conn.service);
        if work.conn.service != 0
            && version != 0
            && version == work.conn.validated
            && has_reply(tables, work)
        {
            return Step::Apply;
        }
    }
    if !look_up_frontend(tables, work) {
        work.found = found;
        return Step::Direct;
    }
    if !found || !may_continue(tables, work) {
        return Step::Open;
    }
    tables.set_validated(work.table, &work.key, version);
    Step::Apply
}

/// A reply to a masqueraded request, whose entry is in `work.conn`.
#[inline(always)]
fn reply_or_stray<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Step {
    if flow::is_stray(tables, work) {
        Step::Leave
    } else {
        Step::Apply
    }
}

/// A packet that opens a connection.
#[inline(always)]
fn opening<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Step {
    let is_for_us = look_up_frontend(tables, work);
    let found = flow::find(tables, work, true);
    if !is_for_us {
        work.found = found;
        return Step::Direct;
    }
    if found && may_continue(tables, work) {
        Step::Apply
    } else {
        Step::Open
    }
}

/// Puts the frontend that the packet is for into the work record.
#[inline(always)]
fn look_up_frontend<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> bool {
    let packet = &work.packet;
    select::look_up(
        tables,
        &mut work.choice,
        (packet.destination, packet.destination_port),
        packet.proto,
    )
}

/// Whether the packet belongs to the flow in `work.conn` and that flow keeps its backend; otherwise
/// whatever is left of the flow is out of the way.
#[inline(always)]
fn may_continue<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> bool {
    let over = ConnState::is_over(work.conn.state());
    let alive = tables.backend(work.conn.backend).is_some_and(|backend| {
        backend.epoch == work.conn.epoch && backend.service == work.conn.service
    });
    // A connection of TCP being opened keeps its backend through a change of the frontend: a SYN
    // sent twice must not reach two backends.
    let current = work.packet.proto != proto::UDP
        || (work.conn.generation == work.choice.frontend.generation
            && work.conn.service == work.choice.frontend.service);
    if alive && current && !over && has_reply(tables, work) {
        return true;
    }
    if !over {
        tables.count(Reason::Reselected);
    }
    tables.remove_conn(work.table, &work.key);
    if work.conn.flags & ConnFlags::MASQUERADED != 0 {
        // The next flow of this tuple may be one that keeps its source.
        forget_masquerade(tables, work, Table::Established);
        forget_masquerade(tables, work, Table::HalfOpen);
    }
    // The reply entry of a dead backend's UDP flow stays until it is swept, so that an answer
    // under way still reaches the client under the frontend's address.
    if work.packet.proto != proto::UDP {
        work.other_key = work.conn.pair_key(&work.key);
        tables.remove_conn(work.table, &work.other_key);
    }
    false
}

/// Removes the pair of entries that masquerades the requests of the flow in `work.conn`, answers
/// under way included: what comes from another source than the client's is of no use to it.
///
/// An established pair that is over is no flow's any more and in nobody's way. It keeps its port from
/// others until it is swept, because the backend may still wait for the last acknowledgement.
#[inline(always)]
fn forget_masquerade<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    table: Table,
) {
    work.other_key = ConnKey::new(
        (work.packet.source, work.conn.client_port),
        (work.conn.peer, work.conn.peer_port),
        work.packet.proto,
        Hook::Egress,
    );
    let Some(snat) = tables.conn(table, &work.other_key) else {
        return;
    };
    if table as u8 == Table::Established as u8 && ConnState::is_over(snat.state()) {
        return;
    }
    work.pair_key = snat.pair_key(&work.other_key);
    tables.remove_conn(table, &work.other_key);
    tables.remove_conn(table, &work.pair_key);
}

/// Whether the reply entry of the flow in `work.conn` is there, without which the client would
/// get replies from the backend's own address. Entries come and go in pairs, but not in one step:
/// the agent may sweep the old flow of a tuple at the moment when its new one begins, and of a flow
/// that has only begun either entry may give way to newer ones.
///
/// A datagram looks only when `last_seen` is due as well, once a second and not every time.
#[inline(always)]
fn has_reply<F: Family, T: Tables<F>>(tables: &T, work: &mut Work<F::Addr>) -> bool {
    let age = tables.now().wrapping_sub(work.conn.last_seen);
    if work.packet.proto == proto::UDP && age < tables.ticks_per_second() {
        return true;
    }
    work.other_key = work.conn.pair_key(&work.key);
    let reply = tables.conn(work.table, &work.other_key);
    reply.is_some_and(|reply| reply.pair_key(&work.other_key) == work.key)
}

/// Direct traffic matters only when a flow through a frontend has the very tuple that this packet's
/// reply will have: then its source port must change.
///
/// Costs one lookup, and a second one when a half-open flow may have the tuple.
#[inline(always)]
fn direct<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Step {
    let packet = &work.packet;
    work.pair_key = ConnKey::new(
        (packet.destination, packet.destination_port),
        (packet.source, packet.source_port),
        packet.proto,
        Hook::Egress,
    );
    let collides =
        is_taken(tables, work, Table::Established) || is_taken(tables, work, Table::HalfOpen);
    // What is left of a flow of UDP through a frontend that is no more stays until it is swept, for an
    // answer under way.
    let in_the_way = collides || work.packet.proto != proto::UDP;
    if work.found && in_the_way && work.conn.action == Action::Dnat as u8 {
        if work.conn.service == 0 && !ConnState::is_over(work.conn.state()) {
            return Step::Apply;
        }
        // An earlier flow of this tuple, or one through a frontend that is no more.
        work.other_key = work.conn.pair_key(&work.key);
        tables.remove_conn(work.table, &work.key);
        tables.remove_conn(work.table, &work.other_key);
    }
    if collides {
        Step::OpenDirect
    } else {
        Step::Leave
    }
}

/// Whether a living flow through a frontend has the key in `work.pair_key`.
#[inline(always)]
fn is_taken<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    table: Table,
) -> bool {
    let Some(other) = tables.conn(table, &work.pair_key) else {
        return false;
    };
    // A masqueraded request of the other direction is no claim on this packet's replies.
    if other.action != Action::UndoDnat as u8 {
        return false;
    }
    if !ConnState::is_over(other.state()) {
        return true;
    }
    // Left in place, the entry of the flow that ended would claim this one's replies.
    work.other_key = other.pair_key(&work.pair_key);
    tables.remove_conn(table, &work.pair_key);
    tables.remove_conn(table, &work.other_key);
    false
}
