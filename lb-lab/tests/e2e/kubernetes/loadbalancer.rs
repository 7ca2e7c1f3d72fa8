// SPDX-License-Identifier: MIT OR Apache-2.0
//! `loadbalancer.go`: addresses of a load balancer that hands packets to nodes as they are.
//!
//! The balancer is a route of the router, to one node at a time. **Invariant:** the client is
//! beyond the router and asks the balancer's address. Read next: `rolling.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::{IpAddr, SocketAddr};

use lb_lab::{Place, Service};

use super::{
    NODE_PORT, answered_by, at, barred, cluster, dropped, on, refused, source_is_kept, unreachable,
    with_node_port, with_spec,
};
use crate::cluster::{Cluster, TARGET, Vip};

/// The balancer's addresses.
pub(super) fn addresses() -> [IpAddr; 2] {
    ["198.51.100.7", "2001:db8:100::7"].map(|text| text.parse().unwrap())
}

/// The Service `web` with a node port and a load balancer.
pub(super) fn balanced() -> Vip {
    let mut vip = with_node_port();
    vip.service = vip.service.load_balancer(&addresses());
    vip
}

/// Lets the balancer hand everything to this node; gives the addresses to dial.
pub(super) fn lead_to(cluster: &Cluster, node: usize) -> [SocketAddr; 2] {
    for (address, node) in addresses().into_iter().zip(cluster.node(node).addresses()) {
        let line = format!("ip route replace {address} via {node}");
        cluster.lab.router().output(&line).unwrap();
    }
    on(addresses(), 80)
}

#[test]
fn should_be_able_to_change_the_type_and_ports_of_a_tcp_and_a_udp_service() {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let vip = Vip::new("web", 1);
    let own = vip.remotes().map(|remote| remote.ip());
    let at_port = |port| {
        Service::new("web", &own)
            .tcp(port, TARGET)
            .udp(port, TARGET)
    };
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    let balancer = lead_to(&cluster, 0);
    let other_port = on(addresses(), 81);
    let [first, second] = [NODE_PORT, NODE_PORT + 1].map(|port| at(cluster.node(0), port));
    answered_by(&client, vip.remotes(), &["web"]);
    for remotes in [first, balancer] {
        unreachable(&outside, remotes);
    }
    let mut change = |service: &Service| {
        cluster.change(|manifests| {
            manifests.endpoints(service, &[&pod])?;
            manifests.service(service)
        });
    };
    // Its type, up to the balancer.
    change(&vip.service.clone().node_port(NODE_PORT));
    answered_by(&outside, first, &["web"]);
    unreachable(&outside, balancer);
    let service = vip.service.clone().node_port(NODE_PORT);
    change(&service.load_balancer(&addresses()));
    answered_by(&outside, first, &["web"]);
    answered_by(&outside, balancer, &["web"]);
    // Its node port.
    let service = vip.service.clone().node_port(NODE_PORT + 1);
    change(&service.load_balancer(&addresses()));
    answered_by(&outside, second, &["web"]);
    answered_by(&outside, balancer, &["web"]);
    unreachable(&outside, first);
    // Its port.
    let moved = at_port(81);
    change(
        &moved
            .clone()
            .node_port(NODE_PORT + 1)
            .load_balancer(&addresses()),
    );
    answered_by(&outside, second, &["web"]);
    answered_by(&outside, other_port, &["web"]);
    unreachable(&outside, balancer);
    // And back.
    change(&moved);
    answered_by(&client, on(own, 81), &["web"]);
    for remotes in [first, second, balancer, other_port] {
        unreachable(&outside, remotes);
    }
}

/// The part of the same test that scales to nothing and back.
#[test]
fn should_refuse_at_the_load_balancer_while_a_service_is_scaled_to_zero() {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pod = cluster.web(1, "web");
    let vip = balanced();
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    let balancer = lead_to(&cluster, 0);
    answered_by(&outside, balancer, &["web"]);
    cluster.set_endpoints(&vip, &[]);
    refused(&outside, balancer);
    cluster.set_endpoints(&vip, &[&pod]);
    answered_by(&outside, balancer, &["web"]);
}

#[test]
fn should_only_allow_access_from_service_load_balancer_source_ranges() {
    let Some(mut cluster) = cluster() else { return };
    let place = Place::BeyondRouter;
    let [allowed, other] =
        ["allowed", "other"].map(|name| cluster.lab.client(name, place).unwrap());
    let [accept, refuse] = ["accept", "refuse"].map(|name| cluster.pod(0, name));
    let nodes = [0, 1].map(|number| cluster.node(number).process());
    let pod = cluster.web(1, "web");
    let ranges = |list: &str| with_spec(balanced(), &format!("loadBalancerSourceRanges: [{list}]"));
    let of = |host: &lb_lab::Host| format!("{}/32, \"{}/128\"", host.v4(), host.v6());
    let list = |hosts: [&lb_lab::Host; 3]| ranges(&hosts.map(of).join(", "));
    let vip = list([&allowed, &accept, &nodes[0]]);
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    let balancer = lead_to(&cluster, 0);
    answered_by(&allowed, balancer, &["web"]);
    answered_by(&accept, balancer, &["web"]);
    dropped(&other, balancer);
    dropped(&refuse, balancer);
    answered_by(&nodes[0], balancer, &["web"]);
    barred(&nodes[1], balancer);
    // Node ports have no ranges, nor has the address in the cluster.
    answered_by(&other, at(cluster.node(0), NODE_PORT), &["web"]);
    answered_by(&refuse, vip.remotes(), &["web"]);
    let swapped = list([&other, &refuse, &nodes[1]]);
    cluster.change(|manifests| manifests.service(&swapped.service));
    dropped(&allowed, balancer);
    dropped(&accept, balancer);
    answered_by(&other, balancer, &["web"]);
    answered_by(&refuse, balancer, &["web"]);
    barred(&nodes[0], balancer);
    answered_by(&nodes[1], balancer, &["web"]);
    // All of it, in halves.
    let halves = ranges("0.0.0.0/1, 128.0.0.0/1, \"::/1\", \"8000::/1\"");
    cluster.change(|manifests| manifests.service(&halves.service));
    answered_by(&allowed, balancer, &["web"]);
    answered_by(&other, balancer, &["web"]);
    answered_by(&accept, balancer, &["web"]);
    for node in &nodes {
        answered_by(node, balancer, &["web"]);
    }
}

fn local() -> Vip {
    with_spec(balanced(), "externalTrafficPolicy: Local")
}

#[test]
fn should_work_for_type_load_balancer_with_external_traffic_policy_local() {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pod = cluster.web(1, "web");
    let vip = local();
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    let balancer = lead_to(&cluster, 1);
    answered_by(&outside, balancer, &["web"]);
    source_is_kept(&outside, balancer);
}

#[test]
fn should_only_target_nodes_with_endpoints() {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pods = [cluster.web(0, "a"), cluster.web(1, "b")];
    let vip = local();
    cluster.publish(&vip, &[]);
    cluster.start_agents();
    for (here, there) in [(0, 1), (1, 0)] {
        cluster.set_endpoints(&vip, &[&pods[here]]);
        answered_by(&outside, lead_to(&cluster, here), &[pods[here].name()]);
        dropped(&outside, lead_to(&cluster, there));
    }
}

#[test]
fn should_target_all_nodes_with_endpoints() {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pods = [cluster.web(0, "a"), cluster.web(1, "b")];
    let vip = local();
    cluster.publish(&vip, &[&pods[0], &pods[1]]);
    cluster.start_agents();
    for (node, pod) in pods.iter().enumerate() {
        let balancer = lead_to(&cluster, node);
        answered_by(&outside, balancer, &[pod.name()]);
        source_is_kept(&outside, balancer);
    }
}

#[test]
fn should_work_from_pods() {
    let Some(mut cluster) = cluster() else { return };
    let clients = [cluster.pod(0, "far"), cluster.pod(1, "near")];
    let pod = cluster.web(1, "web");
    let vip = local();
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    // The balancer's route is not taken: it leads to the node that would say nothing.
    let balancer = lead_to(&cluster, 0);
    for client in &clients {
        answered_by(client, balancer, &["web"]);
        source_is_kept(client, balancer);
    }
}
