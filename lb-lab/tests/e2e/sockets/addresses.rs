// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every address of a Service, dialled from a node's own network.
//!
//! **Invariant:** whoever dials is shown that address by the kernel and no backend's, and a server
//! sees an address of the node that was dialled from. Read next: `policies.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::IpAddr;

use lb_lab::{Builder, Endpoint, HttpClient, Lab, Node};

use super::{assert_met, callers, loopback};
use crate::cluster::{Cluster, TARGET, Vip, in_default_and_routed};
use crate::common::can_run;
use crate::external::{External, own_addresses, towards_other_nodes};

in_every_topology!(a_node_reaches_backends_on_itself_and_on_another_node_as_itself);

/// The addresses of a node that a server on it may see.
pub(crate) fn seen_on_itself(node: &Node) -> Vec<IpAddr> {
    let mut addresses = own_addresses(node);
    addresses.retain(|address| !address.is_loopback());
    addresses
}

/// A packet's life from a node's process to a cluster address.
fn a_node_reaches_backends_on_itself_and_on_another_node_as_itself(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let services = [(Vip::new("near", 1), &near), (Vip::new("far", 2), &far)];
    for (vip, pod) in &services {
        cluster.publish(vip, &[pod]);
    }
    cluster.start_agents();
    for caller in &callers(&cluster, 0) {
        for family in [0, 1] {
            let [(to_near, _), (to_far, _)] = &services;
            let own = seen_on_itself(cluster.node(0));
            assert_met(caller, to_near.remotes()[family], "near", &own);
            let own = towards_other_nodes(&cluster, 0, family);
            assert_met(caller, to_far.remotes()[family], "far", &[own]);
        }
    }
    let process = cluster.node(0).process();
    for (vip, _) in &services {
        for remote in vip.remotes() {
            let connect = || HttpClient::new(remote).connect();
            let mut connection = process.run(connect).unwrap().unwrap();
            connection.download(300_000).unwrap();
            connection.upload(300_000).unwrap();
        }
    }
}

#[test]
fn processes_of_a_node_reach_every_address_and_are_shown_what_they_dialled() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
        let services = [External::new("near", 1), External::new("far", 2)];
        for (service, pod) in services.iter().zip([&near, &far]) {
            cluster.publish(&service.vip, &[pod]);
        }
        cluster.start_agents();
        let nodes = [0, 1].map(|number| seen_on_itself(cluster.node(number)));
        let of_either = nodes.concat();
        for caller in &callers(&cluster, 0) {
            for family in [0, 1] {
                let far = [towards_other_nodes(&cluster, 0, family)];
                let sources = [&nodes[0][..], &far];
                for ((service, name), own) in services.iter().zip(["near", "far"]).zip(sources) {
                    let cluster_ip = service.vip.remotes()[family];
                    let port = service.node_port(&cluster, 0, family).port();
                    assert_met(caller, cluster_ip, name, own);
                    for remote in service.remotes(&cluster, 0, family) {
                        assert_met(caller, remote, name, own);
                    }
                    assert_met(caller, loopback(family, port), name, own);
                    // The other node serves its own address, and may put its own in the source.
                    let remote = service.node_port(&cluster, 1, family);
                    assert_met(caller, remote, name, &of_either);
                }
            }
        }
    });
}

#[test]
fn a_node_reaches_servers_in_its_own_network_and_in_that_of_another_node() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let _servers = [0, 1].map(|number| cluster.node(number).serve(TARGET).unwrap());
        let services = [External::new("own", 1), External::new("other", 2)];
        for (service, number) in services.iter().zip([0, 1]) {
            let endpoint = Endpoint::from(cluster.node(number));
            let manifests = &cluster.manifests;
            manifests.service(&service.vip.service).unwrap();
            let written = manifests.endpoints_with(&service.vip.service, &[endpoint]);
            written.unwrap();
        }
        cluster.start_agents();
        for caller in &callers(&cluster, 0) {
            for family in [0, 1] {
                let node = cluster.node(0).addresses()[family];
                for (service, name) in services.iter().zip(["node-0", "node-1"]) {
                    let remotes = service.remotes(&cluster, 0, family);
                    let localhost = loopback(family, remotes[0].port());
                    let cluster_ip = service.vip.remotes()[family];
                    for remote in remotes.into_iter().chain([cluster_ip, localhost]) {
                        assert_met(caller, remote, name, &[node]);
                    }
                }
            }
        }
    });
}

#[test]
fn without_programs_at_sockets_a_node_reaches_no_cluster_address() {
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::new(Lab::builder());
    let web = cluster.web(0, "web");
    let service = External::new("web", 1);
    cluster.publish(&service.vip, &[&web]);
    cluster.start_agents_with(&["--socket-lb=off"]);
    for caller in &callers(&cluster, 0) {
        for (family, remote) in service.vip.remotes().into_iter().enumerate() {
            let port = service.node_port(&cluster, 0, family).port();
            for remote in [remote, loopback(family, port)] {
                let client = HttpClient::new(remote).timeout(super::REFUSED_MAX);
                let attempt = || client.connect().map(drop);
                let ended = caller.run(attempt).unwrap();
                assert!(ended.is_err(), "{caller:?} to {remote}");
            }
        }
    }
}
