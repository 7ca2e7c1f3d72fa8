// SPDX-License-Identifier: MIT OR Apache-2.0
//! The loop's body: an update comes in, dirty Services are planned, differences are written.
//!
//! Nothing is written before the first list, and what that list does not name is pruned only after
//! all it names is in place; if parts of the list could not be read, only after they could. A
//! write that fails keeps its Services pending, and nobody else's. `cli::run` gives it a clock and
//! the sources.
//! **Invariant:** the mirror holds what the tables hold, so a retry starts from the truth.

pub mod audit;
mod health;
mod mirror;
mod no_local;
mod pass;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::cluster::{ClusterFacts, NodeFacts};
use crate::model::endpoint::EndpointSlice;
use crate::model::pod::PodRules;
use crate::model::service::{IpFamily, Service, ServiceKey};
use crate::model::snapshot::{Change, Object, ObjectRef, ServiceSnapshot, Update};
use crate::model::tables::TableContent;
use crate::plan::claims::Claims;
use crate::plan::endpoints::NodeContext;
use crate::plan::ids::{IdLimits, Ids};
use crate::plan::node::{
    DetectLocal, LocalClusterIps, NodeAddresses, NodePortAddresses, PlanOptions, TellsPods,
};
use crate::plan::rules::{PortRules, service_rules};
use crate::plan::warning::Warning;
use crate::plan::{NoLocal, PlanContext};
use crate::source::index::Index;
use health::HealthChecks;
use mirror::Mirror;
use no_local::NoLocalPorts;
use pass::context;
use warnings::Warnings;

pub use health::HealthNews;
pub use warnings::News;

/// Of so many Services whose writes failed it is looked up which families they have; of more it is
/// taken that they have both.
const FAILED_LOOKED_AT: usize = 64;

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of this node.
    pub node_name: String,
    /// What the operator chose for all Services.
    pub options: PlanOptions,
    /// How many ids there are.
    pub id_limits: IdLimits,
}

/// True when an update is about endpoints and nothing else.
fn only_slices(update: &Update) -> bool {
    let is_slice = |change: &Change| match change {
        Change::Apply(Object::EndpointSlice(_)) | Change::Delete(ObjectRef::EndpointSlice(_)) => {
            true
        }
        Change::Apply(_) | Change::Delete(_) | Change::Invalid(_) => false,
    };
    matches!(update, Update::Changes(changes) if changes.iter().all(is_slice))
}

/// What one pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Writes that were carried out.
    pub changes: usize,
    /// Services that they were for.
    pub services: usize,
    /// Services that wait for another try.
    pub pending: usize,
}

/// The state of the control plane of one node.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and any may go with any"
)]
pub struct Reconciler {
    settings: Settings,
    index: Index,
    claims: Claims,
    /// The addresses of this node's devices, once the kernel has told them.
    kernel_addresses: Option<BTreeSet<IpAddr>>,
    /// Where the tables had node ports at start.
    restored_addresses: BTreeSet<IpAddr>,
    addresses: NodeAddresses,
    /// Addresses on this node's devices that are served by nobody else.
    left_to_host: BTreeSet<IpAddr>,
    /// What `take_cluster_facts` gives may have changed.
    facts_stale: bool,
    ids: Ids,
    mirror: Mirror,
    pending: BTreeSet<ServiceKey>,
    /// Services whose last write failed.
    failed: BTreeSet<ServiceKey>,
    listed: bool,
    /// This node's object was known once.
    node_seen: bool,
    /// What the first list lacks; while there is any, nothing from an earlier process is removed.
    unreadable: Vec<String>,
    prune_due: bool,
    /// Maps that had no room in this pass.
    full: BTreeSet<&'static str>,
    warnings: Warnings,
    health: HealthChecks,
    no_local: NoLocalPorts,
}

impl Reconciler {
    /// Starts from what the tables hold; `stamp` as in [`Ids::new`].
    pub fn restore(settings: Settings, content: &TableContent, stamp: u32) -> Self {
        Self {
            index: Index::new(settings.node_name.clone()),
            claims: Claims::default(),
            kernel_addresses: None,
            restored_addresses: content.node_port_addresses(),
            addresses: NodeAddresses::default(),
            left_to_host: BTreeSet::new(),
            facts_stale: false,
            ids: Ids::restore(content, settings.id_limits, stamp),
            mirror: Mirror::new(content),
            pending: BTreeSet::new(),
            failed: BTreeSet::new(),
            listed: false,
            node_seen: false,
            unreadable: Vec::new(),
            prune_due: true,
            full: BTreeSet::new(),
            warnings: Warnings::default(),
            health: HealthChecks::default(),
            no_local: NoLocalPorts::default(),
            settings,
        }
    }

    /// Takes an update in, without writing: several may come before one [`Self::sync`].
    pub fn receive(&mut self, update: Update) {
        match &update {
            Update::Reset { .. } => {
                self.listed = true;
                self.complete();
            }
            Update::Partial { unreadable, .. } => {
                self.listed = true;
                self.unreadable.clone_from(unreadable);
            }
            Update::Complete => self.complete(),
            Update::Relist { .. } | Update::Changes(_) => {}
        }
        if update.is_about_pods() {
            self.index.update(update);
            return;
        }
        let only_slices = only_slices(&update);
        let mut dirty = self.index.update(update);
        if only_slices {
            // Neither claims nor addresses depend on endpoints.
            self.pending.append(&mut dirty);
            return;
        }
        if self.find_addresses() {
            self.replan_node_ports();
        }
        self.claim(dirty);
        // What is virtual is known only now, and decides about the node's own addresses.
        if self.find_addresses() {
            self.replan_node_ports();
        }
    }

    /// Takes note of the addresses of this node's devices; without them the Node object tells.
    pub fn receive_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.settings.options.local_cluster_ips == LocalClusterIps::Host {
            for changed in self.left_to_host.symmetric_difference(&addresses) {
                self.pending
                    .extend(self.claims.claimants(*changed).cloned());
            }
            self.left_to_host.clone_from(&addresses);
        }
        self.kernel_addresses = Some(addresses);
        if self.find_addresses() {
            self.replan_node_ports();
        }
    }

    /// Plans every Service again that depends on this node's addresses.
    fn replan_node_ports(&mut self) {
        let depends = |s: &&Service| {
            let node_ports = s.ports.iter().any(|port| port.node_port.is_some());
            node_ports || !s.source_ranges.is_empty()
        };
        let services = self.index.services().filter(depends);
        let concerned: BTreeSet<_> = services.map(|service| service.key.clone()).collect();
        self.claim(concerned);
    }

    /// Updates the claims of the Services named and has them planned, and all that they contend
    /// with.
    fn claim(&mut self, dirty: BTreeSet<ServiceKey>) {
        for key in dirty {
            let service = self.index.service(&key);
            let rivals = self.claims.set(&key, service, &self.addresses.node_ports);
            self.pending.extend(rivals);
            self.pending.insert(key);
        }
    }

    /// Works out this node's addresses anew; true if they differ.
    fn find_addresses(&mut self) -> bool {
        self.facts_stale = true;
        self.node_seen |= self.index.node().is_some();
        // A Node that cannot be read yet is no reason to take node ports away.
        let unknown = self.index.node().is_none() && !self.unreadable.is_empty();
        let restored = unknown.then_some(&self.restored_addresses);
        let found = NodeAddresses::new(
            &self.settings.options.node_port_addresses,
            self.kernel_addresses.as_ref().or(restored),
            self.index.node(),
            |address| self.claims.is_virtual(address),
        );
        let differ = found != self.addresses;
        self.addresses = found;
        differ
    }

    /// What the objects say of this node's addresses, if it may have changed since the last call;
    /// nothing before the first list.
    pub fn take_cluster_facts(&mut self) -> Option<ClusterFacts> {
        if !self.listed || !std::mem::take(&mut self.facts_stale) {
            return None;
        }
        let node = self.index.node();
        let registered = node.map_or(&[][..], |node| &node.addresses);
        let own = self.kernel_addresses.iter().flatten().copied();
        // As in `NodeAddresses`: what the Node object names is the node's, whoever else does.
        let service_addresses = own
            .filter(|ip| self.claims.is_virtual(*ip) && !registered.contains(ip))
            .collect();
        let pod_ranges = match &self.settings.options.detect_local {
            DetectLocal::ClusterCidr(ranges) => Some(ranges.clone()),
            DetectLocal::NodeCidr => node.map(|node| node.pod_cidrs.clone()),
            DetectLocal::Device
            | DetectLocal::BridgeInterface(_)
            | DetectLocal::InterfaceNamePrefix(_) => None,
        };
        Some(ClusterFacts {
            service_addresses,
            pod_ranges,
            node: Some(NodeFacts {
                primary: self.addresses.primary.clone(),
                loopback: self.settings.options.loopback(&self.addresses.node_ports),
            }),
        })
    }

    /// Whose sockets are served among pods, if it may have changed since the last call; nothing before
    /// the first list, nor, where they are listed `apart`, before that of pods and Namespaces.
    pub fn take_pod_rules(&mut self, apart: bool) -> Option<PodRules> {
        if !self.listed {
            return None;
        }
        self.index.take_pod_rules(apart)
    }

    /// The list has become complete: what only the tables tell of is no longer wanted.
    fn complete(&mut self) {
        if !std::mem::take(&mut self.unreadable).is_empty() {
            self.pending.extend(self.ids.with_unconfirmed());
        }
    }

    /// True once the source has sent everything that it has.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// Names of what the first list lacks, because it could not be read so far.
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    fn may_prune(&self) -> bool {
        self.prune_due && self.unreadable.is_empty()
    }

    /// True when some write waits for another try.
    pub fn is_pending(&self) -> bool {
        self.pending_len() > 0
    }

    fn pending_len(&self) -> usize {
        self.pending.union(&self.failed).count() + usize::from(self.may_prune())
    }

    /// The families, IPv4 first, in which something waits for another try.
    pub fn waiting_families(&self) -> [bool; 2] {
        if self.may_prune() || !self.pending.is_empty() || self.failed.len() > FAILED_LOOKED_AT {
            return [true; 2];
        }
        let mut waiting = [false; 2];
        for key in &self.failed {
            let service = self.index.service(key);
            let addresses = service.map_or(&[][..], |service| &service.cluster_ips);
            for (family, waits) in [IpFamily::V4, IpFamily::V6].into_iter().zip(&mut waiting) {
                // One that is gone is to be removed, whatever families it had.
                *waits |= addresses.is_empty()
                    || addresses
                        .iter()
                        .any(|address| IpFamily::of(*address) == family);
            }
        }
        waiting
    }

    /// False when this node's object says that it leaves the cluster, or has gone.
    pub fn is_node_eligible(&self) -> bool {
        match self.index.node() {
            Some(node) => !node.leaving,
            // With manifests there need not be one.
            None => !self.node_seen,
        }
    }

    /// Number of Services whose last write failed.
    pub fn failed_len(&self) -> usize {
        self.failed.len()
    }

    /// What the tables are known to hold.
    pub fn content(&self) -> TableContent {
        self.mirror.content()
    }

    /// The ids in use, to name what is in the tables.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// The ids in use, if some service id has got or lost its owner since the last call.
    pub fn take_renamed(&mut self) -> Option<&Ids> {
        self.ids.take_renamed().then_some(&self.ids)
    }

    /// Calls `each` with every Service, its rules and their context, in the order of their names.
    pub fn describe(
        &self,
        mut each: impl FnMut(&ServiceSnapshot<'_>, &[PortRules<'_>], PlanContext<'_>),
    ) {
        let context = context!(self);
        for service in self.index.services() {
            let Some(snapshot) = self.index.snapshot(&service.key) else {
                continue;
            };
            let mut ignored = BTreeSet::new();
            let rules = service_rules(&snapshot, context, &mut ignored);
            each(&snapshot, &rules, context);
        }
    }

    /// The warnings in force.
    pub fn warnings(&self) -> impl Iterator<Item = (&ServiceKey, &Warning)> {
        self.warnings.iter()
    }

    /// Takes the warnings that have come up since the last call.
    pub fn take_news(&mut self) -> Vec<News> {
        self.warnings.take_news()
    }

    /// Takes the health checks that have changed since the last call.
    pub fn take_health_news(&mut self) -> Vec<HealthNews> {
        self.health.take_changed()
    }

    /// Where health checks are answered; none stands for all addresses.
    pub fn health_addresses(&self) -> Option<&[IpAddr]> {
        match self.settings.options.node_port_addresses {
            NodePortAddresses::All => None,
            NodePortAddresses::Primary | NodePortAddresses::Within(_) => {
                Some(&self.addresses.node_ports)
            }
        }
    }

    /// How many warnings are in force, by their reasons.
    pub fn warnings_by_reason(&self) -> &BTreeMap<&'static str, usize> {
        self.warnings.by_reason()
    }

    /// Ports that lack an endpoint on this node that a policy wants there.
    pub fn no_local(&self) -> NoLocal {
        self.no_local.sum()
    }

    /// Name of each table that planning writes, and its entries.
    pub fn entries(&self) -> [(&'static str, usize); 7] {
        self.mirror.entries()
    }

    /// The name of this node.
    pub fn node_name(&self) -> &str {
        self.index.node_name()
    }

    /// What a person should know about this node.
    pub fn node_warnings(&self) -> Vec<String> {
        let mode = &self.settings.options.detect_local;
        TellsPods::new(mode, self.index.node()).warnings(mode)
    }

    /// Slices that serve no Service, each with the reason.
    pub fn stray_slices(&self) -> impl Iterator<Item = (&EndpointSlice, String)> {
        self.index.stray_slices()
    }

    /// Number of objects that are there and cannot be read; their last good state is in force.
    pub fn invalid_len(&self) -> usize {
        self.index.invalid_len()
    }

    /// All objects that are known, as they were when they could last be read.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        self.index.objects()
    }

    /// Objects that are there and cannot be read.
    pub fn invalid(&self) -> impl Iterator<Item = &ObjectRef> {
        self.index.invalid()
    }

    /// Number of Services that are known.
    pub fn services_len(&self) -> usize {
        self.index.services_len()
    }
}
