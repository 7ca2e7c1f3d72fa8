// SPDX-License-Identifier: MIT OR Apache-2.0
//! `service.go`: endpoints that are not ready, Services that publish them, and no endpoints.
//!
//! With `publishNotReadyAddresses` the controller writes every endpoint as ready.
//! **Invariant:** what is not to be reached refuses. Read next: `terminating.rs`.

use lb_lab::{Endpoint, Place, Pod};

use super::{
    NODE_PORT, answered_by, at, cluster, publish_with, refused, with_node_port, with_spec,
};
use crate::cluster::Vip;

/// The endpoint as the controller writes it for a Service that publishes what is not ready.
fn published(pod: &Pod) -> Endpoint {
    Endpoint {
        terminating: true,
        ..Endpoint::from(pod)
    }
}

/// The endpoint of a pod that is going and fails its readiness probe.
fn going(pod: &Pod) -> Endpoint {
    Endpoint::from(pod).terminating().unready()
}

#[test]
fn should_create_endpoints_for_unready_pods() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let tolerant = with_spec(Vip::new("tolerant", 1), "publishNotReadyAddresses: true");
    let default = Vip::new("default", 2);
    publish_with(&cluster, &tolerant, &[Endpoint::from(&pod)]);
    publish_with(&cluster, &default, &[Endpoint::from(&pod).unready()]);
    cluster.start_agents();
    answered_by(&client, tolerant.remotes(), &["web"]);
    refused(&client, default.remotes());
    // The pod is told to go.
    cluster.change(|manifests| {
        manifests.endpoints_with(&tolerant.service, &[published(&pod)])?;
        manifests.endpoints_with(&default.service, &[going(&pod)])
    });
    answered_by(&client, tolerant.remotes(), &["web"]);
    refused(&client, default.remotes());
}

#[test]
fn should_be_able_to_connect_to_terminating_and_unready_endpoints_if_publish_not_ready_addresses_is_true()
 {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let vip = with_spec(with_node_port(), "publishNotReadyAddresses: true");
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    for endpoint in [Endpoint::from(&pod).unready(), published(&pod)] {
        // Whatever it was before, from now on it is what the controller says.
        let endpoint = Endpoint {
            ready: true,
            ..endpoint
        };
        cluster.change(|manifests| manifests.endpoints_with(&vip.service, &[endpoint]));
        answered_by(&client, vip.remotes(), &["web"]);
        for node in cluster.lab.nodes() {
            answered_by(&client, at(node, NODE_PORT), &["web"]);
        }
    }
}

#[test]
fn should_not_be_able_to_connect_to_terminating_and_unready_endpoints_if_publish_not_ready_addresses_is_false()
 {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let vip = with_spec(with_node_port(), "publishNotReadyAddresses: false");
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    answered_by(&client, vip.remotes(), &["web"]);
    cluster.change(|manifests| manifests.endpoints_with(&vip.service, &[going(&pod)]));
    refused(&client, vip.remotes());
    for node in cluster.lab.nodes() {
        refused(&client, at(node, NODE_PORT));
    }
}

#[test]
fn should_be_rejected_when_no_endpoints_exist() {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let client = cluster.pod(0, "client");
    let vip = with_node_port();
    cluster.publish(&vip, &[]);
    cluster.start_agents();
    refused(&client, vip.remotes());
    for node in cluster.lab.nodes() {
        refused(&client, at(node, NODE_PORT));
        refused(&outside, at(node, NODE_PORT));
    }
}

/// An evicted pod's phase is Failed: the controller takes it out, published or not.
#[test]
fn should_be_rejected_for_evicted_pods() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let vip = with_spec(Vip::new("web", 1), "publishNotReadyAddresses: true");
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    answered_by(&client, vip.remotes(), &["web"]);
    cluster.set_endpoints(&vip, &[]);
    refused(&client, vip.remotes());
}
