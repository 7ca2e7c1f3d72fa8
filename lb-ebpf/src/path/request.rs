// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! tc ingress: packets from clients towards frontends.
//!
//! An established flow of TCP costs one lookup, a flow of UDP three, because a datagram must not
//! go to a backend that is gone. See the README for what each packet costs.
//! **Invariant:** TCP that neither opens a connection nor has an entry goes to the stack, so
//! connections that something else translates live on.

use lb_common::abi::{ConnKey, ConnState, FrontendKey, Hook, Kind, Scope, proto};
use lb_common::{Family, Reason};

use super::{Decision, Outcome, Work, flow, open};
use crate::packet::tcp;
use crate::tables::Tables;

/// Decides about a packet whose headers are in `work.packet`.
#[inline(always)]
pub fn request<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Outcome {
    let packet = &work.packet;
    work.request_key = ConnKey::new(
        (packet.source, packet.source_port),
        (packet.destination, packet.destination_port),
        packet.proto,
        Hook::Ingress,
    );
    let opens = packet.proto == proto::UDP || packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    if !opens {
        return established(tables, work);
    }
    work.frontend_key = FrontendKey::new(packet.destination, packet.destination_port, packet.proto);
    let Some(frontend) = tables.frontend(&work.frontend_key) else {
        return direct(tables, work);
    };
    // The other kinds need what this path does not have yet: masquerading and source ranges.
    if frontend.kind != Kind::ClusterIp as u8 {
        return direct(tables, work);
    }
    // Sources are not told apart yet.
    work.scope = Scope::Pod;
    work.frontend.take_over(frontend);
    if work.packet.first_fragment {
        return Err(Reason::Fragment);
    }
    if may_continue(tables, work) {
        return Ok(flow::forward(tables, work));
    }
    open::open(tables, work)
}

/// A packet of TCP in the middle of a connection.
#[inline(always)]
fn established<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Outcome {
    let Some(conn) = tables.conn(&work.request_key) else {
        return Ok(Decision::Pass);
    };
    work.request.take_over(conn);
    if work.packet.first_fragment {
        return Err(Reason::Fragment);
    }
    Ok(flow::forward(tables, work))
}

/// Whether the packet belongs to a flow that keeps its backend; its entry is then in
/// `work.request`, otherwise whatever is left of an earlier flow is out of the way.
#[inline(always)]
fn may_continue<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> bool {
    let Some(conn) = tables.conn(&work.request_key) else {
        return false;
    };
    work.request.take_over(conn);
    let over = ConnState::is_over(work.request.state());
    let alive = tables.backend(work.request.backend).is_some_and(|backend| {
        backend.epoch == work.request.epoch && backend.service == work.request.service
    });
    // A connection of TCP being opened keeps its backend through a change of the frontend: a SYN
    // sent twice must not reach two backends.
    let current = work.packet.proto == proto::TCP
        || (work.request.generation == work.frontend.generation
            && work.request.service == work.frontend.service);
    if alive && current && !over && has_reply(tables, work) {
        return true;
    }
    if !over {
        tables.count(Reason::Reselected);
    }
    tables.remove_conn(&work.request_key);
    // The reply entry of a dead backend's UDP flow stays until it is swept, so that an answer
    // under way still reaches the client under the frontend's address.
    if work.packet.proto == proto::TCP {
        work.other_key = work.request.pair_key(&work.request_key);
        tables.remove_conn(&work.other_key);
    }
    false
}

/// Whether the reply entry of the flow in `work.request` is there, without which the client would
/// get replies from the backend's own address. Entries come and go in pairs, but not in one step:
/// the agent may sweep the old flow of a tuple at the moment when its new one begins.
///
/// A datagram looks only when `last_seen` is due as well, once a second and not every time.
#[inline(always)]
fn has_reply<F: Family, T: Tables<F>>(tables: &T, work: &mut Work<F::Addr>) -> bool {
    let age = tables.now().wrapping_sub(work.request.last_seen);
    if work.packet.proto == proto::UDP && age < tables.ticks_per_second() {
        return true;
    }
    work.other_key = work.request.pair_key(&work.request_key);
    let reply = tables.conn(&work.other_key);
    reply.is_some_and(|reply| reply.pair_key(&work.other_key) == work.request_key)
}

/// A packet that is for no frontend. It matters only when a flow through a frontend has the very
/// tuple that this packet's reply will have: then its source port must change.
///
/// Costs a connection of TCP two lookups when it opens, and every datagram of UDP one.
#[inline(always)]
fn direct<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Outcome {
    let packet = &work.packet;
    work.reply_key = ConnKey::new(
        (packet.destination, packet.destination_port),
        (packet.source, packet.source_port),
        packet.proto,
        Hook::Egress,
    );
    let is_tcp = packet.proto == proto::TCP;
    let mut collides = false;
    if let Some(other) = tables.conn(&work.reply_key) {
        collides = !ConnState::is_over(other.state());
        if !collides {
            // Left in place, the entry of the flow that ended would claim this one's replies.
            work.other_key = other.pair_key(&work.reply_key);
            tables.remove_conn(&work.reply_key);
            tables.remove_conn(&work.other_key);
        }
    }
    if (is_tcp || collides)
        && let Some(own) = tables.conn(&work.request_key)
    {
        work.request.take_over(own);
        if own.service == 0 && !ConnState::is_over(own.state()) {
            return Ok(flow::forward(tables, work));
        }
        // An earlier flow of this tuple, or one through a frontend that is no more.
        work.other_key = work.request.pair_key(&work.request_key);
        tables.remove_conn(&work.request_key);
        tables.remove_conn(&work.other_key);
    }
    if collides {
        open::open_direct(tables, work)
    } else {
        Ok(Decision::Pass)
    }
}
