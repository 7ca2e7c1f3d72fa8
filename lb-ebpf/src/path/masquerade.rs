// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Giving a flow a masquerade address and port, at the egress of the device it leaves by.
//!
//! The headers seen here are what counts, not what ingress wrote: the host may have rewritten the
//! source meanwhile. The flow gets a pair of entries of its own, keyed by those headers.
//! **Invariant:** the reply entry is inserted first and must be new: it is the claim on the port.

use lb_common::abi::{Action, Conn, ConnFlags, ConnKey, ConnState, Hook, PrefixTable};
use lb_common::{Address as _, Family, Reason};

use super::{Claim, Outcome, Work, flow};
use crate::tables::{InsertError, Table, Tables};

/// Ports tried, the client's own first. With nine tenths of the pool in use towards one backend, all
/// fail once in 5 flows; with half of it, once in 65,536.
const ATTEMPTS: u32 = 16;
/// Ports tried before one is taken whose flow is over. Its backend may still wait for the last
/// acknowledgement, and would take the SYN of the next flow for a part of the one before.
const PATIENT_ATTEMPTS: u32 = 12;

/// Begins to masquerade the flow of a packet that is marked, or that an entry of ours says so of.
#[inline(never)]
pub fn begin_reply<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Outcome {
    if tables
        .prefix(PrefixTable::OWN, &work.packet.source)
        .is_some()
    {
        // The host's own masquerading was faster, or the packet is the node's.
        tables.set_mark(false);
        return Outcome::Pass;
    }
    // Where the mark does not last, the flow's next packets would not be looked for among the
    // half-open ones.
    let marked = tables.is_marked();
    work.table = if marked {
        Table::HalfOpen
    } else {
        tables.count(Reason::MarkLost);
        Table::Established
    };
    let device = tables.device();
    let Some(address) = tables.prefix(device, &work.packet.destination) else {
        return Outcome::Refused(Reason::NoMasqueradeAddress);
    };
    work.edit.address = F::Addr::from_words(address.words());
    prepare(tables, work);
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let own = attempt == 0 && tables.is_masquerade_port(work.packet.source_port);
        let port = if own {
            work.packet.source_port
        } else {
            let random = tables.random();
            tables.masquerade_port(random)
        };
        let patient = attempt < PATIENT_ATTEMPTS;
        attempt += 1;
        match claim(tables, work, port, patient) {
            Claim::Done => {
                return match finish(tables, work) {
                    Ok(()) => Outcome::Edit,
                    Err(reason) => Outcome::Refused(reason),
                };
            }
            Claim::Taken => {}
            Claim::Refused(reason) => return Outcome::Refused(reason),
        }
    }
    Outcome::Refused(Reason::NoMasqueradePort)
}

/// Fills in all of both entries but the masquerade port; the address is in `work.edit.address`.
#[inline(always)]
fn prepare<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) {
    let now = tables.now();
    let packet = &work.packet;
    work.key = ConnKey::new(
        (packet.source, packet.source_port),
        (packet.destination, packet.destination_port),
        packet.proto,
        Hook::Egress,
    );
    // What ingress knew of the flow, if it is one of ours.
    let known = work.conn.action == Action::Snat as u8 && work.conn.flags & ConnFlags::PENDING != 0;
    let (service, backend, epoch, generation) = if known {
        let conn = &work.conn;
        (conn.service, conn.backend, conn.epoch, conn.generation)
    } else {
        (0, 0, 0, 0)
    };
    work.conn = Conn::new(
        Action::Snat,
        (work.edit.address, 0),
        packet.destination_port,
        now,
    );
    work.pair = Conn::new(
        Action::UndoSnat,
        (packet.source, packet.source_port),
        packet.destination_port,
        now,
    );
    work.conn.service = service;
    work.conn.backend = backend;
    work.conn.epoch = epoch;
    work.conn.generation = generation;
    (work.conn.packets, work.conn.bytes[0]) = tables.size();
    work.pair.service = service;
    work.pair.backend = backend;
    work.pair.epoch = epoch;
    work.pair.generation = generation;
}

/// Claims a port, which a living flow or a socket of the node may have towards this backend.
#[inline(never)]
fn claim<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    port: u16,
    patient: bool,
) -> Claim {
    if port == 0 {
        return Claim::Taken;
    }
    let packet = &work.packet;
    work.pair_key = ConnKey::new(
        (packet.destination, packet.destination_port),
        (work.edit.address, port),
        packet.proto,
        Hook::Ingress,
    );
    work.conn.peer_port = port;
    if !is_free(tables, work, Table::Established, patient)
        || !is_free(tables, work, Table::HalfOpen, patient)
    {
        return Claim::Taken;
    }
    match tables.insert_conn(work.table, &work.pair_key, &work.pair) {
        Ok(()) => {}
        Err(InsertError::Exists) => return Claim::Taken,
        Err(InsertError::Full) => return Claim::Refused(full(work.table)),
    }
    if tables.has_own_socket(&work.pair_key) {
        tables.remove_conn(work.table, &work.pair_key);
        return Claim::Taken;
    }
    Claim::Done
}

/// True when no flow has the key of the replies in a table; one that is over makes room unless we are
/// patient.
#[inline(always)]
fn is_free<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    table: Table,
    patient: bool,
) -> bool {
    let Some(existing) = tables.conn(table, &work.pair_key) else {
        return true;
    };
    work.other_key = existing.pair_key(&work.pair_key);
    let over = ConnState::is_over(existing.state());
    // The flow's own earlier claim: its other half gave way to newer flows.
    let own = work.other_key == work.key && !over;
    if !own && (patient || !over) {
        return false;
    }
    // It may have a newer flow of its client beside it, which has another port.
    let paired = tables
        .conn(table, &work.other_key)
        .is_some_and(|other| other.pair_key(&work.other_key) == work.pair_key);
    if paired {
        tables.remove_conn(table, &work.other_key);
    }
    tables.remove_conn(table, &work.pair_key);
    true
}

const fn full(table: Table) -> Reason {
    match table {
        Table::Established => Reason::EstablishedFull,
        Table::HalfOpen => Reason::ConnectionsFull,
    }
}

/// Inserts the entry of the requests and rewrites the packet.
#[inline(always)]
fn finish<F: Family, T: Tables<F>>(tables: &mut T, work: &mut Work<F::Addr>) -> Result<(), Reason> {
    let replaced = tables.replace_conn(work.table, &work.key, &work.conn);
    if replaced.is_err() {
        tables.remove_conn(work.table, &work.pair_key);
        return Err(full(work.table));
    }
    if work.table as u8 == Table::Established as u8 {
        // What ingress left there.
        tables.remove_conn(Table::HalfOpen, &work.key);
    }
    let applied = flow::apply(tables, work);
    tables.set_mark(false);
    applied
}
