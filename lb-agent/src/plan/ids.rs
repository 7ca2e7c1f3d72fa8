// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ids, and everything else that planning must remember from one plan to the next.
//!
//! A service port keeps its service id, an endpoint its backend id, a backend its slot, for as
//! long as they are wanted; also over a restart, because [`Ids::restore`] reads them back from the
//! tables.
//! **Invariant:** an id is free again only after [`Ids::settle`], which is called once the tables
//! no longer hold it, and [`Ids::end_pass`]. Until the former a late delete could hit its next user,
//! until the latter a lookup that has read the old frontend could find the next user's slots.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{Kind, List, limits};

use super::claims::FrontendAddress;
use super::endpoints::EndpointAddress;
use super::pool::Pool;
use crate::model::service::{IpFamily, Protocol, ServiceKey};
use crate::model::tables::{FamilyTables, TableContent};

/// What a service id stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    /// The Service.
    pub service: ServiceKey,
    /// The family of its frontends and backends.
    pub family: IpFamily,
    /// The name of the port.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What a backend id stands for, beside its service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendId {
    /// The id, never 0.
    pub id: u32,
    /// Differs from the epoch of whoever had this id before.
    pub epoch: u32,
}

/// The ids of one service port.
#[derive(Clone, Debug, Default)]
struct Port {
    owner: Option<PortKey>,
    uid: String,
    generation: u32,
    /// Backend ids by list and slot.
    slots: [Vec<u32>; List::ALL.len()],
    backends: BTreeMap<EndpointAddress, BackendId>,
    /// Read back from the tables, and no object that names them has been seen yet.
    unconfirmed: BTreeSet<EndpointAddress>,
}

/// A backend that the tables held at start, for an endpoint that no object has named yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    /// Its address and port.
    pub address: EndpointAddress,
    /// Its id and epoch.
    pub backend: BackendId,
    /// The lists that it is in.
    pub lists: Vec<List>,
}

/// An id could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// How many ids there may be.
#[derive(Clone, Copy, Debug)]
pub struct IdLimits {
    /// Service ids, counting from 1 and excluding this number.
    pub services: u32,
    /// Backend ids of both families together, likewise.
    pub backends: u32,
}

impl Default for IdLimits {
    fn default() -> Self {
        Self {
            services: limits::SERVICES,
            backends: limits::BACKEND_IDS,
        }
    }
}

/// The stamp after `stamp`; never 0, which stands for none.
fn after(stamp: u32) -> u32 {
    stamp.wrapping_add(1).max(1)
}

/// All ids.
#[derive(Debug)]
pub struct Ids {
    services: Pool,
    backends: Pool,
    /// The epoch or generation for the next newcomer. It differs from every one given to an
    /// earlier user of any id.
    stamp: u32,
    by_key: BTreeMap<PortKey, u32>,
    ports: BTreeMap<u32, Port>,
    restored: BTreeMap<FrontendAddress, u32>,
    /// Service ids that were given up and are still to be told.
    released: Vec<u32>,
    /// Owners have changed since the last call of `take_renamed`.
    renamed: bool,
}

impl Ids {
    /// No ids in use. Epochs and generations go on from `stamp`, or from the highest one that is read
    /// back: a random number will do, since both an id and its epoch must come again together to
    /// mislead a flow.
    pub fn new(limits: IdLimits, stamp: u32) -> Self {
        Self {
            services: Pool::new(limits.services),
            backends: Pool::new(limits.backends),
            stamp: stamp.max(1),
            by_key: BTreeMap::new(),
            ports: BTreeMap::new(),
            restored: BTreeMap::new(),
            released: Vec::new(),
            renamed: false,
        }
    }

    /// The ids that `content` uses. Each waits for a service port with one of its frontends.
    pub fn restore(content: &TableContent, limits: IdLimits, stamp: u32) -> Self {
        let mut ids = Self::new(limits, stamp);
        ids.restore_family(&content.v4);
        ids.restore_family(&content.v6);
        let mut backend_owner = BTreeMap::new();
        for (id, port) in &ids.ports {
            backend_owner.extend(port.backends.values().map(|backend| (backend.id, *id)));
        }
        let mut seen = BTreeSet::new();
        for (key, backend) in &content.slots {
            let port = ids.ports.entry(key.service).or_default();
            let Some(slots) = port.slots.get_mut(usize::from(key.list)) else {
                continue;
            };
            // A half-applied change may have left a slot without its backend, or one backend twice.
            // With weights a backend is there again behind the slots that are remembered.
            if backend_owner.get(backend) == Some(&key.service)
                && seen.insert((key.service, key.list, *backend))
            {
                slots.push(*backend);
            }
        }
        ids.services.occupy(ids.ports.keys().copied());
        ids.backends.occupy(backend_owner.into_keys());
        ids
    }

    fn restore_family<A: Ord + Copy + Into<IpAddr>>(&mut self, tables: &FamilyTables<A>) {
        let values = tables.frontends.values();
        let named = values.filter(|frontend| frontend.kind == Kind::ClusterIp as u8);
        let named: BTreeSet<u32> = named.map(|frontend| frontend.service).collect();
        for (key, frontend) in &tables.frontends {
            let address = FrontendAddress::new(key.address.into(), key.port, key.proto);
            // A cluster address names its service port best: node ports and external addresses move
            // between Services whose own lists stay.
            if frontend.kind == Kind::ClusterIp as u8 || !named.contains(&frontend.service) {
                self.restored.insert(address, frontend.service);
            }
            let port = self.ports.entry(frontend.service).or_default();
            port.generation = port.generation.max(frontend.generation);
            self.stamp = self.stamp.max(after(frontend.generation));
        }
        for (id, backend) in &tables.backends {
            let port = self.ports.entry(backend.service).or_default();
            let epoch = backend.epoch;
            let address = (backend.address.into(), backend.port);
            port.backends.insert(address, BackendId { id: *id, epoch });
            port.unconfirmed.insert(address);
            self.stamp = self.stamp.max(after(epoch));
        }
    }

    /// The service id and generation of `key`, new or known. A port that is new to this process
    /// takes over the id that one of its `frontends` had in the tables.
    pub fn port(
        &mut self,
        key: &PortKey,
        uid: &str,
        frontends: &[FrontendAddress],
    ) -> Result<(u32, u32), Exhausted> {
        let known = self.by_key.get(key).copied();
        let id = match known {
            Some(id) => id,
            None => match self.adopt(frontends) {
                Some(id) => id,
                None => self.services.take().ok_or(Exhausted)?.id,
            },
        };
        let port = self.ports.entry(id).or_default();
        if port.generation == 0 || (port.owner.is_some() && port.uid != uid) {
            port.generation = self.stamp;
            self.stamp = after(self.stamp);
        }
        uid.clone_into(&mut port.uid);
        if known.is_none() {
            self.renamed = true;
            port.owner = Some(key.clone());
            self.by_key.insert(key.clone(), id);
        }
        Ok((id, port.generation))
    }

    fn adopt(&self, frontends: &[FrontendAddress]) -> Option<u32> {
        let restored = frontends.iter().filter_map(|f| self.restored.get(f));
        // One that was taken over and released since is in the pool, or has another owner already.
        let waits = |id: &u32| self.ports.get(id).is_some_and(|port| port.owner.is_none());
        restored.copied().find(waits)
    }

    /// The backend of `service` at `address`, new or known.
    pub fn backend(
        &mut self,
        service: u32,
        address: EndpointAddress,
    ) -> Result<BackendId, Exhausted> {
        let port = self.ports.entry(service).or_default();
        if let Some(backend) = port.backends.get(&address) {
            return Ok(*backend);
        }
        let taken = self.backends.take().ok_or(Exhausted)?;
        if taken.reused {
            self.stamp = after(self.stamp);
        }
        let backend = BackendId {
            id: taken.id,
            epoch: self.stamp,
        };
        port.backends.insert(address, backend);
        Ok(backend)
    }

    /// Takes note that an object names the endpoint `address` of `service`, in whatever state.
    pub fn confirm(&mut self, service: u32, address: &EndpointAddress) {
        if let Some(port) = self.ports.get_mut(&service) {
            port.unconfirmed.remove(address);
        }
    }

    /// The backends of `service` that only the tables tell of.
    pub fn unconfirmed(&self, service: u32) -> Vec<Unconfirmed> {
        let Some(port) = self.ports.get(&service) else {
            return Vec::new();
        };
        let in_lists: [BTreeSet<u32>; 2] = port
            .slots
            .each_ref()
            .map(|slots| slots.iter().copied().collect());
        let known = port.backends.iter();
        known
            .filter(|(address, _)| port.unconfirmed.contains(address))
            .map(|(address, backend)| Unconfirmed {
                address: *address,
                backend: *backend,
                lists: List::ALL
                    .into_iter()
                    .filter(|list| in_lists[*list as usize].contains(&backend.id))
                    .collect(),
            })
            .collect()
    }

    /// The Services that have backends which only the tables tell of.
    pub fn with_unconfirmed(&self) -> BTreeSet<ServiceKey> {
        let unsure = self.ports.values().filter(|p| !p.unconfirmed.is_empty());
        unsure
            .filter_map(|port| Some(port.owner.as_ref()?.service.clone()))
            .collect()
    }

    /// The slots of `list` of `service` for exactly the backends `wanted`, moving as few as possible.
    ///
    /// A newcomer takes the place of one that leaves; else the last one does.
    pub fn arrange(&mut self, service: u32, list: List, wanted: &[u32]) -> Vec<u32> {
        let slots = &mut self.ports.entry(service).or_default().slots[list as usize];
        let present: BTreeSet<u32> = slots.iter().copied().collect();
        let mut missing: BTreeSet<u32> = wanted.iter().copied().collect();
        let mut newcomers = wanted.iter().filter(|id| !present.contains(id));
        let mut at = 0;
        while at < slots.len() {
            if missing.remove(&slots[at]) {
                at += 1;
            } else if let Some(newcomer) = newcomers.next() {
                slots[at] = *newcomer;
                missing.remove(newcomer);
                at += 1;
            } else {
                slots.swap_remove(at);
            }
        }
        slots.extend(newcomers);
        slots.clone()
    }

    /// The service ids that `service` has had since it was last settled.
    pub fn owned_by(&self, service: &ServiceKey) -> BTreeSet<u32> {
        self.range(service).map(|(_, id)| *id).collect()
    }

    fn range(&self, service: &ServiceKey) -> impl Iterator<Item = (&PortKey, &u32)> {
        let first = PortKey {
            service: service.clone(),
            family: IpFamily::V4,
            name: String::new(),
            protocol: Protocol::Tcp,
        };
        self.by_key
            .range(first..)
            .take_while(move |(key, _)| key.service == *service)
    }

    /// The Service whose port has the service id `id`.
    pub fn owner(&self, id: u32) -> Option<&PortKey> {
        self.ports.get(&id)?.owner.as_ref()
    }

    /// The service ids from the tables that no service port has taken over.
    pub fn orphans(&self) -> BTreeSet<u32> {
        let unowned = self.ports.iter().filter(|(_, port)| port.owner.is_none());
        unowned.map(|(id, _)| *id).collect()
    }

    /// Frees what the orphans held; call it when the tables no longer hold it.
    pub fn release_orphans(&mut self) {
        for id in self.orphans() {
            self.release(id);
        }
        self.restored.clear();
    }

    /// Frees what `service` no longer wants; call it when the tables hold exactly `desired` of it.
    pub fn settle(&mut self, service: &ServiceKey, desired: &TableContent) {
        let wanted_services = desired.services();
        let gone: Vec<(PortKey, u32)> = self
            .range(service)
            .filter(|(_, id)| !wanted_services.contains(id))
            .map(|(key, id)| (key.clone(), *id))
            .collect();
        for (key, id) in gone {
            self.by_key.remove(&key);
            self.release(id);
        }
        for id in wanted_services {
            let Some(port) = self.ports.get_mut(&id) else {
                continue;
            };
            let freed = &mut self.backends;
            port.backends.retain(|_, backend| {
                let kept = desired.v4.backends.contains_key(&backend.id)
                    || desired.v6.backends.contains_key(&backend.id);
                if !kept {
                    freed.give(backend.id);
                }
                kept
            });
            let known = &port.backends;
            port.unconfirmed
                .retain(|address| known.contains_key(address));
        }
    }

    /// Takes the service ids that were given up since the last call; none of them is in use again
    /// before [`Self::end_pass`].
    pub fn take_released(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.released)
    }

    /// True when a service id has got or lost its owner since the last call.
    pub fn take_renamed(&mut self) -> bool {
        std::mem::take(&mut self.renamed)
    }

    /// Every service id that has an owner, in the order of the owners' names.
    pub fn owned(&self) -> impl Iterator<Item = (&PortKey, u32)> {
        self.by_key.iter().map(|(key, id)| (key, *id))
    }

    /// Gives ids free that were settled since the last call.
    pub fn end_pass(&mut self) {
        self.services.rested();
        self.backends.rested();
    }

    fn release(&mut self, service: u32) {
        if let Some(port) = self.ports.remove(&service) {
            for backend in port.backends.into_values() {
                self.backends.give(backend.id);
            }
            self.services.give(service);
            self.released.push(service);
            self.renamed = true;
        }
    }
}

#[cfg(test)]
#[path = "ids_tests.rs"]
mod tests;
