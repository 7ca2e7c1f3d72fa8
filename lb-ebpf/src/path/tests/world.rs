// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Tables in memory and packets without bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use lb_common::abi::{
    Affinity, AffinityKey, Algorithm, Backend, BackendFlags, BackendState, Conn, ConnFlags,
    ConnKey, Cursor, Direction, Frontend, FrontendKey, Hook, Hop, ServiceStats, SlotKey, SocketKey,
    SocketPeer,
};
use lb_common::{Address as _, Family, Reason};

pub(super) use super::made::{BACKENDS, CLIENTS, FRONTENDS, Made, PORT, TARGET};
use crate::packet::Packet;
use crate::path::{self, Side, Work, begin, begin_reply, reply, request};
use crate::tables::{Dialled, InsertError, Lookup, NextHop, Table, Tables};

/// (address, port).
pub(super) type End<F> = (<F as Family>::Addr, u16);

/// What came out of a hook: the tuple as it is then, or why the packet was dropped.
pub(super) type Outcome<F> = Result<(End<F>, End<F>), Reason>;

/// What the path does with a packet.
type Step<F> = fn(&mut World<F>, &mut Work<<F as Family>::Addr>) -> path::Outcome;

/// A connection table.
pub(super) type Conns<F> = BTreeMap<ConnKey<<F as Family>::Addr>, Conn<<F as Family>::Addr>>;

#[derive(Clone)]
pub(super) struct World<F: Made> {
    pub(super) frontends: BTreeMap<FrontendKey<F::Addr>, Frontend>,
    pub(super) slots: BTreeMap<SlotKey, u32>,
    pub(super) backends: BTreeMap<u32, Backend<F::Addr>>,
    /// Established flows.
    pub(super) conns: Conns<F>,
    pub(super) half_open: Conns<F>,
    pub(super) affinities: BTreeMap<AffinityKey<F::Addr>, Affinity>,
    pub(super) admitted: BTreeSet<(u32, F::Addr)>,
    /// By table, then by address; none stands for all others.
    pub(super) prefixes: BTreeMap<u32, BTreeMap<Option<F::Addr>, F::Addr>>,
    pub(super) from_pod: bool,
    /// 0: flows of UDP look at their tables each time.
    pub(super) version: u32,
    pub(super) device: u32,
    pub(super) marked: bool,
    pub(super) by_mark: bool,
    pub(super) pool: RangeInclusive<u16>,
    pub(super) stats: BTreeMap<u32, ServiceStats>,
    pub(super) cursors: BTreeMap<u32, Cursor>,
    pub(super) room: usize,
    pub(super) now: u32,
    pub(super) randoms: Vec<u32>,
    pub(super) sockets: BTreeSet<ConnKey<F::Addr>>,
    pub(super) next_hop: NextHop,
    pub(super) counts: BTreeMap<Reason, u32>,
    pub(super) writes: u32,
    /// What sockets were told.
    pub(super) peers: BTreeMap<SocketKey<F::Addr>, SocketPeer<F::Addr>>,
    /// The socket that calls.
    pub(super) cookie: u64,
    /// What it is bound to.
    pub(super) bound: F::Addr,
    /// What another CPU inserts just before our next request entry, or reply entry.
    pub(super) race: Option<(Hook, Conns<F>)>,
    /// Inserts to let pass before that.
    race_delay: u32,
    random: u32,
}

impl<F: Made> World<F> {
    pub(super) fn new() -> Self {
        Self {
            frontends: BTreeMap::new(),
            slots: BTreeMap::new(),
            backends: BTreeMap::new(),
            conns: BTreeMap::new(),
            half_open: BTreeMap::new(),
            affinities: BTreeMap::new(),
            admitted: BTreeSet::new(),
            prefixes: BTreeMap::new(),
            from_pod: true,
            version: 0,
            device: 1,
            marked: false,
            by_mark: false,
            pool: 1024..=29_999,
            stats: BTreeMap::new(),
            cursors: BTreeMap::new(),
            room: 1_000_000,
            now: 0,
            randoms: Vec::new(),
            sockets: BTreeSet::new(),
            next_hop: NextHop::Routed,
            counts: BTreeMap::new(),
            writes: 0,
            peers: BTreeMap::new(),
            cookie: 1,
            bound: F::Addr::ZERO,
            race: None,
            race_delay: 0,
            random: 1,
        }
    }

    /// Adds service `n` (from 1) whose backends are the given pods; backend ids are 100 n + pod.
    pub(super) fn service(&mut self, n: u8, proto: u8, pods: &[u8]) -> End<F> {
        let service = u32::from(n);
        let key = FrontendKey::new(F::address(FRONTENDS, n), PORT, proto);
        for (slot, pod) in (0..).zip(pods) {
            let id = service * 100 + u32::from(*pod);
            let backend = Backend::new(
                service,
                1,
                F::address(BACKENDS, *pod),
                TARGET,
                BackendState::Active,
            )
            .with_flags(BackendFlags::IN_CLUSTER_LIST);
            self.backends.insert(id, backend);
            self.slots.insert(SlotKey::cluster(service, slot), id);
        }
        let frontend = Frontend {
            service,
            generation: 1,
            cluster_count: u16::try_from(pods.len()).unwrap(),
            algorithm: Algorithm::RoundRobin as u8,
            ..Frontend::default()
        };
        self.frontends.insert(key, frontend);
        (key.address, key.port)
    }

    /// Another CPU inserts `conns` just before our reply entry, after `delay` tries of ours.
    pub(super) fn race_after(&mut self, delay: u32, conns: Conns<F>) {
        self.race = Some((Hook::Egress, conns));
        self.race_delay = delay;
    }

    pub(super) fn count(&self, reason: Reason) -> u32 {
        self.counts.get(&reason).copied().unwrap_or(0)
    }

    /// A packet at tc ingress.
    pub(super) fn request(&mut self, from: End<F>, to: End<F>, proto: u8, flags: u8) -> Outcome<F> {
        self.hook(
            from,
            to,
            proto,
            flags,
            (request::<F, Self>, begin::<F, Self>),
        )
    }

    /// A packet at tc egress.
    pub(super) fn reply(&mut self, from: End<F>, to: End<F>, proto: u8, flags: u8) -> Outcome<F> {
        self.hook(
            from,
            to,
            proto,
            flags,
            (reply::<F, Self>, begin_reply::<F, Self>),
        )
    }

    fn hook(
        &mut self,
        from: End<F>,
        to: End<F>,
        proto: u8,
        tcp_flags: u8,
        (step, begin): (Step<F>, Step<F>),
    ) -> Outcome<F> {
        let mut work = F::work();
        work.packet = Packet {
            source: from.0,
            destination: to.0,
            source_port: from.1,
            destination_port: to.1,
            proto,
            tcp_flags,
            ..work.packet
        };
        let mut outcome = step(self, &mut work);
        if outcome == path::Outcome::Begin {
            outcome = begin(self, &mut work);
        }
        match outcome {
            path::Outcome::Begin => panic!("a beginning begins nothing"),
            path::Outcome::Refused(reason) => Err(reason),
            path::Outcome::Pass => Ok((from, to)),
            path::Outcome::Edit => {
                let edit = work.edit;
                let (mut from, mut to) =
                    ((from.0, edit.source_port), (to.0, edit.destination_port));
                match edit.side {
                    Side::Destination => to.0 = edit.address,
                    Side::Source => from.0 = edit.address,
                }
                Ok((from, to))
            }
        }
    }

    /// Every entry has its other half, and that one leads back.
    pub(super) fn assert_paired(&self) {
        for conns in [&self.conns, &self.half_open] {
            for (key, conn) in conns {
                if conn.flags & ConnFlags::PENDING != 0 {
                    continue;
                }
                let other = conns.get(&conn.pair_key(key));
                assert_eq!(
                    other.map(|other| other.pair_key(&conn.pair_key(key))),
                    Some(*key)
                );
            }
        }
    }

    fn table(&self, table: Table) -> &Conns<F> {
        match table {
            Table::Established => &self.conns,
            Table::HalfOpen => &self.half_open,
        }
    }

    fn table_mut(&mut self, table: Table) -> &mut Conns<F> {
        self.writes += 1;
        match table {
            Table::Established => &mut self.conns,
            Table::HalfOpen => &mut self.half_open,
        }
    }

    fn put(
        &mut self,
        table: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        let full = self.table(table).len() >= self.room;
        if full && !self.table(table).contains_key(key) {
            return Err(InsertError::Full);
        }
        self.table_mut(table).insert(*key, *conn);
        Ok(())
    }
}

impl<F: Made> Lookup<F> for World<F> {
    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<&Frontend> {
        self.frontends.get(key)
    }
    fn slot(&self, key: &SlotKey) -> Option<u32> {
        self.slots.get(key).copied()
    }
    fn backend(&self, id: u32) -> Option<&Backend<F::Addr>> {
        self.backends.get(&id)
    }
    fn advance_cursor(&mut self, service: u32) -> Cursor {
        let cursor = self.cursors.entry(service).or_default();
        let position = *cursor;
        *cursor = cursor.wrapping_add(1);
        position
    }
    fn version(&self, _service: u32) -> u32 {
        self.version
    }
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<&Affinity> {
        self.affinities.get(key)
    }
    fn keep_affinity(&mut self, key: &AffinityKey<F::Addr>, affinity: &Affinity) {
        self.affinities.insert(*key, *affinity);
    }
    fn admits(&self, service: u32, source: &F::Addr) -> bool {
        self.admitted.contains(&(service, *source))
    }
    fn prefix(&self, table: u32, address: &F::Addr) -> Option<&F::Addr> {
        // Whole addresses, or everything.
        let prefixes = self.prefixes.get(&table)?;
        prefixes
            .get(&Some(*address))
            .or_else(|| prefixes.get(&None))
    }
    fn now(&self) -> u32 {
        self.now
    }
    fn ticks_per_second(&self) -> u32 {
        250
    }
    fn random(&mut self) -> u32 {
        // A linear congruential generator: any numbers do, the same ones every time.
        self.random = self
            .random
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        self.randoms.pop().unwrap_or(self.random >> 8)
    }
    fn count(&mut self, reason: Reason) {
        *self.counts.entry(reason).or_default() += 1;
    }
    fn count_service(&mut self, service: u32, what: Dialled) {
        let stats = self.stats.entry(service).or_default();
        match what {
            Dialled::Opened => stats.opened += 1,
            Dialled::Rejected => stats.rejected += 1,
        }
    }
}

impl<F: Made> Tables<F> for World<F> {
    fn may_be_known(&self, key: &ConnKey<F::Addr>) -> bool {
        // As seldom as it may be.
        let is_for = |frontend: &FrontendKey<F::Addr>| {
            (frontend.port, frontend.proto) == (key.destination_port, key.proto)
        };
        self.frontends.keys().any(is_for)
            || self.conns.contains_key(key)
            || self.half_open.contains_key(key)
    }
    fn find(
        &mut self,
        key: &ConnKey<F::Addr>,
        half_open_too: bool,
    ) -> Option<(Table, &Conn<F::Addr>)> {
        let (table, conns) = if self.conns.contains_key(key) {
            (Table::Established, &mut self.conns)
        } else if half_open_too {
            (Table::HalfOpen, &mut self.half_open)
        } else {
            return None;
        };
        let conn = conns.get_mut(key)?;
        conn.packets += 1;
        Some((table, conn))
    }
    fn conn(&self, table: Table, key: &ConnKey<F::Addr>) -> Option<&Conn<F::Addr>> {
        self.table(table).get(key)
    }
    fn insert_conn(
        &mut self,
        table: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        if let Some((hook, conns)) = self.race.take() {
            if key.hook == hook as u8 && self.race_delay == 0 {
                self.half_open.extend(conns);
            } else {
                self.race_delay = self.race_delay.saturating_sub(1);
                self.race = Some((hook, conns));
            }
        }
        if self.table(table).contains_key(key) {
            return Err(InsertError::Exists);
        }
        self.put(table, key, conn)
    }
    fn replace_conn(
        &mut self,
        table: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        self.put(table, key, conn)
    }
    fn remove_conn(&mut self, table: Table, key: &ConnKey<F::Addr>) {
        self.table_mut(table).remove(key);
    }
    fn touch_conn(&mut self, table: Table, key: &ConnKey<F::Addr>, now: u32) {
        if let Some(conn) = self.table_mut(table).get_mut(key) {
            conn.last_seen = now;
        }
    }
    fn mark_conn(&mut self, table: Table, key: &ConnKey<F::Addr>, by: Direction, bits: u8) {
        if let Some(conn) = self.table_mut(table).get_mut(key) {
            match by {
                Direction::Request => conn.request_seen |= bits,
                Direction::Reply => conn.reply_seen |= bits,
            }
        }
    }
    fn unmark_conn(&mut self, table: Table, key: &ConnKey<F::Addr>, by: Direction, bits: u8) {
        if let Some(conn) = self.table_mut(table).get_mut(key) {
            match by {
                Direction::Request => conn.request_seen &= !bits,
                Direction::Reply => conn.reply_seen &= !bits,
            }
        }
    }
    fn set_next_hop(&mut self, table: Table, key: &ConnKey<F::Addr>, address: [u8; 6]) {
        if let Some(conn) = self.table_mut(table).get_mut(key) {
            conn.next_hop = address;
            conn.hop = Hop::Bridged as u8;
        }
    }
    fn set_validated(&mut self, table: Table, key: &ConnKey<F::Addr>, version: u32) {
        if let Some(conn) = self.table_mut(table).get_mut(key) {
            conn.validated = version;
        }
    }
    fn is_pod(&self, _source: &F::Addr) -> bool {
        self.from_pod
    }
    fn size(&self) -> (u32, u32) {
        (1, 0)
    }
    fn device(&self) -> u32 {
        self.device
    }
    fn is_marked(&self) -> bool {
        self.marked
    }
    fn set_mark(&mut self, on: bool) {
        self.marked = on;
    }
    fn masquerades_by_mark(&self) -> bool {
        self.by_mark
    }
    fn is_masquerade_port(&self, port: u16) -> bool {
        self.pool.contains(&port)
    }
    fn masquerade_port(&self, random: u32) -> u16 {
        let ports = u32::from(self.pool.end() - self.pool.start()) + 1;
        self.pool.start() + u16::try_from(random % ports).unwrap()
    }
    fn has_own_socket(&self, key: &ConnKey<F::Addr>) -> bool {
        self.sockets.contains(key)
    }
    fn has_direct_socket(&self, reply: &ConnKey<F::Addr>) -> bool {
        self.sockets.contains(reply)
    }
    fn next_hop(&self, _destination: &F::Addr) -> NextHop {
        self.next_hop
    }
}
