// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets and bytes by Service and by backend, summed from the flow entries that the sweeper reads.
//!
//! Requests are those of `Dnat` entries, replies those of `UndoDnat`; the second pair of a masqueraded
//! flow sees the same packets again and is left out.
//! **Invariant:** sums only grow. Those of a service id go when it is given up, and a flow counts only
//! for a backend that the tables named, with the epoch of the flow, when the first of its flows was
//! met: so nobody inherits from an earlier user of a service id or a backend id.
//! Read next: `traffic/meter.rs`.

mod bases;
mod meter;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_common::abi::Direction;

pub(super) use meter::{Lookup, Meter};

/// What went through flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets by [`Direction`].
    pub packets: [u64; 2],
    /// Bytes from the network header on, by [`Direction`].
    pub bytes: [u64; 2],
    /// Flows that were established.
    pub established: u64,
}

impl Totals {
    fn add(&mut self, by: Direction, (packets, bytes): (u64, u64)) {
        self.packets[by as usize] += packets;
        self.bytes[by as usize] += bytes;
    }

    /// Adds those of others.
    pub fn merge(&mut self, other: &Self) {
        for by in [Direction::Request, Direction::Reply] {
            let at = by as usize;
            self.add(by, (other.packets[at], other.bytes[at]));
        }
        self.established += other.established;
    }
}

/// The sums of one service id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTraffic {
    /// Everything, also of backends that are no more.
    pub all: Totals,
    /// By backend.
    pub backends: BTreeMap<SocketAddr, Totals>,
}

/// One user of a backend id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct User {
    id: u32,
    epoch: u32,
}

/// What is known of a backend.
#[derive(Clone, Debug)]
struct Known {
    service: u32,
    address: SocketAddr,
    totals: Totals,
    /// Its flows count: the tables named it when the first one was met.
    counts: bool,
    /// A flow of it was met in the check that is under way.
    met: bool,
}

/// The sums of one family.
#[derive(Debug, Default)]
struct Ledger {
    backends: BTreeMap<User, Known>,
    /// By service id, those of backends that are no more.
    past: BTreeMap<u32, Totals>,
}

impl Ledger {
    /// A walk begins that meets every flow. What did not count gets another chance.
    fn begin_check(&mut self) {
        self.backends.retain(|_, known| known.counts);
        for known in self.backends.values_mut() {
            known.met = false;
        }
    }

    /// The walk has met every flow: a backend without any that is not `there` any more leaves its
    /// sums to the one that has taken its address, or to its Service as a whole.
    fn end_check(&mut self, there: impl Fn(User, u32) -> bool) {
        let gone = self
            .backends
            .extract_if(.., |user, known| !known.met && !there(*user, known.service));
        let gone: Vec<Known> = gone.map(|(_, known)| known).collect();
        for left in gone {
            let others = self.backends.values_mut();
            let heir = others
                .filter(|other| other.counts)
                .find(|other| (other.service, other.address) == (left.service, left.address))
                .map(|other| &mut other.totals);
            let heir = heir.unwrap_or_else(|| self.past.entry(left.service).or_default());
            heir.merge(&left.totals);
        }
    }

    fn forget(&mut self, services: &[u32]) {
        self.backends
            .retain(|_, known| !services.contains(&known.service));
        for service in services {
            self.past.remove(service);
        }
    }
}

/// The sums of both families. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    v4: Arc<Mutex<Ledger>>,
    v6: Arc<Mutex<Ledger>>,
}

/// A panic of the other one leaves nothing but a sum that lacks something.
fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    /// Everything by service id, as of the last pass of the sweeper.
    pub fn read(&self) -> BTreeMap<u32, ServiceTraffic> {
        let mut read: BTreeMap<u32, ServiceTraffic> = BTreeMap::new();
        for ledger in [&self.v4, &self.v6] {
            let ledger = lock(ledger);
            for (service, totals) in &ledger.past {
                read.entry(*service).or_default().all.merge(totals);
            }
            for known in ledger.backends.values().filter(|known| known.counts) {
                let service = read.entry(known.service).or_default();
                service.all.merge(&known.totals);
                let backend = service.backends.entry(known.address).or_default();
                backend.merge(&known.totals);
            }
        }
        read
    }

    /// Who sums the entries of IPv4, asking `backend` for those in the tables.
    pub(super) fn meter_v4(&self, backend: Lookup) -> Meter {
        Meter::new(Arc::clone(&self.v4), backend)
    }

    /// The same for IPv6.
    pub(super) fn meter_v6(&self, backend: Lookup) -> Meter {
        Meter::new(Arc::clone(&self.v6), backend)
    }

    /// These service ids are given up, and the tables name no backend of them any more.
    pub(super) fn forget(&self, services: &[u32]) {
        if services.is_empty() {
            return;
        }
        for ledger in [&self.v4, &self.v6] {
            lock(ledger).forget(services);
        }
    }
}
