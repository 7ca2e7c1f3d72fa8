// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which endpoints of a service port may take traffic.
//!
//! [`candidates`] flattens the slices of one port, [`select`] is the rule of kube-proxy 1.36: ready
//! endpoints first, narrowed by hints only when all of them carry hints, and endpoints that are
//! shutting down but still serving when no other is left.
//! Last, and of our own, endpoints of weight 0 leave a list that has others.
//! **Invariant:** the two lists fall back independently, and hints never narrow the local list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::endpoint::{Endpoint, EndpointSlice};
use crate::model::service::{IpFamily, ServicePort};

/// Address and port of an endpoint.
pub type EndpointAddress = (IpAddr, u16);

/// An endpoint as one service port sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Address and port.
    pub address: EndpointAddress,
    /// The endpoint that it was taken from.
    pub endpoint: &'a Endpoint,
    /// It runs on this node.
    pub local: bool,
}

impl Candidate<'_> {
    fn ready(&self) -> bool {
        self.endpoint.ready
    }

    /// Shutting down, but it would still answer.
    pub fn draining(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }
}

/// This node, as far as selection needs it.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeContext<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its zone, if its Node object is known and labelled.
    pub zone: Option<&'a str>,
}

/// The endpoints of `port` in `family`, each address and port once, in order.
///
/// While slices are being rebalanced an endpoint may be in two; one that is not terminating wins.
pub fn candidates<'a>(
    slices: &[&'a EndpointSlice],
    family: IpFamily,
    port: &ServicePort,
    node: NodeContext<'_>,
) -> Vec<Candidate<'a>> {
    let mut found: BTreeMap<EndpointAddress, Candidate<'a>> = BTreeMap::new();
    for slice in slices {
        if slice.skipped || slice.family != family {
            continue;
        }
        let ports = slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in ports.map(|p| p.port) {
            for endpoint in &slice.endpoints {
                let address = (endpoint.address, number);
                let candidate = Candidate {
                    address,
                    endpoint,
                    local: endpoint.node.as_deref() == Some(node.name),
                };
                let kept = found.entry(address).or_insert(candidate);
                if kept.endpoint.terminating && !endpoint.terminating {
                    *kept = candidate;
                }
            }
        }
    }
    found.into_values().collect()
}

/// The lists that frontends use, as positions in the candidates, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// For frontends of the policy Cluster.
    pub cluster: Vec<usize>,
    /// For frontends of the policy Local.
    pub local: Vec<usize>,
    /// The union of the two.
    pub reachable: Vec<usize>,
    /// Some endpoint could serve, on whatever node; without one, clients are refused.
    pub has_any: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TopologyMode {
    Anywhere,
    SameNode,
    SameZone,
}

/// Applies the rule for a Service that uses the Cluster list, the Local list or both.
pub fn select(
    all: &[Candidate<'_>],
    uses_cluster: bool,
    uses_local: bool,
    node: NodeContext<'_>,
) -> Selection {
    let mut selection = Selection::default();
    if all.is_empty() {
        return selection;
    }
    if uses_cluster {
        let mode = topology_mode(all, node);
        selection.cluster = positions(all, |c| c.ready() && hinted_here(c.endpoint, mode, node));
        if selection.cluster.is_empty() {
            selection.cluster = positions(all, Candidate::draining);
        }
        spare_weightless(all, &mut selection.cluster);
        selection.has_any = !selection.cluster.is_empty();
    }
    if !uses_local {
        selection.reachable.clone_from(&selection.cluster);
        return selection;
    }
    selection.has_any |= all.iter().any(|c| c.ready() || c.draining());
    selection.local = positions(all, |c| c.ready() && c.local);
    if selection.local.is_empty() {
        selection.local = positions(all, |c| c.local && c.draining());
    }
    spare_weightless(all, &mut selection.local);
    let both = selection.cluster.iter().chain(&selection.local);
    let union: BTreeSet<_> = both.copied().collect();
    selection.reachable = union.into_iter().collect();
    selection
}

fn positions<'a>(all: &[Candidate<'a>], wanted: impl Fn(&Candidate<'a>) -> bool) -> Vec<usize> {
    (0..all.len()).filter(|at| wanted(&all[*at])).collect()
}

/// Takes endpoints of weight 0 out of a list that has others.
fn spare_weightless(all: &[Candidate<'_>], list: &mut Vec<usize>) {
    if list.iter().any(|at| all[*at].endpoint.weight > 0) {
        list.retain(|at| all[*at].endpoint.weight > 0);
    }
}

fn topology_mode(all: &[Candidate<'_>], node: NodeContext<'_>) -> TopologyMode {
    let ready = || all.iter().filter(|c| c.ready()).map(|c| c.endpoint);
    if ready().next().is_none() {
        return TopologyMode::Anywhere;
    }
    // One endpoint without a hint means that the hints are being written: none of them counts.
    if ready().all(|e| !e.node_hints.is_empty())
        && ready().any(|e| hinted_here(e, TopologyMode::SameNode, node))
    {
        return TopologyMode::SameNode;
    }
    if ready().all(|e| !e.zone_hints.is_empty())
        && ready().any(|e| hinted_here(e, TopologyMode::SameZone, node))
    {
        return TopologyMode::SameZone;
    }
    TopologyMode::Anywhere
}

fn hinted_here(endpoint: &Endpoint, mode: TopologyMode, node: NodeContext<'_>) -> bool {
    match mode {
        TopologyMode::Anywhere => true,
        TopologyMode::SameNode => endpoint.node_hints.contains(node.name),
        TopologyMode::SameZone => node.zone.is_some_and(|z| endpoint.zone_hints.contains(z)),
    }
}

/// Why `candidate`, which is ready, is not in the cluster list: the hints say so.
pub(super) fn hinted_away(
    all: &[Candidate<'_>],
    candidate: &Candidate<'_>,
    node: NodeContext<'_>,
) -> String {
    let joined = |hints: &BTreeSet<String>| {
        let hints: Vec<&str> = hints.iter().map(String::as_str).collect();
        hints.join(", ")
    };
    let endpoint = candidate.endpoint;
    match topology_mode(all, node) {
        TopologyMode::SameNode => {
            format!("its hints are for nodes {}", joined(&endpoint.node_hints))
        }
        TopologyMode::SameZone => {
            format!("its hints are for zones {}", joined(&endpoint.zone_hints))
        }
        TopologyMode::Anywhere => "no hint excludes it".to_owned(),
    }
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
