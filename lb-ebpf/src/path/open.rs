// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Opening a flow: a backend, a reply tuple that nobody else has, two entries.
//!
//! The reply entry is inserted first and must be new: it is the claim on the tuple. When it is
//! taken, other backends are tried, then other source ports.
//! **Invariant:** no request entry exists without its reply entry.

use lb_common::abi::{Action, Conn, ConnKey, ConnState, Hook, Hop, Policy, proto};
use lb_common::{Address as _, Family, Reason};

use super::{Outcome, Work, flow, select};
use crate::tables::{InsertError, NextHop, Tables};

/// Backends tried with the client's own source port.
const BACKEND_ATTEMPTS: u32 = 4;
/// Attempts in all; those after the backends take a random source port each. With a quarter of
/// the range taken towards one backend, four random ports all fail once in 256 flows.
const ATTEMPTS: u32 = 8;
/// Source ports to change to: the range that clients themselves choose from
/// (`ip_local_port_range`), where no server listens.
const PORTS_FIRST: u32 = 32_768;
const PORTS: u32 = 28_232;

/// What came of one attempt.
#[derive(PartialEq, Eq)]
enum Claim {
    /// The flow has its entries.
    Done,
    /// The reply tuple is taken by a living flow.
    Taken,
}

/// Opens a flow through the frontend in `work.frontend` and rewrites its first packet.
#[inline(always)]
pub(super) fn open<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Outcome {
    select::choose_list(work);
    if work.count == 0 {
        return Err(
            if work.frontend.policy(work.scope) & Policy::DROP_IF_EMPTY == 0 {
                Reason::NoBackend
            } else {
                Reason::PolicyDrop
            },
        );
    }
    let position = select::select_position(tables, work);
    let mut others = false;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let own_port = attempt < BACKEND_ATTEMPTS && attempt < u32::from(work.count);
        select::select_backend(tables, work, position, attempt)?;
        attempt += 1;
        // Reaching itself needs SNAT; another backend serves as well.
        if work.backend.address.words() == work.packet.source.words() {
            continue;
        }
        others = true;
        let client_port = if own_port {
            work.packet.source_port
        } else {
            random_port(tables)
        };
        prepare(tables, work, client_port);
        if claim(tables, work)? == Claim::Done {
            if !own_port && client_port != work.packet.source_port {
                tables.count(Reason::SourcePortChanged);
            }
            return Ok(flow::forward(tables, work));
        }
    }
    Err(if others {
        Reason::NoSourcePort
    } else {
        Reason::Hairpin
    })
}

/// Opens a flow that goes where it says, with another source port, because a flow through a
/// frontend has its reply tuple.
#[inline(always)]
pub(super) fn open_direct<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
) -> Outcome {
    work.backend.service = 0;
    work.backend.epoch = 0;
    work.backend.address = work.packet.destination;
    work.backend.port = work.packet.destination_port;
    work.backend_id = 0;
    work.frontend.generation = 0;
    let mut attempt = 0;
    while attempt < BACKEND_ATTEMPTS {
        attempt += 1;
        let client_port = random_port(tables);
        prepare(tables, work, client_port);
        // A direct flow is routed or bridged as its own headers say already.
        work.request.hop = Hop::Routed as u8;
        if claim(tables, work)? == Claim::Done {
            tables.count(Reason::SourcePortChanged);
            return Ok(flow::forward(tables, work));
        }
    }
    Err(Reason::NoSourcePort)
}

/// A random source port.
#[inline(always)]
fn random_port<F: Family, T: Tables<F>>(tables: &mut T) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "the range ends below 2^16")]
    let port = (PORTS_FIRST + tables.random() % PORTS) as u16;
    port
}

/// Writes both entries of the flow to the chosen backend into the work record.
#[inline(always)]
fn prepare<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>, client_port: u16) {
    let now = tables.now();
    let packet = &work.packet;
    work.request = Conn::new(
        Action::Dnat,
        (work.backend.address, work.backend.port),
        client_port,
        now,
    );
    work.request.service = work.backend.service;
    work.request.backend = work.backend_id;
    work.request.epoch = work.backend.epoch;
    work.request.generation = work.frontend.generation;
    work.reply_key = ConnKey::new(
        (work.backend.address, work.backend.port),
        (packet.source, client_port),
        packet.proto,
        Hook::Egress,
    );
    work.reply = Conn::new(
        Action::UndoDnat,
        (packet.destination, packet.destination_port),
        packet.source_port,
        now,
    );
    work.reply.service = work.request.service;
    work.reply.backend = work.request.backend;
    work.reply.epoch = work.request.epoch;
    work.reply.generation = work.request.generation;
}

/// Claims the reply tuple and inserts both entries.
#[inline(always)]
fn claim<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
) -> Result<Claim, Reason> {
    match tables.insert_conn(&work.reply_key, &work.reply) {
        Ok(()) => {}
        Err(InsertError::Full) => return Err(Reason::ConnectionsFull),
        Err(InsertError::Exists) => {
            if !take_over(tables, work)? {
                return Ok(Claim::Taken);
            }
        }
    }
    if work.packet.proto == proto::TCP && tables.has_direct_socket(&work.reply_key) {
        tables.remove_conn(&work.reply_key);
        return Ok(Claim::Taken);
    }
    if work.backend_id != 0 {
        match tables.next_hop(&work.backend.address) {
            NextHop::Routed => {}
            NextHop::Unresolved => work.request.hop = Hop::Unresolved as u8,
            NextHop::Bridged(address) => {
                work.request.hop = Hop::Bridged as u8;
                work.request.next_hop = address;
            }
        }
    }
    match tables.insert_conn(&work.request_key, &work.request) {
        Ok(()) => Ok(Claim::Done),
        Err(InsertError::Full) => {
            tables.remove_conn(&work.reply_key);
            Err(Reason::ConnectionsFull)
        }
        Err(InsertError::Exists) => {
            yield_to_first(tables, work)?;
            Ok(Claim::Done)
        }
    }
}

/// Takes a reply tuple over from a flow that no longer needs it: one that is over, or an earlier
/// one of the same client to the same frontend. False when the other flow lives.
#[inline(always)]
fn take_over<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
) -> Result<bool, Reason> {
    let Some(existing) = tables.conn(&work.reply_key) else {
        // It was removed just now; the next attempt will have it.
        return Ok(false);
    };
    let over = ConnState::is_over(existing.state());
    work.other_key = existing.pair_key(&work.reply_key);
    if work.other_key == work.request_key {
        return match tables.replace_conn(&work.reply_key, &work.reply) {
            Ok(()) => Ok(true),
            Err(_) => Err(Reason::ConnectionsFull),
        };
    }
    if !over {
        return Ok(false);
    }
    // The place of the flow that ended is claimed like a free one, since another CPU may want it
    // for yet another flow.
    tables.remove_conn(&work.other_key);
    tables.remove_conn(&work.reply_key);
    match tables.insert_conn(&work.reply_key, &work.reply) {
        Ok(()) => Ok(true),
        Err(InsertError::Exists) => Ok(false),
        Err(InsertError::Full) => Err(Reason::ConnectionsFull),
    }
}

/// Another packet of the same flow was faster on another CPU: its choice holds.
#[inline(always)]
fn yield_to_first<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
) -> Result<(), Reason> {
    tables.count(Reason::InsertRace);
    let Some(first) = tables.conn(&work.request_key) else {
        return Err(Reason::TableMiss);
    };
    work.request.take_over(first);
    work.other_key = work.request.pair_key(&work.request_key);
    if work.other_key != work.reply_key {
        tables.remove_conn(&work.reply_key);
    }
    Ok(())
}
