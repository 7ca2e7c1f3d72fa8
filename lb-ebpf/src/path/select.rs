// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Choosing a backend for a new flow.
//!
//! The position comes from the frontend's algorithm once per flow. It is one in the list, or a hash
//! that the lookup table beside the list turns into a backend; when that backend cannot be used,
//! those of the list are tried one after the other.
//! **Invariant:** a lookup that falls between two writes of the agent re-reads the frontend once,
//! so an update is never seen as a failure.

use lb_common::abi::{
    AffinityKey, Algorithm, Backend, BackendState, Cursor, Frontend, FrontendFlags, FrontendKey,
    List, Policy, Scope, SlotKey, proto,
};
use lb_common::hash::table_slot;
use lb_common::{Address, Family, Reason};

use super::hash;
use crate::packet::Packet;
use crate::tables::Lookup;

/// What is known and decided about a new flow before anything is written: the same for a packet and
/// for a socket.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Choice<A> {
    /// What the client asks for, as a frontend.
    pub frontend_key: FrontendKey<A>,
    /// The frontend, as it was when the flow chose its backend.
    pub frontend: Frontend,
    /// Where the client is.
    pub scope: Scope,
    /// Number of the list of `frontend` that the source chooses from.
    pub list: u16,
    /// Slots in use in that list.
    pub count: u16,
    /// The backend chosen for a new flow, and its id.
    pub backend: Backend<A>,
    /// Id of `backend`.
    pub backend_id: u32,
    /// Who keeps a backend.
    pub affinity_key: AffinityKey<A>,
}

impl<A: Address> Choice<A> {
    /// A record with nothing known.
    #[inline(always)]
    pub fn new() -> Self {
        Self {
            frontend_key: FrontendKey::new(A::ZERO, 0, 0),
            frontend: Frontend::default(),
            scope: Scope::Pod,
            list: 0,
            count: 0,
            backend: Backend::new(0, 0, A::ZERO, 0, BackendState::Active),
            backend_id: 0,
            affinity_key: AffinityKey {
                service: 0,
                client: A::ZERO,
            },
        }
    }
}

impl<A: Address> Default for Choice<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts the frontend of an address, port and protocol into the record; false when there is none.
#[inline(always)]
pub(super) fn look_up<F: Family, T: Lookup<F>>(
    tables: &T,
    choice: &mut Choice<F::Addr>,
    (address, port): (F::Addr, u16),
    proto: u8,
) -> bool {
    choice.frontend_key = FrontendKey::new(address, port, proto);
    let Some(frontend) = tables.frontend(&choice.frontend_key) else {
        return false;
    };
    choice.frontend.take_over(frontend);
    true
}

/// Finds out whether the frontend serves a source in `choice.scope` at all, and from which list.
#[inline(always)]
pub(super) fn admit<F: Family, T: Lookup<F>>(
    tables: &T,
    choice: &mut Choice<F::Addr>,
    source: &F::Addr,
) -> Result<(), Reason> {
    if choice.frontend.flags & FrontendFlags::SOURCE_RANGES != 0
        && !tables.admits(choice.frontend.service, source)
    {
        return Err(Reason::SourceRange);
    }
    choose_list(choice);
    if choice.count != 0 {
        return Ok(());
    }
    Err(
        if choice.frontend.policy(choice.scope) & Policy::DROP_IF_EMPTY == 0 {
            Reason::NoBackend
        } else {
            Reason::PolicyDrop
        },
    )
}

/// The version at which a flow of UDP that begins now is right: that of the service, if the
/// frontend is still the same after it was read, since what is looked up later is at least as new.
/// 0 for others, and where it is not the same any more.
#[inline(always)]
pub(super) fn version<F: Family, T: Lookup<F>>(
    tables: &T,
    choice: &Choice<F::Addr>,
    number: u8,
) -> u32 {
    if number != proto::UDP {
        return 0;
    }
    let version = tables.version(choice.frontend.service);
    let same = tables.frontend(&choice.frontend_key).is_some_and(|now| {
        now.service == choice.frontend.service && now.generation == choice.frontend.generation
    });
    if same { version } else { 0 }
}

/// Where a new flow starts; reduced to the length of the list or table at each use.
#[inline(always)]
pub(super) fn select_position<F: Family, T: Lookup<F>>(
    tables: &mut T,
    choice: &Choice<F::Addr>,
    packet: &Packet<F::Addr>,
) -> Cursor {
    match Algorithm::from_byte(choice.frontend.algorithm) {
        Some(Algorithm::Random) => Cursor::from(tables.random()),
        Some(Algorithm::Maglev) => hash::flow(packet),
        Some(Algorithm::SourceHash) => hash::client(packet),
        // A byte from a newer agent: spreading evenly is right for every algorithm.
        Some(Algorithm::RoundRobin) | None => tables.advance_cursor(choice.frontend.service),
    }
}

/// Notes which list of the frontend the packet's source chooses from.
///
/// VERIFIER: in the record and not in registers, whose values it would follow through every attempt.
#[inline(always)]
pub(super) fn choose_list<A>(choice: &mut Choice<A>) {
    choice.list = choice.frontend.list(choice.scope);
    choice.count = choice.frontend.count(choice.list);
}

/// Puts the backend `attempt` places behind `position` into the work record.
#[inline(always)]
pub(super) fn select_backend<F: Family, T: Lookup<F>>(
    tables: &mut T,
    choice: &mut Choice<F::Addr>,
    position: Cursor,
    attempt: u32,
) -> Result<(), Reason> {
    if load_backend(tables, choice, position, attempt)? {
        return Ok(());
    }
    // The lookup fell between two writes: what the frontend says now is complete.
    let Some(frontend) = tables.frontend(&choice.frontend_key) else {
        return Err(Reason::NoBackend);
    };
    choice.frontend.take_over(frontend);
    choose_list(choice);
    if load_backend(tables, choice, position, attempt)? {
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
fn load_backend<F: Family, T: Lookup<F>>(
    tables: &mut T,
    choice: &mut Choice<F::Addr>,
    position: Cursor,
    attempt: u32,
) -> Result<bool, Reason> {
    let count = Cursor::from(choice.count);
    if count == 0 {
        return Err(Reason::NoBackend);
    }
    let size = choice.frontend.table_size;
    let (list, slot) = if attempt == 0 && size != 0 && count > 1 {
        (choice.list + List::TABLES, table_slot(position, size))
    } else {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "less than count, which has 16 bits"
        )]
        let slot = (position.wrapping_add(attempt.into()) % count) as u16;
        (choice.list, slot)
    };
    let Some(id) = tables.slot(&SlotKey::numbered(choice.frontend.service, list, slot)) else {
        return Ok(false);
    };
    let Some(backend) = tables.backend(id) else {
        return Ok(false);
    };
    choice.backend.take_over(backend);
    choice.backend_id = id;
    Ok(choice.backend.service == choice.frontend.service)
}
