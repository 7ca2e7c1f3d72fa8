// SPDX-License-Identifier: MIT OR Apache-2.0
//! One endpoint as an EndpointSlice has it: addresses, conditions, place and hints.
//!
//! **Invariant:** it is YAML below `endpoints:` and nothing else. Read next: `manifests`.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::manifests::family;
use crate::node::Node;
use crate::pod::Pod;
use crate::underlay::line;

/// One endpoint of a Service, with its conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses, one for each family it has.
    pub addresses: Vec<IpAddr>,
    /// The pod's name, if it is one.
    pub pod: Option<String>,
    /// The node it is on.
    pub node: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// The zones it is meant for (`hints.forZones`).
    pub zone_hints: Vec<String>,
    /// The nodes it is meant for (`hints.forNodes`).
    pub node_hints: Vec<String>,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        let mut endpoint = Self::from(pod.node());
        endpoint.addresses = pod.addresses().to_vec();
        endpoint.pod = Some(pod.name().to_owned());
        endpoint
    }
}

/// A pod in the node's own network.
impl From<&Node> for Endpoint {
    fn from(node: &Node) -> Self {
        Self {
            addresses: node.addresses().to_vec(),
            pod: None,
            node: Some(node.name().to_owned()),
            zone: None,
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
            ready: true,
            serving: true,
            terminating: false,
        }
    }
}

impl Endpoint {
    /// The endpoint as its pod is being deleted: still serving, no longer ready.
    #[must_use]
    pub const fn terminating(mut self) -> Self {
        (self.ready, self.terminating) = (false, true);
        self
    }

    /// The endpoint of a pod that fails its readiness probe: neither ready nor serving.
    #[must_use]
    pub const fn unready(mut self) -> Self {
        (self.ready, self.serving) = (false, false);
        self
    }

    /// Meant for clients in this zone too.
    #[must_use]
    pub fn for_zone(mut self, zone: &str) -> Self {
        self.zone_hints.push(zone.to_owned());
        self
    }

    /// Meant for clients on this node too.
    #[must_use]
    pub fn for_node(mut self, node: &str) -> Self {
        self.node_hints.push(node.to_owned());
        self
    }

    pub(crate) fn to_yaml(&self, of_family: &str) -> String {
        let mut text = String::new();
        let has_family = |address: &&IpAddr| family(**address) == of_family;
        for address in self.addresses.iter().filter(has_family) {
            line!(
                text,
                "- addresses:\n  - {:?}\n  conditions:",
                address.to_string()
            );
            line!(
                text,
                "    ready: {}\n    serving: {}",
                self.ready,
                self.serving
            );
            line!(text, "    terminating: {}", self.terminating);
            if let Some(node) = &self.node {
                line!(text, "  nodeName: {node}");
            }
            if let Some(zone) = &self.zone {
                line!(text, "  zone: {zone}");
            }
            let hints = [
                ("forZones", &self.zone_hints),
                ("forNodes", &self.node_hints),
            ];
            if hints.iter().any(|(_, names)| !names.is_empty()) {
                line!(text, "  hints:");
            }
            for (field, names) in hints.iter().filter(|(_, names)| !names.is_empty()) {
                line!(text, "    {field}:");
                for name in *names {
                    line!(text, "    - name: {name}");
                }
            }
            if let Some(pod) = &self.pod {
                line!(text, "  targetRef:\n    kind: Pod\n    name: {pod}");
            }
        }
        text
    }
}
