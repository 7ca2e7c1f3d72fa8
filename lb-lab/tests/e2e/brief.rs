// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything once, in one cluster: for machines where each start of an agent takes long.
//!
//! **Invariant:** each kind of client asks over TCP and UDP, in both families, and whom the server sees
//! is asserted; what is asked of the first agent is asked of the one that takes over from it.
//! Read next: the files that ask one of these things thoroughly.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use lb_lab::{Host, HttpClient, HttpConnection, Lab, Place, Pod};

use crate::cluster::{Cluster, Vip};
use crate::common::can_run;
use crate::external::towards_other_nodes;
use crate::nodeport::{ask, node_address, refused};
use crate::sockets::{assert_fails, assert_met, refusal, seen_on_itself};

const NODE_PORT: u16 = 30_070;
const NAMES: [&str; 2] = ["near", "far"];

/// Services with node ports: one with a backend on node 0, one with its backend on node 1, one without.
fn services() -> [Vip; 3] {
    [("near", 1), ("far", 2), ("empty", 3)].map(|(name, number)| {
        let mut vip = Vip::new(name, number);
        vip.service = vip.service.node_port(NODE_PORT + u16::from(number));
        vip
    })
}

struct Clients {
    outside: Host,
    pod: Pod,
    near: Pod,
    process: Host,
}

#[test]
fn clients_of_every_kind_are_served_by_an_agent_and_by_one_that_takes_over() {
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::new(Lab::builder());
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let clients = Clients {
        outside: cluster.lab.client("outside", Place::BeyondRouter).unwrap(),
        pod: cluster.pod(0, "client"),
        near,
        process: cluster.node(0).process(),
    };
    let services = services();
    for (vip, pods) in services.iter().zip([&[&clients.near][..], &[&far], &[]]) {
        cluster.publish(vip, pods);
    }
    let mut connections = Vec::new();
    for takes_over in [false, true] {
        if takes_over {
            connections = connect(&cluster, &clients, &services);
            cluster.agents.remove(0).kill().unwrap();
        }
        // Whoever dials is served by the node that is dialled from or to: the other one needs none.
        let agent = cluster.start_agent(0);
        cluster.agents.push(agent);
        for connection in &mut connections {
            connection.upload(300_000).unwrap();
        }
        for family in [0, 1] {
            inside(&clients, &services, family);
            outside(&cluster, &clients, family);
            of_the_node(&cluster, &clients, &services, family);
        }
    }
}

/// Connections to the backend on the other node: from a pod, and masqueraded from outside.
fn connect(cluster: &Cluster, clients: &Clients, services: &[Vip; 3]) -> Vec<HttpConnection> {
    let of_family = |family| {
        let node_port = node_address(cluster, 0, family, NODE_PORT + 2);
        let dialled = [
            (&*clients.pod, services[1].remotes()[family]),
            (&clients.outside, node_port),
        ];
        dialled.map(|(client, remote)| {
            let connect = || HttpClient::new(remote).connect();
            client.run(connect).unwrap().unwrap()
        })
    };
    [0, 1].into_iter().flat_map(of_family).collect()
}

/// Cluster addresses: kept sources, a pod that reaches itself, refusals.
fn inside(clients: &Clients, services: &[Vip; 3], family: usize) {
    let own = clients.pod.addresses()[family].to_string();
    for (vip, name) in services.iter().zip(NAMES) {
        let answers = ask(&clients.pod, vip.remotes()[family]);
        assert_eq!(answers, [name, name, &own, &own]);
    }
    let own = clients.near.addresses()[family].to_string();
    let [web, udp, seen, _] = ask(&clients.near, services[0].remotes()[family]);
    assert_eq!([&*web, &*udp], ["near"; 2], "through its own Service");
    assert_ne!(seen, own, "a pod that reaches itself is masqueraded");
    refused(&clients.pod, services[2].remotes()[family]);
}

/// Node ports: the source is kept towards a backend on the node, and the node's own towards others.
fn outside(cluster: &Cluster, clients: &Clients, family: usize) {
    let node_port = |number| node_address(cluster, 0, family, NODE_PORT + number);
    let source = clients.outside.addresses()[family].to_string();
    let answers = ask(&clients.outside, node_port(1));
    assert_eq!(answers, ["near", "near", &source, &source]);
    let node = towards_other_nodes(cluster, 0, family).to_string();
    let answers = ask(&clients.outside, node_port(2));
    assert_eq!(answers, ["far", "far", &node, &node], "masqueraded");
    refused(&clients.outside, node_port(3));
}

/// A process of the node: it reaches both backends as its node, and is refused at the socket.
fn of_the_node(cluster: &Cluster, clients: &Clients, services: &[Vip; 3], family: usize) {
    let remotes = |vip: &Vip, number| {
        let node_port = node_address(cluster, 0, family, NODE_PORT + number);
        [vip.remotes()[family], node_port]
    };
    let node = cluster.node(0);
    let (here, there) = (
        seen_on_itself(node),
        towards_other_nodes(cluster, 0, family),
    );
    for remote in remotes(&services[0], 1) {
        assert_met(&clients.process, remote, "near", &here);
    }
    for remote in remotes(&services[1], 2) {
        assert_met(&clients.process, remote, "far", &[there]);
    }
    for remote in remotes(&services[2], 3) {
        assert_fails(&clients.process, remote, refusal(node));
    }
}
