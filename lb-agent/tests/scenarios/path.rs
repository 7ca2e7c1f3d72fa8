// SPDX-License-Identifier: MIT OR Apache-2.0
//! New flows through the packet path itself while the tables are being written.
//!
//! `lb_ebpf::path::request` runs on tables that may change between any two of its reads: each read
//! sees the state that the one before saw, or a later one. All ways to fall between the writes
//! are gone through, for every position in the list.
//! **Invariant:** nothing of the path is repeated here. Read next: `order.rs`, which makes the
//! states.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_agent::model::tables::{FamilyTables, TableContent};
use lb_common::abi::{
    Affinity, AffinityKey, Backend, Conn, ConnKey, Cursor, Direction, Frontend, FrontendKey,
    SlotKey, proto,
};
use lb_common::{Family, Reason};
use lb_ebpf::packet::tcp;
use lb_ebpf::path::{Outcome, Side, Work, begin, request};
use lb_ebpf::tables::{Dialled, InsertError, Lookup, NextHop, Table, Tables};
use proptest::prelude::*;

use crate::order::readable;

/// More than any list in the states is long, so that each place is where some flow begins.
const POSITIONS: Cursor = 12;

/// One way to fall between the writes: what each read chose, of how many.
#[derive(Debug, Default)]
struct Walk {
    choices: Vec<(usize, usize)>,
    reads: usize,
    /// The state that the last read saw.
    at: usize,
}

impl Walk {
    /// Goes on to a way that was not gone yet; false when there is none.
    fn advance(&mut self) -> bool {
        (self.reads, self.at) = (0, 0);
        while let Some((chosen, of)) = self.choices.pop() {
            if chosen + 1 < of {
                self.choices.push((chosen + 1, of));
                return true;
            }
        }
        false
    }
}

/// Tables that are being written while they are read.
struct Moving<'a, F: Family> {
    states: &'a [TableContent],
    family: fn(&TableContent) -> &FamilyTables<F::Addr>,
    walk: RefCell<Walk>,
    position: Cursor,
    conns: BTreeMap<ConnKey<F::Addr>, Conn<F::Addr>>,
}

impl<'a, F: Family> Moving<'a, F> {
    fn read<T: PartialEq>(&self, get: impl Fn(&'a TableContent) -> T) -> T {
        let mut walk = self.walk.borrow_mut();
        let mut options = readable(self.states, walk.at, get);
        if walk.reads == walk.choices.len() {
            walk.choices.push((0, options.len()));
        }
        let (chosen, _) = walk.choices[walk.reads];
        let (at, value) = options.swap_remove(chosen);
        walk.reads += 1;
        walk.at = at;
        value
    }
}

impl<F: Family> Lookup<F> for Moving<'_, F> {
    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<&Frontend> {
        self.read(|state| (self.family)(state).frontends.get(key))
    }
    fn slot(&self, key: &SlotKey) -> Option<u32> {
        self.read(|state| state.slots.get(key).copied())
    }
    fn backend(&self, id: u32) -> Option<&Backend<F::Addr>> {
        self.read(|state| (self.family)(state).backends.get(&id))
    }
    fn advance_cursor(&mut self, _: u32) -> Cursor {
        self.position
    }
    fn version(&self, _: u32) -> u32 {
        1
    }
    fn affinity(&self, _: &AffinityKey<F::Addr>) -> Option<&Affinity> {
        None
    }
    fn keep_affinity(&mut self, _: &AffinityKey<F::Addr>, _: &Affinity) {}
    fn admits(&self, _: u32, _: &F::Addr) -> bool {
        true
    }
    fn prefix(&self, _: u32, _: &F::Addr) -> Option<&F::Addr> {
        None
    }
    fn now(&self) -> u32 {
        0
    }
    fn ticks_per_second(&self) -> u32 {
        100
    }
    fn random(&mut self) -> u32 {
        0
    }
    fn count(&mut self, _: Reason) {}
    fn count_service(&mut self, _: u32, _: Dialled) {}
}

impl<F: Family> Tables<F> for Moving<'_, F> {
    fn size(&self) -> (u32, u32) {
        (1, 0)
    }
    fn may_be_known(&self, _: &ConnKey<F::Addr>) -> bool {
        true
    }
    fn find(&mut self, key: &ConnKey<F::Addr>, _: bool) -> Option<(Table, &Conn<F::Addr>)> {
        self.conns.get(key).map(|conn| (Table::HalfOpen, conn))
    }
    // All flows here have only begun.
    fn conn(&self, table: Table, key: &ConnKey<F::Addr>) -> Option<&Conn<F::Addr>> {
        match table {
            Table::Established => None,
            Table::HalfOpen => self.conns.get(key),
        }
    }
    fn insert_conn(
        &mut self,
        _: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        match self.conns.insert(*key, *conn) {
            Some(_) => Err(InsertError::Exists),
            None => Ok(()),
        }
    }
    fn replace_conn(
        &mut self,
        _: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        self.conns.insert(*key, *conn);
        Ok(())
    }
    fn remove_conn(&mut self, _: Table, key: &ConnKey<F::Addr>) {
        self.conns.remove(key);
    }
    // A flow that opens writes nothing into entries that are there.
    fn touch_conn(&mut self, _: Table, _: &ConnKey<F::Addr>, _: u32) {}
    fn mark_conn(&mut self, _: Table, _: &ConnKey<F::Addr>, _: Direction, _: u8) {}
    fn unmark_conn(&mut self, _: Table, _: &ConnKey<F::Addr>, _: Direction, _: u8) {}
    fn set_next_hop(&mut self, _: Table, _: &ConnKey<F::Addr>, _: [u8; 6]) {}
    fn set_validated(&mut self, _: Table, _: &ConnKey<F::Addr>, _: u32) {}
    fn is_pod(&self, _: &F::Addr) -> bool {
        true
    }
    fn device(&self) -> u32 {
        1
    }
    fn is_marked(&self) -> bool {
        false
    }
    fn set_mark(&mut self, _: bool) {}
    // Masquerading has entries of its own, which are nothing to the choice.
    fn masquerades_by_mark(&self) -> bool {
        true
    }
    fn is_masquerade_port(&self, _: u16) -> bool {
        false
    }
    fn masquerade_port(&self, _: u32) -> u16 {
        0
    }
    fn has_own_socket(&self, _: &ConnKey<F::Addr>) -> bool {
        false
    }
    fn has_direct_socket(&self, _: &ConnKey<F::Addr>) -> bool {
        false
    }
    fn next_hop(&self, _: &F::Addr) -> NextHop {
        NextHop::Routed
    }
}

/// The backend that a new flow of TCP from `client` to port 80 of `frontend` gets, or what becomes of
/// it instead; `position` is where the round-robin cursor stands. `work` is an empty record.
pub(crate) fn backend<F: Family>(
    content: &TableContent,
    family: fn(&TableContent) -> &FamilyTables<F::Addr>,
    mut work: Work<F::Addr>,
    (client, frontend): ((F::Addr, u16), F::Addr),
    position: Cursor,
) -> Result<(IpAddr, u16), Outcome>
where
    F::Addr: Into<IpAddr>,
{
    (work.packet.source, work.packet.source_port) = client;
    work.packet.destination = frontend;
    work.packet.destination_port = 80;
    work.packet.proto = proto::TCP;
    work.packet.tcp_flags = tcp::SYN;
    let mut tables = Moving::<F> {
        states: std::slice::from_ref(content),
        family,
        walk: RefCell::default(),
        position,
        conns: BTreeMap::new(),
    };
    match opened(&mut tables, &mut work) {
        Outcome::Edit => Ok((work.edit.address.into(), work.edit.destination_port)),
        other @ (Outcome::Pass | Outcome::Begin | Outcome::Refused(_)) => Err(other),
    }
}

/// What becomes of a packet that opens a flow, by both of the path's steps.
fn opened<F: Family>(tables: &mut Moving<'_, F>, work: &mut Work<F::Addr>) -> Outcome {
    match request(tables, work) {
        Outcome::Begin => begin(tables, work),
        other @ (Outcome::Pass | Outcome::Edit | Outcome::Refused(_)) => other,
    }
}

/// Checks that every new flow from `client` to port 80 of `frontend` reaches one of `allowed`.
/// `work` is an empty record.
pub(crate) fn check<F: Family>(
    states: &[TableContent],
    family: fn(&TableContent) -> &FamilyTables<F::Addr>,
    mut work: Work<F::Addr>,
    (client, frontend, protocol): (F::Addr, F::Addr, u8),
    allowed: &BTreeSet<(IpAddr, u16)>,
) -> Result<(), TestCaseError>
where
    F::Addr: Into<IpAddr>,
{
    work.packet.source = client;
    work.packet.destination = frontend;
    work.packet.destination_port = 80;
    work.packet.proto = protocol;
    work.packet.tcp_flags = if protocol == proto::TCP { tcp::SYN } else { 0 };
    for position in 0..POSITIONS {
        // Where a hash chooses, another port is another place.
        #[expect(clippy::cast_possible_truncation, reason = "a small number")]
        let port = 40_000 + position as u16;
        work.packet.source_port = port;
        let mut tables = Moving::<F> {
            states,
            family,
            walk: RefCell::default(),
            position,
            conns: BTreeMap::new(),
        };
        loop {
            let mut work = work;
            let outcome = opened(&mut tables, &mut work);
            let walk = tables.walk.get_mut();
            let way = &walk.choices;
            prop_assert_eq!(outcome, Outcome::Edit, "at {} by {:?}", position, way);
            prop_assert_eq!(work.edit.side, Side::Destination);
            let reached = (work.edit.address.into(), work.edit.destination_port);
            prop_assert!(
                allowed.contains(&reached),
                "{reached:?} at {position} by {way:?}"
            );
            prop_assert_eq!(tables.conns.len(), 2);
            tables.conns.clear();
            if !walk.advance() {
                break;
            }
        }
    }
    Ok(())
}
