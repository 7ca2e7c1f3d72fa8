// SPDX-License-Identifier: MIT OR Apache-2.0
//! `traffic_distribution.go`, `topology_hints.go`: endpoints near the client are preferred.
//!
//! The hints are written here as the controller derives them from `trafficDistribution`, or from
//! `topology-mode: Auto`. **Invariant:** a client that is meant for none gets all.
//! Read next: `restarts.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use lb_lab::{Endpoint, Lab, Pod};

use super::{answered_by, publish_with};
use crate::cluster::{Cluster, Vip};
use crate::common::can_run;

/// Nodes in these zones, a server on each of `servers`, a client on every node.
struct Zones {
    cluster: Cluster,
    of_nodes: Vec<&'static str>,
    clients: Vec<Pod>,
    servers: Vec<Pod>,
}

impl Zones {
    fn new(zones: &[&'static str], servers: &[usize]) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let mut cluster = Cluster::of_nodes(Lab::builder(), zones.len());
        for (node, zone) in cluster.lab.nodes().iter().zip(zones) {
            cluster.manifests.node_in_zone(node, zone).unwrap();
        }
        let clients = (0..zones.len()).map(|node| cluster.pod(node, &format!("client-{node}")));
        let clients = clients.collect();
        let web = |(number, node): (usize, &usize)| cluster.web(*node, &format!("web-{number}"));
        let servers = servers.iter().enumerate().map(web).collect();
        let of_nodes = zones.to_vec();
        Some(Self {
            cluster,
            of_nodes,
            clients,
            servers,
        })
    }

    /// An endpoint in its zone, without hints.
    fn endpoint(&self, server: usize) -> Endpoint {
        let pod = &self.servers[server];
        Endpoint {
            zone: Some(self.of_nodes[usize::from(pod.node().number())].to_owned()),
            ..Endpoint::from(pod)
        }
    }

    /// Meant for its own zone.
    fn in_zone(&self, server: usize) -> Endpoint {
        let endpoint = self.endpoint(server);
        let zone = endpoint.zone.clone().unwrap();
        endpoint.for_zone(&zone)
    }

    /// Meant for its own node, and for its own zone.
    fn on_node(&self, server: usize) -> Endpoint {
        let node = self.servers[server].node().name().to_owned();
        self.in_zone(server).for_node(&node)
    }

    /// Every client must meet exactly the servers of its node.
    fn expect(&self, vip: &Vip, servers: &[&[usize]]) {
        for (client, servers) in self.clients.iter().zip(servers) {
            let names = servers.iter().map(|server| self.servers[*server].name());
            answered_by(client, vip.remotes(), &names.collect::<Vec<_>>());
        }
    }
}

/// One endpoint per zone: each client meets that of its zone, or all from a zone without one.
#[test]
fn should_route_traffic_to_an_endpoint_in_the_same_zone_when_using_prefer_close() {
    let Some(mut zones) = Zones::new(&["a", "b", "c"], &[0, 1]) else {
        return;
    };
    let vip = Vip::new("web", 1);
    let hinted: Vec<_> = (0..2).map(|server| zones.in_zone(server)).collect();
    publish_with(&zones.cluster, &vip, &hinted);
    zones.cluster.start_agents();
    zones.expect(&vip, &[&[0], &[1], &[0, 1]]);
    // One without a hint is enough, and nobody is preferred.
    let partly = [zones.in_zone(0), zones.endpoint(1)];
    let change = |manifests: &lb_lab::Manifests| manifests.endpoints_with(&vip.service, &partly);
    zones.cluster.change(change);
    zones.expect(&vip, &[&[0, 1], &[0, 1], &[0, 1]]);
}

#[test]
fn should_route_traffic_correctly_between_pods_on_multiple_nodes_when_using_prefer_close() {
    let Some(mut zones) = Zones::new(&["a", "a", "b"], &[0, 1, 2]) else {
        return;
    };
    let vip = Vip::new("web", 1);
    let hinted: Vec<_> = (0..3).map(|server| zones.in_zone(server)).collect();
    publish_with(&zones.cluster, &vip, &hinted);
    zones.cluster.start_agents();
    zones.expect(&vip, &[&[0, 1], &[0, 1], &[2]]);
}

#[test]
fn should_route_traffic_to_an_endpoint_on_the_same_node_or_fall_back_to_same_zone_when_using_prefer_same_node()
 {
    let Some(mut zones) = Zones::new(&["a", "a", "b"], &[0, 2, 2]) else {
        return;
    };
    let vip = Vip::new("web", 1);
    let hinted: Vec<_> = (0..3).map(|server| zones.on_node(server)).collect();
    publish_with(&zones.cluster, &vip, &hinted);
    zones.cluster.start_agents();
    // The second node has none of its own, but its zone has.
    zones.expect(&vip, &[&[0], &[0], &[1, 2]]);
}

#[test]
fn should_route_traffic_to_an_endpoint_on_the_same_node_when_using_prefer_same_node_and_fall_back_when_the_endpoint_becomes_unavailable()
 {
    let Some(mut zones) = Zones::new(&["a", "a", "b"], &[0, 1, 2]) else {
        return;
    };
    let vip = Vip::new("web", 1);
    let all: Vec<_> = (0..3).map(|server| zones.on_node(server)).collect();
    publish_with(&zones.cluster, &vip, &all);
    zones.cluster.start_agents();
    zones.expect(&vip, &[&[0], &[1], &[2]]);
    let without_second = [all[0].clone(), all[2].clone()];
    let change =
        |manifests: &lb_lab::Manifests| manifests.endpoints_with(&vip.service, &without_second);
    zones.cluster.change(change);
    zones.expect(&vip, &[&[0], &[0], &[2]]);
    // Nor is one of any use that is not ready.
    let mut unready = all.clone();
    unready[1] = unready[1].clone().unready();
    let change = |manifests: &lb_lab::Manifests| manifests.endpoints_with(&vip.service, &unready);
    zones.cluster.change(change);
    zones.expect(&vip, &[&[0], &[0], &[2]]);
    let change = |manifests: &lb_lab::Manifests| manifests.endpoints_with(&vip.service, &all);
    zones.cluster.change(change);
    zones.expect(&vip, &[&[0], &[1], &[2]]);
}

/// With `Auto` an endpoint may be lent to a zone that has too few.
#[test]
fn should_distribute_endpoints_evenly() {
    let Some(mut zones) = Zones::new(&["a", "b", "c"], &[0, 0, 1, 1]) else {
        return;
    };
    let mut vip = Vip::new("web", 1);
    let mode = ("service.kubernetes.io/topology-mode", "Auto");
    vip.service = vip.service.annotation(mode.0, mode.1);
    let hinted = [
        zones.in_zone(0),
        zones.endpoint(1).for_zone("c"),
        zones.in_zone(2),
        zones.in_zone(3),
    ];
    publish_with(&zones.cluster, &vip, &hinted);
    zones.cluster.start_agents();
    zones.expect(&vip, &[&[0], &[2, 3], &[1]]);
}
