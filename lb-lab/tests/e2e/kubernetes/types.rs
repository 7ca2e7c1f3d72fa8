// SPDX-License-Identifier: MIT OR Apache-2.0
//! `service.go`: node ports, external addresses, and what a change of a Service's type changes.
//!
//! **Invariant:** a client asks an address of a kind that a real one of its place has.
//! Read next: `policies.rs`.

use std::net::IpAddr;

use lb_lab::{Place, Service};

use super::loadbalancer::addresses;
use super::{NODE_PORT, answered_by, at, cluster, on, unreachable, with_node_port, with_spec};
use crate::cluster::{TARGET, Vip};

#[test]
fn should_be_able_to_create_a_functioning_node_port_service() {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let vip = with_node_port();
    cluster.publish(&vip, &[&near, &far]);
    cluster.start_agents();
    answered_by(&client, vip.remotes(), &["near", "far"]);
    for pod in [&near, &far] {
        answered_by(&client, at(pod, TARGET), &[pod.name()]);
    }
    for node in cluster.lab.nodes() {
        answered_by(&client, at(node, NODE_PORT), &["near", "far"]);
        answered_by(&outside, at(node, NODE_PORT), &["near", "far"]);
    }
}

#[test]
fn should_be_possible_to_connect_to_a_service_via_external_ip_when_it_is_not_assigned_to_a_node() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let external: [IpAddr; 2] =
        ["203.0.113.250", "2001:db8:203::250"].map(|text| text.parse().unwrap());
    let vip = Vip::new("web", 1);
    let vip = with_spec(vip, "externalIPs: [203.0.113.250, \"2001:db8:203::250\"]");
    cluster.publish(&vip, &[&near, &far]);
    cluster.start_agents();
    answered_by(&client, vip.remotes(), &["near", "far"]);
    answered_by(&client, on(external, 80), &["near", "far"]);
}

#[test]
fn should_be_able_to_update_service_type_to_node_port_listening_on_same_port_number_but_different_protocols()
 {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pod = cluster.web(1, "web");
    let (mut before, after) = (Vip::new("web", 1), with_node_port());
    let addresses = before.remotes().map(|remote| remote.ip());
    before.service = Service::new("web", &addresses).tcp(80, TARGET);
    cluster.publish(&before, &[&pod]);
    cluster.start_agents();
    for node in cluster.lab.nodes() {
        unreachable(&outside, at(node, NODE_PORT));
    }
    cluster.change(|manifests| {
        manifests.endpoints(&after.service, &[&pod])?;
        manifests.service(&after.service)
    });
    for node in cluster.lab.nodes() {
        answered_by(&outside, at(node, NODE_PORT), &["web"]);
    }
}

#[test]
fn should_serve_endpoints_on_same_port_and_different_protocol_for_internal_traffic_on_type_load_balancer()
 {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let mut vip = with_node_port();
    vip.service = vip.service.load_balancer(&addresses());
    cluster.publish(&vip, &[&near, &far]);
    cluster.start_agents();
    answered_by(&client, vip.remotes(), &["near", "far"]);
    answered_by(&client, on(addresses(), 80), &["near", "far"]);
}
