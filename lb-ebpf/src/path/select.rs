// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Choosing a backend for a new flow.
//!
//! The position comes from the frontend's algorithm once per flow. It is one in the list, or a hash
//! that the lookup table beside the list turns into a backend; when that backend cannot be used,
//! those of the list are tried one after the other.
//! **Invariant:** a lookup that falls between two writes of the agent re-reads the frontend once,
//! so an update is never seen as a failure.

use lb_common::abi::{Algorithm, Cursor, List, SlotKey};
use lb_common::hash::table_slot;
use lb_common::{Family, Reason};

use super::{Work, hash};
use crate::tables::Tables;

/// Where a new flow starts; reduced to the length of the list or table at each use.
#[inline(always)]
pub(super) fn select_position<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &Work<F::Addr>,
) -> Cursor {
    match Algorithm::from_byte(work.frontend.algorithm) {
        Some(Algorithm::Random) => Cursor::from(tables.random()),
        Some(Algorithm::Maglev) => hash::flow(&work.packet),
        Some(Algorithm::SourceHash) => hash::client(&work.packet),
        // A byte from a newer agent: spreading evenly is right for every algorithm.
        Some(Algorithm::RoundRobin) | None => tables.advance_cursor(work.frontend.service),
    }
}

/// Notes which list of the frontend the packet's source chooses from.
///
/// VERIFIER: in the record and not in registers, whose values it would follow through every attempt.
#[inline(always)]
pub(super) fn choose_list<A>(work: &mut Work<A>) {
    work.list = work.frontend.list(work.scope);
    work.count = work.frontend.count(work.list);
}

/// Puts the backend `attempt` places behind `position` into the work record.
#[inline(always)]
pub(super) fn select_backend<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    position: Cursor,
    attempt: u32,
) -> Result<(), Reason> {
    if load_backend(tables, work, position, attempt)? {
        return Ok(());
    }
    // The lookup fell between two writes: what the frontend says now is complete.
    let Some(frontend) = tables.frontend(&work.frontend_key) else {
        return Err(Reason::NoBackend);
    };
    work.frontend.take_over(frontend);
    choose_list(work);
    if load_backend(tables, work, position, attempt)? {
        Ok(())
    } else {
        Err(Reason::TableMiss)
    }
}

/// One walk frontend → slot → backend; false when an entry was missing or another service's.
///
/// Only the first attempt looks into the table: places there name few backends over and over, the
/// list has each of them once.
#[inline(always)]
fn load_backend<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    position: Cursor,
    attempt: u32,
) -> Result<bool, Reason> {
    let count = Cursor::from(work.count);
    if count == 0 {
        return Err(Reason::NoBackend);
    }
    let size = work.frontend.table_size;
    let (list, slot) = if attempt == 0 && size != 0 && count > 1 {
        (work.list + List::TABLES, table_slot(position, size))
    } else {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "less than count, which has 16 bits"
        )]
        let slot = (position.wrapping_add(attempt.into()) % count) as u16;
        (work.list, slot)
    };
    let Some(id) = tables.slot(&SlotKey::numbered(work.frontend.service, list, slot)) else {
        return Ok(false);
    };
    let Some(backend) = tables.backend(id) else {
        return Ok(false);
    };
    work.backend.take_over(backend);
    work.backend_id = id;
    Ok(work.backend.service == work.frontend.service)
}
