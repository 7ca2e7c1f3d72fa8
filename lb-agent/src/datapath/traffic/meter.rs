// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the flow entries of one family have counted since they were last read.
//!
//! An entry that nobody used since the last walk is not looked at any closer: its `last_seen` tells.
//! Every twentieth walk looks at all of them, and forgets entries and backends that are no more.
//! **Invariant:** an entry is the same one as before only if its flow was opened at the same tick;
//! what it has counted by then is counted once, however often it is met.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use lb_common::abi::{Action, Conn, ConnKey, Direction};

use super::bases::{Bases, Counts, Fingerprint};
use super::{Known, Ledger, Totals, User, lock};

/// Walks from one that looks at every entry to the next: some minutes.
const CHECK_EVERY: u32 = 20;
/// What is remembered of entries that are no more, beside as many as there are.
const STALE_MAX: usize = 4096;

/// Tells the service id and the epoch of the backend that has an id.
pub(in super::super) type Lookup = Box<dyn Fn(u32) -> Option<(u32, u32)> + Send>;

/// Which entries need a look.
#[derive(Clone, Copy, Debug)]
enum Scope {
    /// All.
    All,
    /// Those that were used after this tick.
    Used(u32),
    /// All, to find out what is no more.
    Check,
}

/// The walk that is under way.
#[derive(Debug)]
struct Walk {
    scope: Scope,
    began: u32,
    met: usize,
    /// In a check: what will be remembered.
    kept: Bases,
}

/// Sums the entries of one family.
pub(in super::super) struct Meter {
    ledger: Arc<Mutex<Ledger>>,
    backend: Lookup,
    bases: Bases,
    hasher: RandomState,
    /// When the agent was started.
    started: u32,
    hz: u32,
    walk: Option<Walk>,
    /// When the last complete walk began.
    last: Option<u32>,
    until_check: u32,
}

/// True when the tick `a` came after `b`; ticks count modulo 2^32.
const fn is_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

impl Meter {
    pub(super) fn new(ledger: Arc<Mutex<Ledger>>, backend: Lookup) -> Self {
        Self {
            ledger,
            backend,
            bases: Bases::default(),
            hasher: RandomState::new(),
            started: 0,
            hz: 1,
            walk: None,
            last: None,
            until_check: CHECK_EVERY,
        }
    }

    /// The sweeper starts now, in ticks of which a second has `hz`.
    pub(in super::super) fn start(&mut self, now: u32, hz: u32) {
        (self.started, self.hz) = (now, hz);
    }

    /// A walk over all entries begins; one that did not come to its end is forgotten.
    pub(in super::super) fn begin(&mut self, now: u32) {
        let scope = match self.last {
            None => Scope::All,
            Some(_) if self.until_check == 0 => Scope::Check,
            // A packet writes `last_seen` unless that is younger than a second.
            Some(last) => Scope::Used(last.wrapping_sub(2 * self.hz)),
        };
        if matches!(scope, Scope::Check) {
            lock(&self.ledger).begin_check();
        }
        self.walk = Some(Walk {
            scope,
            began: now,
            met: 0,
            kept: Bases::default(),
        });
    }

    /// Takes in some entries of the walk.
    pub(in super::super) fn add<A>(&mut self, keys: &[ConnKey<A>], conns: &[Conn<A>])
    where
        A: Copy + Into<IpAddr>,
        ConnKey<A>: bytemuck::Pod,
    {
        let Some(mut walk) = self.walk.take() else {
            return;
        };
        let ledger = Arc::clone(&self.ledger);
        let mut ledger = lock(&ledger);
        for (key, conn) in keys.iter().zip(conns) {
            let Some(by) = direction(conn) else {
                continue;
            };
            walk.met += 1;
            if let Scope::Used(since) = walk.scope
                && !is_after(conn.last_seen, since)
            {
                continue;
            }
            let entry = self.count(&mut ledger, (key, conn), by);
            if let (Scope::Check, Some((entry, base))) = (walk.scope, entry) {
                walk.kept.put(entry, base);
            }
        }
        drop(ledger);
        self.walk = Some(walk);
    }

    /// The walk has met every entry.
    pub(in super::super) fn end(&mut self) {
        let Some(walk) = self.walk.take() else {
            return;
        };
        self.last = Some(walk.began);
        if matches!(walk.scope, Scope::Check) {
            self.bases = walk.kept;
            self.until_check = CHECK_EVERY;
            let there =
                |user: User, service| (self.backend)(user.id) == Some((service, user.epoch));
            lock(&self.ledger).end_check(there);
            return;
        }
        self.until_check = self.until_check.saturating_sub(1);
        if self.bases.len() > 2 * walk.met + STALE_MAX {
            self.until_check = 0;
        }
    }

    /// An entry is about to be removed.
    pub(in super::super) fn close<A>(&mut self, key: &ConnKey<A>, conn: &Conn<A>)
    where
        A: Copy + Into<IpAddr>,
        ConnKey<A>: bytemuck::Pod,
    {
        let Some(by) = direction(conn) else {
            return;
        };
        let ledger = Arc::clone(&self.ledger);
        self.count(&mut lock(&ledger), (key, conn), by);
    }

    /// An entry has been removed.
    pub(in super::super) fn forget<A: Copy>(&mut self, key: &ConnKey<A>, conn: &Conn<A>)
    where
        ConnKey<A>: bytemuck::Pod,
    {
        let entry = self.fingerprint(key, conn);
        self.bases.remove(entry);
    }

    /// Adds what an entry has counted since it was last met to its backend's sums, and tells what is
    /// remembered of it. One that is older than the agent only begins to be followed.
    fn count<A>(
        &mut self,
        ledger: &mut Ledger,
        (key, conn): (&ConnKey<A>, &Conn<A>),
        by: Direction,
    ) -> Option<(Fingerprint, Counts)>
    where
        A: Copy + Into<IpAddr>,
        ConnKey<A>: bytemuck::Pod,
    {
        let user = User {
            id: conn.backend,
            epoch: conn.epoch,
        };
        let known = ledger.backends.entry(user).or_insert_with(|| Known {
            service: conn.service,
            address: backend_address(key, conn, by),
            totals: Totals::default(),
            counts: (self.backend)(user.id) == Some((conn.service, user.epoch)),
            met: true,
        });
        known.met = true;
        if !known.counts {
            return None;
        }
        // Later on, a tick of long ago would look like one to come.
        let is_older = self.last.is_none() && !is_after(conn.opened, self.started);
        let entry = self.fingerprint(key, conn);
        let now = Counts::new(conn.packets, conn.byte_count());
        let before = self.bases.get(entry);
        let mut base = match before {
            Some(base) => base,
            None if is_older => now,
            None => Counts::default(),
        };
        known.totals.add(by, now.advance(&mut base));
        if before.is_none() && !is_older && by == Direction::Request {
            known.totals.established += 1;
        }
        if before != Some(base) {
            self.bases.put(entry, base);
        }
        Some((entry, base))
    }

    fn fingerprint<A: Copy>(&self, key: &ConnKey<A>, conn: &Conn<A>) -> Fingerprint
    where
        ConnKey<A>: bytemuck::Pod,
    {
        let bytes = bytemuck::bytes_of(key);
        Fingerprint::of(self.hasher.hash_one((bytes, conn.opened)))
    }
}

/// Whose packets an entry counts; none for one whose packets another entry counts, or that is of no
/// Service.
fn direction<A>(conn: &Conn<A>) -> Option<Direction> {
    if conn.service == 0 {
        return None;
    }
    match Action::from_byte(conn.action)? {
        Action::Dnat => Some(Direction::Request),
        Action::UndoDnat => Some(Direction::Reply),
        Action::Snat | Action::UndoSnat => None,
    }
}

/// Address and port of the backend of an entry's flow.
fn backend_address<A: Copy + Into<IpAddr>>(
    key: &ConnKey<A>,
    conn: &Conn<A>,
    by: Direction,
) -> SocketAddr {
    match by {
        Direction::Request => SocketAddr::new(conn.peer.into(), conn.peer_port),
        Direction::Reply => SocketAddr::new(key.source.into(), key.source_port),
    }
}

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
