// SPDX-License-Identifier: MIT OR Apache-2.0
//! The description of a lab, and the order in which its parts are made.
//!
//! **Invariant:** a lab that cannot be finished is removed before the error is returned, and
//! stale labs go before a new one comes. Read next: `underlay`, `node`, `stale`.

use std::sync::{Arc, Mutex};

use crate::error::LabError;
use crate::host::Kind;
use crate::lab::{Lab, Shared};
use crate::node::Node;
use crate::topology::{NODES_MAX, NodeSettings, RpFilter, RuleTool, Topology, TxOffload, Underlay};
use crate::{bridged, stale, topology, underlay};

/// A description of a lab to be built.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    topology: Topology,
    underlay: Underlay,
    settings: NodeSettings,
    nodes: Vec<String>,
}

impl Builder {
    /// One node with a bridge, `br_netfilter` on, everything else by default.
    pub(crate) fn new() -> Self {
        Self {
            topology: Topology::Bridge { br_netfilter: true },
            underlay: Underlay::Routes,
            settings: NodeSettings::default(),
            nodes: Vec::new(),
        }
    }

    /// How nodes join their pods.
    pub const fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// How nodes join each other.
    pub const fn underlay(mut self, underlay: Underlay) -> Self {
        self.underlay = underlay;
        self
    }

    /// Adds one node with a name.
    pub fn node(mut self, name: &str) -> Self {
        self.nodes.push(name.to_owned());
        self
    }

    /// Adds this many nodes named node-0, node-1 and so on.
    pub fn nodes(mut self, count: usize) -> Self {
        for _ in 0..count {
            let name = format!("node-{}", self.nodes.len());
            self.nodes.push(name);
        }
        self
    }

    /// Replaces all node settings at once.
    pub fn settings(mut self, settings: NodeSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets the reverse-path filter.
    pub const fn rp_filter(mut self, rp_filter: RpFilter) -> Self {
        self.settings.rp_filter = rp_filter;
        self
    }

    /// Switches the CNI's masquerade rule.
    pub const fn masquerade(mut self, on: bool) -> Self {
        self.settings.masquerade = on;
        self
    }

    /// Switches FORWARD policy DROP.
    pub const fn forward_drop(mut self, on: bool) -> Self {
        self.settings.forward_drop = on;
        self
    }

    /// Switches the drop of packets that conntrack calls INVALID.
    pub const fn invalid_drop(mut self, on: bool) -> Self {
        self.settings.invalid_drop = on;
        self
    }

    /// Chooses who writes the rules.
    pub const fn rules(mut self, tool: RuleTool) -> Self {
        self.settings.rules = tool;
        self
    }

    /// Sets transmit checksum offload.
    pub const fn tx_offload(mut self, tx_offload: TxOffload) -> Self {
        self.settings.tx_offload = tx_offload;
        self
    }

    /// Switches hairpin mode of bridge ports.
    pub const fn hairpin(mut self, on: bool) -> Self {
        self.settings.hairpin = on;
        self
    }

    /// Sets the MTU of pods and their veths.
    pub const fn pod_mtu(mut self, mtu: u16) -> Self {
        self.settings.pod_mtu = Some(mtu);
        self
    }

    /// Removes stale labs of killed runs, then makes this one.
    ///
    /// A failure half-way removes what was made. The first lab of a process installs a
    /// handler for SIGINT, SIGTERM and SIGHUP that removes all labs and exits with 130.
    pub fn build(self) -> Result<Lab, LabError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        let names = if self.nodes.is_empty() {
            vec!["node-0".to_owned()]
        } else {
            self.nodes
        };
        if names.len() > NODES_MAX {
            return Err(LabError::Name {
                name: names.len().to_string(),
                why: "too many nodes",
            });
        }
        stale::clean()?;
        let (id, dir, lock) = stale::claim()?;
        let cgroup = stale::cgroup_of(&id)?;
        let shared = Arc::new(Shared {
            id,
            dir,
            cgroup,
            topology: self.topology,
            underlay: self.underlay,
            settings: self.settings,
            state: Mutex::default(),
            _lock: lock,
        });
        stale::remember(&shared);
        let built = Self::furnish(&shared, &names);
        built.inspect_err(|_| {
            // The first error is the one to report; a failed removal is found at the next start.
            if let Err(second) = shared.remove() {
                stale::complain(&format!("remove lab {}: {second}", shared.id));
            }
            stale::forget(&shared);
        })
    }

    fn furnish(shared: &Arc<Shared>, names: &[String]) -> Result<Lab, LabError> {
        let mut state = shared.open()?;
        if shared.topology == (Topology::Bridge { br_netfilter: true }) {
            // ORDER: before any namespace, because loading it switches it on in all there are.
            bridged::load()?;
        }
        stale::mount_bpffs(shared)?;
        let cgroup = shared.cgroup.join("router");
        let addresses = (topology::ROUTER_V4, topology::ROUTER_V6);
        let router = state.add_host(shared, Kind::Router, "router", &cgroup, addresses)?;
        underlay::set_up_router(&router)?;
        let mut nodes = Vec::new();
        for (number, name) in names.iter().enumerate() {
            nodes.push(Node::make(
                &mut state,
                shared,
                name,
                number.to_le_bytes()[0],
            )?);
        }
        for node in &nodes {
            underlay::join_node(&router, node)?;
        }
        for node in &nodes {
            underlay::join_pod_ranges(node, &nodes)?;
            node.finish()?;
        }
        if shared.underlay == Underlay::Routes {
            underlay::route_pod_ranges(&router, &nodes)?;
        }
        drop(state);
        Ok(Lab {
            shared: Arc::clone(shared),
            router,
            nodes,
        })
    }
}
