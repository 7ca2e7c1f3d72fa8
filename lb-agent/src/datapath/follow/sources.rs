// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keeps `PREFIXES_*` as addresses, routes and the cluster's objects change.
//!
//! A device's table is written with its entry in `IFACES`, before its programs; what concerns all
//! devices (an address, a route, an address that turns out to be a Service's) writes all tables.
//! **Invariant:** only differences are written. A table that could not be written makes its device
//! one that is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use lb_common::abi::PrefixTable;
use rtnetlink::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Follower, warn};
use crate::datapath::devices::PodSource;
use crate::datapath::events::Todo;
use crate::datapath::masquerade::{Masquerade, Table, everything};
use crate::datapath::netlink;
use crate::datapath::prefixes::Prefixes;
use crate::model::cluster::{ClusterFacts, NodeFacts};
use crate::model::service::IpFamily;

/// Rest between two lists of all routes, so that a storm of changes costs little.
const ROUTES_REST: Duration = Duration::from_millis(100);

/// What is known beside devices, addresses and routes.
pub(in crate::datapath) struct Known {
    /// Where the answers go.
    pub(in crate::datapath) prefixes: Prefixes,
    /// What the last agent took for addresses of Services; counts until the cluster tells.
    pub(in crate::datapath) restored: ClusterFacts,
    /// What the cluster's objects tell, once they do.
    pub(in crate::datapath) cluster: watch::Receiver<Option<ClusterFacts>>,
}

/// The state of this part of the follower.
pub(super) struct Sources {
    pub(super) prefixes: Prefixes,
    pub(super) cluster: watch::Receiver<Option<ClusterFacts>>,
    pub(super) cluster_facts: ClusterFacts,
    /// What of them about the node's own processes is in the tables.
    pub(super) written: Option<NodeFacts>,
    /// True when routes may have changed since they were listed.
    pub(super) routes_stale: bool,
    /// When routes may be listed again.
    pub(super) routes_due: Instant,
}

impl Sources {
    pub(super) fn new(known: Known, pods: &PodSource) -> Self {
        let mut cluster_facts = known.restored;
        if let PodSource::Ranges(ranges) = pods {
            cluster_facts.pod_ranges.clone_from(ranges);
        }
        Self {
            prefixes: known.prefixes,
            cluster: known.cluster,
            cluster_facts,
            written: None,
            routes_stale: false,
            routes_due: Instant::now(),
        }
    }
}

/// The first of these addresses of each family, for every address of it.
fn for_all(addresses: &[IpAddr]) -> Table {
    let mut table = Table::new();
    for address in addresses {
        let everything = everything(IpFamily::of(*address));
        table.entry(everything).or_insert(*address);
    }
    table
}

impl Follower {
    /// Takes in what the cluster's objects tell.
    pub(super) fn take_cluster_facts(&mut self) {
        let Some(told) = self.sources.cluster.borrow_and_update().clone() else {
            return;
        };
        let facts = &mut self.sources.cluster_facts;
        facts.service_addresses = told.service_addresses;
        if told.pod_ranges.is_some() {
            facts.pod_ranges = told.pod_ranges;
        }
        if told.node.is_some() {
            facts.node = told.node;
        }
        self.write_sources();
        self.report();
    }

    /// Acts on addresses and routes that have changed.
    pub(super) async fn follow_sources(&mut self, todo: &Todo, handle: &Handle) {
        if todo.addresses {
            self.write_sources();
        }
        self.sources.routes_stale |= todo.routes;
        if self.sources.routes_stale && self.sources.routes_due <= Instant::now() {
            self.read_routes(handle).await;
        }
    }

    /// Lists the routes anew and acts on what has changed.
    pub(super) async fn read_routes(&mut self, handle: &Handle) {
        self.sources.routes_stale = false;
        match netlink::list_routes(handle).await {
            Ok(routes) => {
                if self.view.set_routes(routes) {
                    self.react(self.view.indices().collect());
                    self.write_sources();
                    self.report();
                }
            }
            Err(error) => {
                warn("follow routes", &error);
                self.sources.routes_stale = true;
            }
        }
        self.sources.routes_due = Instant::now() + ROUTES_REST;
    }

    /// Writes what has changed in the tables of all devices, and in the others.
    pub(super) fn write_sources(&mut self) {
        self.write_own();
        let masquerade = Masquerade::new(&self.view, &self.sources.cluster_facts.service_addresses);
        let mut lacking = BTreeMap::new();
        for (index, device) in &self.attached {
            if let Err(error) = self
                .sources
                .prefixes
                .set(*index, &masquerade.device(*index))
            {
                warn("write masquerade addresses", &error);
                lacking.insert(*index, device.target.name.clone());
            }
        }
        if !lacking.is_empty() {
            self.lacking.add(lacking);
        }
    }

    /// Writes the node's own addresses and its pods' ranges.
    pub(super) fn write_own(&mut self) {
        let facts = &self.sources.cluster_facts;
        let own = Masquerade::new(&self.view, &facts.service_addresses).own();
        let pods = match (&self.rules.pods, &facts.pod_ranges) {
            (PodSource::Ranges(_), Some(ranges)) => {
                let ranges = ranges.iter().map(|range| (*range, range.address()));
                Some(ranges.collect())
            }
            // Not known yet: what an earlier agent knew counts.
            (PodSource::Ranges(_), None) => None,
            (PodSource::Role | PodSource::Device(_) | PodSource::NamePrefix(_), _) => {
                Some(Table::new())
            }
        };
        let mut known = vec![(PrefixTable::OWN, own)];
        if let Some(node) = &facts.node {
            known.push((PrefixTable::PRIMARY, for_all(&node.primary)));
            known.push((PrefixTable::LOOPBACK, for_all(&node.loopback)));
        }
        let mut failed = false;
        for (table, wanted) in known
            .into_iter()
            .chain(pods.map(|pods| (PrefixTable::PODS, pods)))
        {
            // The next audit tries again.
            if let Err(error) = self.sources.prefixes.set(table, &wanted) {
                warn("write addresses of the node", &error);
                failed = true;
            }
        }
        if !failed {
            let node = &self.sources.cluster_facts.node;
            self.sources.written.clone_from(node);
        }
    }

    /// Removes the tables of devices that are not managed, whoever wrote them.
    pub(super) fn drop_stale_tables(&mut self) {
        let mut known: BTreeSet<u32> = self.attached.keys().copied().collect();
        known.extend(self.lacking.indices());
        known.extend([PrefixTable::OWN, PrefixTable::PODS]);
        known.extend([PrefixTable::PRIMARY, PrefixTable::LOOPBACK]);
        for table in self.sources.prefixes.tables().difference(&known) {
            if let Err(error) = self.sources.prefixes.set(*table, &Table::new()) {
                warn("remove the addresses of an old device", &error);
            }
        }
    }
}
