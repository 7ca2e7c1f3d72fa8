// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Opening a flow: a backend, a reply tuple that nobody else has, two entries.
//!
//! The reply entry is inserted first and must be new: it is the claim on the tuple. When it is
//! taken, other backends are tried, then other source ports.
//! **Invariant:** no request entry exists without its reply entry.

use lb_common::abi::{
    Action, BackendFlags, Conn, ConnFlags, ConnKey, ConnState, Hook, Hop, Policy, Scope, proto,
};
use lb_common::{Address as _, Family, Reason};

use super::{Claim, Outcome, Work, affinity, flow, select};
use crate::tables::{Dialled, InsertError, NextHop, Table, Tables};

/// Backends tried with the client's own source port.
const BACKEND_ATTEMPTS: u32 = 4;
/// Attempts in all; those after the backends take a random source port each. With a quarter of
/// the range taken towards one backend, four random ports all fail once in 256 flows.
const ATTEMPTS: u32 = 8;
/// Source ports to change to: the range that clients themselves choose from
/// (`ip_local_port_range`), where no server listens.
const PORTS_FIRST: u32 = 32_768;
const PORTS: u32 = 28_232;

/// Opens the flow that [`super::request()`] found to begin, and decides about its first packet.
#[inline(never)]
pub fn begin<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Outcome {
    let opened = if work.direct {
        open_direct(tables, work)
    } else {
        open(tables, work)
    };
    match opened {
        Ok(()) => flow::apply(tables, work).into(),
        Err(reason) => Outcome::Refused(reason),
    }
}

/// Opens a flow through the frontend in `work.choice.frontend`; its entry is in `work.conn` then.
#[inline(always)]
fn open<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Result<(), Reason> {
    let service = work.choice.frontend.service;
    work.choice.scope = if tables.is_pod(&work.packet.source) {
        Scope::Pod
    } else {
        Scope::External
    };
    if let Err(reason) = select::admit(tables, &mut work.choice, &work.packet.source) {
        tables.count_service(service, Dialled::Rejected);
        return Err(reason);
    }
    work.version = select::version(tables, &work.choice, work.packet.proto);
    let kept = affinity::kept_backend(tables, &mut work.choice, &work.packet.source);
    let position = if kept {
        0
    } else {
        select::select_position(tables, &work.choice, &work.packet)
    };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let own_port = attempt == 0
            || !kept && attempt < BACKEND_ATTEMPTS && attempt < u32::from(work.choice.count);
        if !kept {
            select::select_backend(tables, &mut work.choice, position, attempt)?;
        }
        attempt += 1;
        let client_port = if own_port {
            work.packet.source_port
        } else {
            random_port(tables)
        };
        prepare(tables, work, client_port);
        if claim(tables, work).is_done()? {
            if !own_port && client_port != work.packet.source_port {
                tables.count(Reason::SourcePortChanged);
            }
            ask_for_masquerade(tables, work);
            affinity::keep(tables, &work.choice, (work.conn.backend, work.conn.epoch));
            tables.count_service(service, Dialled::Opened);
            return Ok(());
        }
    }
    Err(Reason::NoSourcePort)
}

/// Opens a flow that goes where it says, with another source port, because a flow through a
/// frontend has its reply tuple.
#[inline(always)]
fn open_direct<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
) -> Result<(), Reason> {
    work.choice.backend.service = 0;
    work.choice.backend.epoch = 0;
    work.choice.backend.address = work.packet.destination;
    work.choice.backend.port = work.packet.destination_port;
    work.choice.backend.flags = BackendFlags::ON_THIS_NODE;
    work.choice.backend_id = 0;
    work.choice.frontend.generation = 0;
    work.choice.frontend.pod_policy = 0;
    work.choice.scope = Scope::Pod;
    work.version = 0;
    let mut attempt = 0;
    while attempt < BACKEND_ATTEMPTS {
        attempt += 1;
        let client_port = random_port(tables);
        prepare(tables, work, client_port);
        // A direct flow is routed or bridged as its own headers say already.
        work.conn.hop = Hop::Routed as u8;
        if claim(tables, work).is_done()? {
            tables.count(Reason::SourcePortChanged);
            return Ok(());
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
#[inline(never)]
fn prepare<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>, client_port: u16) {
    let now = tables.now();
    let packet = &work.packet;
    work.conn = Conn::new(
        Action::Dnat,
        (work.choice.backend.address, work.choice.backend.port),
        client_port,
        now,
    );
    work.conn.service = work.choice.backend.service;
    work.conn.backend = work.choice.backend_id;
    work.conn.epoch = work.choice.backend.epoch;
    work.conn.generation = work.choice.frontend.generation;
    work.conn.flags = masquerade_flag(work);
    work.conn.validated = work.version;
    (work.conn.packets, work.conn.bytes[0]) = tables.size();
    work.pair_key = ConnKey::new(
        (work.choice.backend.address, work.choice.backend.port),
        (packet.source, client_port),
        packet.proto,
        Hook::Egress,
    );
    work.pair = Conn::new(
        Action::UndoDnat,
        (packet.destination, packet.destination_port),
        packet.source_port,
        now,
    );
    work.pair.service = work.conn.service;
    work.pair.backend = work.conn.backend;
    work.pair.epoch = work.conn.epoch;
    work.pair.generation = work.conn.generation;
    work.pair.flags = work.conn.flags;
    work.table = Table::HalfOpen;
}

/// `ConnFlags::MASQUERADED` when the frontend's policy asks for it, or when a client reaches itself:
/// it would take the answer of its own address for a stranger's.
#[inline(always)]
fn masquerade_flag<A: lb_common::Address>(work: &Work<A>) -> u8 {
    let policy = work.choice.frontend.policy(work.choice.scope);
    let remote = work.choice.backend.flags & BackendFlags::ON_THIS_NODE == 0;
    let hairpin = work.choice.backend.address.words() == work.packet.source.words();
    let wanted =
        hairpin || policy & Policy::SNAT_ALWAYS != 0 || policy & Policy::SNAT_REMOTE != 0 && remote;
    u8::from(wanted) * ConnFlags::MASQUERADED
}

/// Leaves word at egress that the flow is to be masqueraded, for the case that the packet's mark
/// does not get there.
#[inline(always)]
fn ask_for_masquerade<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) {
    if work.conn.flags & ConnFlags::MASQUERADED == 0 || tables.masquerades_by_mark() {
        return;
    }
    work.other_key = ConnKey::new(
        (work.packet.source, work.conn.client_port),
        (work.conn.peer, work.conn.peer_port),
        work.packet.proto,
        Hook::Egress,
    );
    work.pair.take_over(&work.conn);
    work.pair.action = Action::Snat as u8;
    // Egress counts this packet itself.
    work.pair.packets = 0;
    work.pair.bytes[0] = 0;
    work.pair.flags = ConnFlags::PENDING;
    // Without room the mark alone must do; an entry that is there serves this flow as well.
    tables
        .insert_conn(Table::HalfOpen, &work.other_key, &work.pair)
        .ok();
}

/// Claims the reply tuple and inserts both entries.
#[inline(never)]
fn claim<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Claim {
    // Who reaches itself from the very port that it serves: both directions would look the same.
    if work.choice.backend.port == work.conn.client_port
        && work.choice.backend.address.words() == work.packet.source.words()
    {
        return Claim::Taken;
    }
    match tables.insert_conn(Table::HalfOpen, &work.pair_key, &work.pair) {
        Ok(()) => {}
        Err(InsertError::Full) => return Claim::Refused(Reason::ConnectionsFull),
        Err(InsertError::Exists) => {
            let taken_over = take_over(tables, work);
            if taken_over != Claim::Done {
                return taken_over;
            }
        }
    }
    // ORDER: after the insertion, so that a flow that becomes established meanwhile is seen in one
    // table or the other.
    if is_established(tables, work)
        || work.packet.proto == proto::TCP && tables.has_direct_socket(&work.pair_key)
    {
        tables.remove_conn(Table::HalfOpen, &work.pair_key);
        return Claim::Taken;
    }
    if work.choice.backend_id != 0 && work.conn.flags & ConnFlags::MASQUERADED == 0 {
        match tables.next_hop(&work.choice.backend.address) {
            NextHop::Routed => {}
            NextHop::Unresolved => work.conn.hop = Hop::Unresolved as u8,
            NextHop::Bridged(address) => {
                work.conn.hop = Hop::Bridged as u8;
                work.conn.next_hop = address;
            }
        }
    }
    match tables.insert_conn(Table::HalfOpen, &work.key, &work.conn) {
        Ok(()) => Claim::Done,
        Err(InsertError::Full) => {
            tables.remove_conn(Table::HalfOpen, &work.pair_key);
            Claim::Refused(Reason::ConnectionsFull)
        }
        Err(InsertError::Exists) => yield_to_first(tables, work),
    }
}

/// Whether an established flow has the reply tuple: one that lives, or one through another frontend
/// that both sides have closed, because the backend may still be in `TIME_WAIT` and take a SYN of the
/// same tuple for an old one. What is left of one that was reset, or of an earlier one of the same
/// client to the same frontend, is removed.
#[inline(always)]
fn is_established<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> bool {
    let Some(existing) = tables.conn(Table::Established, &work.pair_key) else {
        return false;
    };
    let was_reset = existing.state() & ConnState::RESET != 0;
    work.other_key = existing.pair_key(&work.pair_key);
    if work.other_key != work.key {
        if !was_reset {
            return true;
        }
        tables.remove_conn(Table::Established, &work.other_key);
    }
    tables.remove_conn(Table::Established, &work.pair_key);
    false
}

/// Takes a reply tuple over from a half-open flow that no longer needs it: one that is over, or an
/// earlier one of the same client to the same frontend. Taken when the other flow lives.
#[inline(always)]
fn take_over<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Claim {
    let Some(existing) = tables.conn(Table::HalfOpen, &work.pair_key) else {
        // It was removed just now; the next attempt will have it.
        return Claim::Taken;
    };
    let over = ConnState::is_over(existing.state());
    work.other_key = existing.pair_key(&work.pair_key);
    if work.other_key == work.key {
        return match tables.replace_conn(Table::HalfOpen, &work.pair_key, &work.pair) {
            Ok(()) => Claim::Done,
            Err(_) => Claim::Refused(Reason::ConnectionsFull),
        };
    }
    if !over {
        return Claim::Taken;
    }
    // The place of the flow that ended is claimed like a free one, since another CPU may want it
    // for yet another flow.
    tables.remove_conn(Table::HalfOpen, &work.other_key);
    tables.remove_conn(Table::HalfOpen, &work.pair_key);
    match tables.insert_conn(Table::HalfOpen, &work.pair_key, &work.pair) {
        Ok(()) => Claim::Done,
        Err(InsertError::Exists) => Claim::Taken,
        Err(InsertError::Full) => Claim::Refused(Reason::ConnectionsFull),
    }
}

/// Another packet of the same flow was faster on another CPU: its choice holds.
#[inline(always)]
fn yield_to_first<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Claim {
    tables.count(Reason::InsertRace);
    let Some(first) = tables.conn(Table::HalfOpen, &work.key) else {
        return Claim::Refused(Reason::TableMiss);
    };
    work.conn.take_over(first);
    work.other_key = work.conn.pair_key(&work.key);
    if work.other_key != work.pair_key {
        tables.remove_conn(Table::HalfOpen, &work.pair_key);
    }
    Claim::Done
}
