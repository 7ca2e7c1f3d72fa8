// SPDX-License-Identifier: MIT OR Apache-2.0
//! `service.go`: `internalTrafficPolicy` and `externalTrafficPolicy`, and changes of the latter.
//!
//! **Invariant:** a node without an endpoint of its own says nothing under `Local`, and a client
//! that a node's own endpoint answers is seen as it is; a socket of the node is not left waiting but
//! told. Read next: `terminating.rs`.

use lb_lab::{Endpoint, Lab, Place};

use super::{
    NODE_PORT, answered_by, at, barred, cluster, dropped, health_is, publish_with, source_is_kept,
    with_health_checks, with_node_port, with_spec,
};
use crate::cluster::{Cluster, TARGET, Vip};
use crate::common::can_run;

#[test]
fn should_respect_internal_traffic_policy_local_pod_to_pod() {
    let Some(mut cluster) = cluster() else { return };
    let (near, far) = (cluster.pod(0, "near"), cluster.pod(1, "far"));
    let pod = cluster.web(0, "web");
    let vip = with_spec(Vip::new("web", 1), "internalTrafficPolicy: Local");
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    answered_by(&near, vip.remotes(), &["web"]);
    source_is_kept(&near, vip.remotes());
    dropped(&far, vip.remotes());
}

#[test]
fn should_respect_internal_traffic_policy_local_pod_with_host_network_to_pod() {
    let Some(mut cluster) = cluster() else { return };
    let near = cluster.node(0).host_network_pod("near").unwrap();
    let far = cluster.node(1).host_network_pod("far").unwrap();
    let pod = cluster.web(0, "web");
    let vip = with_spec(Vip::new("web", 1), "internalTrafficPolicy: Local");
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    answered_by(&near, vip.remotes(), &["web"]);
    barred(&far, vip.remotes());
}

#[test]
fn should_respect_internal_traffic_policy_local_pod_and_node_to_pod_with_host_network() {
    let Some(mut cluster) = cluster() else { return };
    let (near, far) = (cluster.pod(0, "near"), cluster.pod(1, "far"));
    let server = cluster.node(0).host_network_pod("web").unwrap();
    let _server = server.serve(TARGET).unwrap();
    let endpoint = Endpoint::from(cluster.node(0));
    let vip = with_spec(Vip::new("web", 1), "internalTrafficPolicy: Local");
    publish_with(&cluster, &vip, &[endpoint]);
    cluster.start_agents();
    answered_by(&near, vip.remotes(), &["web"]);
    answered_by(&cluster.node(0).process(), vip.remotes(), &["web"]);
    dropped(&far, vip.remotes());
    barred(&cluster.node(1).process(), vip.remotes());
}

#[test]
fn should_support_external_traffic_policy_local_for_type_node_port() {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pod = cluster.web(0, "web");
    let vip = with_spec(with_node_port(), "externalTrafficPolicy: Local");
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    answered_by(&outside, at(cluster.node(0), NODE_PORT), &["web"]);
    source_is_kept(&outside, at(cluster.node(0), NODE_PORT));
    dropped(&outside, at(cluster.node(1), NODE_PORT));
}

#[test]
fn should_have_correct_node_port_when_external_traffic_policy_changes() {
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::of_nodes(Lab::builder(), 3);
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let (web, client) = (cluster.web(0, "web"), cluster.pod(1, "client"));
    let local = with_health_checks(with_node_port());
    let mut everywhere = with_spec(with_node_port(), "externalTrafficPolicy: Cluster");
    everywhere.service = everywhere.service.load_balancer(&[]);
    cluster.publish(&local, &[&web]);
    cluster.start_agents();
    for round in 0..2 {
        let node = |number: usize| at(cluster.node(number), NODE_PORT);
        answered_by(&outside, node(0), &["web"]);
        source_is_kept(&outside, node(0));
        // The node of the client's pod takes a short cut; the third one has none.
        answered_by(&client, node(0), &["web"]);
        answered_by(&client, node(1), &["web"]);
        dropped(&client, node(2));
        dropped(&outside, node(1));
        dropped(&outside, node(2));
        for (number, status) in [(0, 200), (1, 503), (2, 503)] {
            health_is(&outside, cluster.node(number), Some(status));
        }
        if round == 0 {
            cluster.change(|manifests| manifests.service(&everywhere.service));
            for node in cluster.lab.nodes() {
                answered_by(&outside, at(node, NODE_PORT), &["web"]);
                answered_by(&client, at(node, NODE_PORT), &["web"]);
                health_is(&outside, node, None);
            }
            cluster.change(|manifests| manifests.service(&local.service));
        }
    }
}
