// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Services that every contestant gets: the same ones, down to the addresses.
//!
//! The first and the last of them have a node port and the node's own pods as endpoints; all others
//! are there to be many, with endpoints that do not exist.
//! **Invariant:** everything follows from the number of Services and the pods' addresses.
//! Read next: `nftables`, `iptables`, what becomes of them beside `lb-agent`.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::{Value, json};

use crate::node::Node;

/// Pods with a server on each node, and endpoints of each Service.
pub(super) const PODS: usize = 3;
const ENDPOINTS: u32 = 3;
/// The port that Services are dialled at.
pub(super) const PORT: u16 = 80;
/// The port that endpoints listen on.
pub(super) const TARGET_PORT: u16 = 9376;
/// The first node port; the last Service has the one after it.
const NODE_PORT: u16 = 30_000;
/// Cluster addresses count up from here: the range that kubeadm uses, without its first addresses.
const CLUSTER_ADDRESSES: u32 = 0x0a60_000a;
/// Endpoints that do not exist count up from here, outside the lab's pod ranges.
const FAR_ADDRESSES: u32 = 0x0af8_0001;

/// A Service with one TCP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) index: u32,
    pub(super) cluster: SocketAddrV4,
    pub(super) node_port: Option<u16>,
    pub(super) endpoints: Vec<SocketAddrV4>,
}

/// So many Services, of which the first and the last have these pods as endpoints.
pub(super) fn generate(services: u32, pods: &[Ipv4Addr]) -> Vec<Service> {
    let one = |index| {
        let cluster = Ipv4Addr::from_bits(CLUSTER_ADDRESSES + index);
        let is_dialled = index == 0 || index + 1 == services;
        let far = |endpoint| Ipv4Addr::from_bits(FAR_ADDRESSES + index * ENDPOINTS + endpoint);
        let addresses: Vec<_> = if is_dialled {
            pods.to_vec()
        } else {
            (0..ENDPOINTS).map(far).collect()
        };
        let endpoints = addresses.into_iter();
        Service {
            index,
            cluster: SocketAddrV4::new(cluster, PORT),
            node_port: is_dialled.then_some(NODE_PORT + u16::from(index > 0)),
            endpoints: endpoints
                .map(|address| SocketAddrV4::new(address, TARGET_PORT))
                .collect(),
        }
    };
    (0..services).map(one).collect()
}

/// The Services, their slices and the node as one list of Kubernetes objects, in JSON.
pub(super) fn manifest(services: &[Service], node: &Node) -> String {
    let mut items = vec![json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node.name(), "labels": {"kubernetes.io/hostname": node.name()}},
        "spec": {"podCIDR": node.pod_cidr_v4(), "podCIDRs": [node.pod_cidr_v4()]},
        "status": {"addresses": [{"type": "InternalIP", "address": node.v4()}]},
    })];
    for service in services {
        items.push(service.object());
        items.push(service.slice(node.name()));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

impl Service {
    fn name(&self) -> String {
        format!("svc-{}", self.index)
    }

    fn object(&self) -> Value {
        let mut port = json!({
            "name": "line", "protocol": "TCP",
            "port": self.cluster.port(), "targetPort": TARGET_PORT,
        });
        if let Some(node_port) = self.node_port {
            port["nodePort"] = node_port.into();
        }
        let kind = if self.node_port.is_some() {
            "NodePort"
        } else {
            "ClusterIP"
        };
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": self.name(), "namespace": "default"},
            "spec": {
                "type": kind, "selector": {"app": self.name()},
                "clusterIP": self.cluster.ip(), "clusterIPs": [self.cluster.ip()],
                "ipFamilies": ["IPv4"], "ports": [port],
            },
        })
    }

    fn slice(&self, node: &str) -> Value {
        let endpoint = |address: &SocketAddrV4| {
            json!({
                "addresses": [address.ip()], "nodeName": node,
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        };
        let endpoints: Vec<_> = self.endpoints.iter().map(endpoint).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-1", self.name()), "namespace": "default",
                "labels": {"kubernetes.io/service-name": self.name()},
            },
            "addressType": "IPv4",
            "ports": [{"name": "line", "protocol": "TCP", "port": TARGET_PORT}],
            "endpoints": endpoints,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Four Services with the pods .5 to .7 of the first node.
    pub(in super::super) fn four() -> Vec<Service> {
        generate(4, &[5, 6, 7].map(|host| Ipv4Addr::new(10, 244, 0, host)))
    }

    #[test]
    fn the_first_and_the_last_service_end_at_the_pods_and_have_a_node_port() {
        let services = four();
        let node_ports: Vec<_> = services.iter().map(|service| service.node_port).collect();
        assert_eq!(node_ports, [Some(30_000), None, None, Some(30_001)]);
        assert_eq!(services[0].endpoints, services[3].endpoints);
        assert_eq!(services[0].endpoints[0].to_string(), "10.244.0.5:9376");
        assert_eq!(services[1].endpoints[2].to_string(), "10.248.0.6:9376");
        assert_eq!(services[2].cluster.to_string(), "10.96.0.12:80");
    }

    #[test]
    fn no_address_of_the_largest_cluster_is_of_two_kinds() {
        let pods = [Ipv4Addr::new(10, 244, 0, 5)];
        let services = generate(60_000, &pods);
        let last = |range: fn(&Service) -> Ipv4Addr| services.iter().map(range).max();
        assert!(last(|service| *service.cluster.ip()) < Some(Ipv4Addr::new(10, 112, 0, 0)));
        assert!(last(|service| *service.endpoints[0].ip()) < Some(Ipv4Addr::new(10, 252, 0, 0)));
    }
}
