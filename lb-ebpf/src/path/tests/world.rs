// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Tables in memory and packets without bytes.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{
    Algorithm, Backend, BackendState, Conn, ConnKey, Cursor, Direction, Frontend, FrontendKey,
    Hook, Hop, SlotKey,
};
use lb_common::{Family, Reason, V4, V6};

use crate::packet::Packet;
use crate::path::{Decision, Side, Work, reply, request};
use crate::tables::{InsertError, NextHop, Tables};

/// A family whose addresses the tests can make up.
pub(super) trait Made: Family {
    /// The `n`-th address of a group: pods, frontends, …
    fn address(group: u8, n: u8) -> Self::Addr;
    fn work() -> Work<Self::Addr>;
}

impl Made for V4 {
    fn address(group: u8, n: u8) -> [u8; 4] {
        [10, group, 0, n]
    }
    fn work() -> Work<[u8; 4]> {
        Work::new()
    }
}

impl Made for V6 {
    fn address(group: u8, n: u8) -> [u8; 16] {
        [0xfd, 0, 0, 0, 0, 0, 0, group, 0, 0, 0, 0, 0, 0, 0, n]
    }
    fn work() -> Work<[u8; 16]> {
        Work::new()
    }
}

pub(super) const CLIENTS: u8 = 1;
pub(super) const BACKENDS: u8 = 2;
pub(super) const FRONTENDS: u8 = 3;
pub(super) const PORT: u16 = 80;
pub(super) const TARGET: u16 = 9376;

/// (address, port).
pub(super) type End<F> = (<F as Family>::Addr, u16);

/// What came out of a hook: the tuple as it is then, or why the packet was dropped.
pub(super) type Outcome<F> = Result<(End<F>, End<F>), Reason>;

/// A connection table.
pub(super) type Conns<F> = BTreeMap<ConnKey<<F as Family>::Addr>, Conn<<F as Family>::Addr>>;

#[derive(Clone)]
pub(super) struct World<F: Made> {
    pub(super) frontends: BTreeMap<FrontendKey<F::Addr>, Frontend>,
    pub(super) slots: BTreeMap<SlotKey, u32>,
    pub(super) backends: BTreeMap<u32, Backend<F::Addr>>,
    pub(super) conns: Conns<F>,
    pub(super) cursors: BTreeMap<u32, Cursor>,
    pub(super) room: usize,
    pub(super) now: u32,
    pub(super) randoms: Vec<u32>,
    pub(super) sockets: BTreeSet<ConnKey<F::Addr>>,
    pub(super) next_hop: NextHop,
    pub(super) counts: BTreeMap<Reason, u32>,
    pub(super) writes: u32,
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
            cursors: BTreeMap::new(),
            room: 1_000_000,
            now: 0,
            randoms: Vec::new(),
            sockets: BTreeSet::new(),
            next_hop: NextHop::Routed,
            counts: BTreeMap::new(),
            writes: 0,
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
            );
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
        self.hook(from, to, proto, flags, request::<F, Self>)
    }

    /// A packet at tc egress.
    pub(super) fn reply(&mut self, from: End<F>, to: End<F>, proto: u8, flags: u8) -> Outcome<F> {
        self.hook(from, to, proto, flags, reply::<F, Self>)
    }

    fn hook(
        &mut self,
        from: End<F>,
        to: End<F>,
        proto: u8,
        tcp_flags: u8,
        step: impl FnOnce(&mut Self, &mut Work<F::Addr>) -> Result<Decision, Reason>,
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
        match step(self, &mut work)? {
            Decision::Pass => Ok((from, to)),
            Decision::Edit => {
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
        for (key, conn) in &self.conns {
            let other = self.conns.get(&conn.pair_key(key));
            assert_eq!(
                other.map(|other| other.pair_key(&conn.pair_key(key))),
                Some(*key)
            );
        }
    }

    fn put(&mut self, key: &ConnKey<F::Addr>, conn: &Conn<F::Addr>) -> Result<(), InsertError> {
        if self.conns.len() >= self.room && !self.conns.contains_key(key) {
            return Err(InsertError::Full);
        }
        self.conns.insert(*key, *conn);
        self.writes += 1;
        Ok(())
    }
}

impl<F: Made> Tables<F> for World<F> {
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
    fn conn(&self, key: &ConnKey<F::Addr>) -> Option<&Conn<F::Addr>> {
        self.conns.get(key)
    }
    fn insert_conn(
        &mut self,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        if let Some((hook, conns)) = self.race.take() {
            if key.hook == hook as u8 && self.race_delay == 0 {
                self.conns.extend(conns);
            } else {
                self.race_delay = self.race_delay.saturating_sub(1);
                self.race = Some((hook, conns));
            }
        }
        if self.conns.contains_key(key) {
            return Err(InsertError::Exists);
        }
        self.put(key, conn)
    }
    fn replace_conn(
        &mut self,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError> {
        self.put(key, conn)
    }
    fn remove_conn(&mut self, key: &ConnKey<F::Addr>) {
        self.conns.remove(key);
        self.writes += 1;
    }
    fn touch_conn(&mut self, key: &ConnKey<F::Addr>, now: u32) {
        self.writes += 1;
        if let Some(conn) = self.conns.get_mut(key) {
            conn.last_seen = now;
        }
    }
    fn mark_conn(&mut self, key: &ConnKey<F::Addr>, by: Direction, bits: u8) {
        self.writes += 1;
        if let Some(conn) = self.conns.get_mut(key) {
            match by {
                Direction::Request => conn.request_seen |= bits,
                Direction::Reply => conn.reply_seen |= bits,
            }
        }
    }
    fn unmark_conn(&mut self, key: &ConnKey<F::Addr>, by: Direction, bits: u8) {
        self.writes += 1;
        if let Some(conn) = self.conns.get_mut(key) {
            match by {
                Direction::Request => conn.request_seen &= !bits,
                Direction::Reply => conn.reply_seen &= !bits,
            }
        }
    }
    fn set_next_hop(&mut self, key: &ConnKey<F::Addr>, address: [u8; 6]) {
        self.writes += 1;
        if let Some(conn) = self.conns.get_mut(key) {
            conn.next_hop = address;
            conn.hop = Hop::Bridged as u8;
        }
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
    fn has_direct_socket(&self, reply: &ConnKey<F::Addr>) -> bool {
        self.sockets.contains(reply)
    }
    fn next_hop(&self, _destination: &F::Addr) -> NextHop {
        self.next_hop
    }
    fn count(&mut self, reason: Reason) {
        *self.counts.entry(reason).or_default() += 1;
    }
}
