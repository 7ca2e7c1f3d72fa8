// SPDX-License-Identifier: MIT OR Apache-2.0
//! `networking.go`: who reaches whom through a Service, and what a change of it changes.
//!
//! **Invariant:** every name that ought to answer does, and no other. Read next: `topology.rs`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_lab::{Endpoint, Host, HttpClient, Lab, Pod, UdpClient};

use super::{
    NODE_PORT, TURNS, answered_by, at, cluster, on, publish_with, tcp_answered_by, udp_answered_by,
    unreachable, with_node_port, with_spec,
};
use crate::cluster::{Cluster, TARGET, Vip, get};
use crate::traffic::counters;

const NAMES: [&str; 3] = ["netserver-0", "netserver-1", "netserver-2"];

/// The three endpoints of the test's Service, behind a node port.
fn start(vip: &Vip) -> Option<(Cluster, [Pod; 3], Pod)> {
    let mut cluster = cluster()?;
    let pods = [(0, NAMES[0]), (1, NAMES[1]), (1, NAMES[2])];
    let pods = pods.map(|(node, name)| cluster.web(node, name));
    let client = cluster.pod(0, "client");
    cluster.publish(vip, &pods.each_ref());
    cluster.start_agents();
    Some((cluster, pods, client))
}

type Answered = fn(&Host, [SocketAddr; 2], &[&str]);

/// The client asks the address in the cluster and a node port on each node.
fn everywhere(cluster: &Cluster, client: &Host, vip: &Vip, answered: Answered) {
    answered(client, vip.remotes(), &NAMES);
    for node in cluster.lab.nodes() {
        answered(client, at(node, NODE_PORT), &NAMES);
    }
}

fn pod_service(answered: Answered) {
    let vip = with_node_port();
    let Some((cluster, _, client)) = start(&vip) else {
        return;
    };
    everywhere(&cluster, &client, &vip, answered);
    let far = cluster.pod(1, "far");
    // The program is there before a pod of a real cluster sends its first packet.
    crate::cluster::pause(std::time::Duration::from_millis(500));
    everywhere(&cluster, &far, &vip, answered);
}

#[test]
fn should_function_for_pod_service_http() {
    pod_service(tcp_answered_by);
}

#[test]
fn should_function_for_pod_service_udp() {
    pod_service(udp_answered_by);
}

fn endpoint_service(answered: Answered) {
    let vip = with_node_port();
    let Some((cluster, pods, _)) = start(&vip) else {
        return;
    };
    // Each of them meets itself too.
    for pod in &pods {
        everywhere(&cluster, pod, &vip, answered);
    }
}

#[test]
fn should_function_for_endpoint_service_http() {
    endpoint_service(tcp_answered_by);
}

#[test]
fn should_function_for_endpoint_service_udp() {
    endpoint_service(udp_answered_by);
}

/// The node port at both loopback addresses.
fn localhost() -> [SocketAddr; 2] {
    on(
        [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        NODE_PORT,
    )
}

/// A node asks, and so does a pod with `hostNetwork`; both ask at localhost too.
fn node_service(answered: Answered) {
    let vip = with_node_port();
    let Some((cluster, _, _)) = start(&vip) else {
        return;
    };
    let pod = cluster.node(1).host_network_pod("test-container").unwrap();
    for client in [cluster.node(0).process(), pod] {
        everywhere(&cluster, &client, &vip, answered);
        answered(&client, localhost(), &NAMES);
    }
}

#[test]
fn should_function_for_node_service_http() {
    node_service(tcp_answered_by);
}

#[test]
fn should_function_for_node_service_udp() {
    node_service(udp_answered_by);
}

/// Kubernetes counts the packets that its own `curl`s at localhost make. Here no packet has that
/// destination: what there is to count is connections, in the metrics of the Service.
#[test]
fn should_update_metric_for_tracking_accepted_packets_destined_for_localhost_node_ports() {
    let vip = with_node_port();
    let Some((cluster, _, _)) = start(&vip) else {
        return;
    };
    let process = cluster.node(0).process();
    let opened = || {
        let metric = "lb_service_opened_total{namespace=\"default\",name=\"web\",port=\"tcp-80\"}";
        counters(cluster.node(0))[metric]
    };
    let before = opened();
    tcp_answered_by(&process, localhost(), &NAMES);
    assert_eq!(opened() - before, 2 * TURNS as u64, "in both families");
}

#[test]
fn should_function_for_multiple_endpoint_services_with_same_selector() {
    let vip = with_node_port();
    let Some((mut cluster, pods, client)) = start(&vip) else {
        return;
    };
    let second = Vip::new("second", 2);
    let mut second = second;
    second.service = second.service.node_port(NODE_PORT + 1);
    let endpoint = &pods[0];
    cluster.change(|manifests| {
        manifests.endpoints(&second.service, &pods.each_ref())?;
        manifests.service(&second.service)
    });
    for vip in [&vip, &second] {
        answered_by(&client, vip.remotes(), &NAMES);
        answered_by(endpoint, vip.remotes(), &NAMES);
    }
    cluster.change(|manifests| manifests.delete(&second.service));
    answered_by(&client, vip.remotes(), &NAMES);
    unreachable(&client, second.remotes());
}

fn update_endpoints(answered: Answered) {
    let vip = with_node_port();
    let Some((mut cluster, pods, client)) = start(&vip) else {
        return;
    };
    everywhere(&cluster, &client, &vip, answered);
    cluster.set_endpoints(&vip, &[&pods[1], &pods[2]]);
    answered(&client, vip.remotes(), &NAMES[1..]);
    answered(&client, at(cluster.node(0), NODE_PORT), &NAMES[1..]);
}

#[test]
fn should_update_endpoints_http() {
    update_endpoints(tcp_answered_by);
}

#[test]
fn should_update_endpoints_udp() {
    update_endpoints(udp_answered_by);
}

/// HTTP and UDP in one: the Service has both behind the same number.
#[test]
fn should_update_node_port() {
    let vip = with_node_port();
    let Some((mut cluster, _, client)) = start(&vip) else {
        return;
    };
    answered_by(&client, at(cluster.node(0), NODE_PORT), &NAMES);
    let without = Vip::new("web", 1);
    cluster.change(|manifests| manifests.service(&without.service));
    unreachable(&client, at(cluster.node(0), NODE_PORT));
    answered_by(&client, vip.remotes(), &NAMES);
}

#[test]
fn should_support_basic_node_port_udp_functionality() {
    let vip = with_node_port();
    let Some((cluster, _, client)) = start(&vip) else {
        return;
    };
    for node in cluster.lab.nodes() {
        udp_answered_by(&client, at(node, NODE_PORT), &NAMES);
    }
}

/// HTTP and UDP in one, from two pods that need not meet the same endpoint.
#[test]
fn should_function_for_client_ip_based_session_affinity() {
    let vip = with_spec(with_node_port(), "sessionAffinity: ClientIP");
    let Some((_cluster, pods, client)) = start(&vip) else {
        return;
    };
    for host in [&client, &pods[0]] {
        for remote in vip.remotes() {
            let name = get(host, remote, "/").body;
            let datagram = host.udp_ask(remote, "hostname").unwrap();
            for _ in 0..15 {
                assert_eq!(get(host, remote, "/").body, name, "{remote}");
                let next = host.udp_ask(remote, "hostname").unwrap();
                assert_eq!(next, datagram, "{remote}");
            }
        }
    }
}

#[test]
fn should_function_for_large_requests_http() {
    let vip = with_node_port();
    let Some((cluster, _, client)) = start(&vip) else {
        return;
    };
    for remote in vip
        .remotes()
        .into_iter()
        .chain(at(cluster.node(0), NODE_PORT))
    {
        let upload = || {
            let mut connection = HttpClient::new(remote).connect()?;
            connection.upload(1 << 20)?;
            connection.download(1 << 20)
        };
        client.run(upload).unwrap().unwrap();
    }
}

#[test]
fn should_function_for_large_requests_udp() {
    let vip = with_node_port();
    let Some((cluster, _, client)) = start(&vip) else {
        return;
    };
    let message: Vec<u8> = (b'a'..=b'z').cycle().take(6_000).collect();
    for remote in vip
        .remotes()
        .into_iter()
        .chain(at(cluster.node(0), NODE_PORT))
    {
        for _ in 0..3 {
            let ask = || UdpClient::bind(remote, None)?.exchange(&message);
            assert!(client.run(ask).unwrap().unwrap() == message, "{remote}");
        }
    }
}

#[test]
fn should_function_for_service_endpoints_using_host_network() {
    let Some(cluster) = cluster() else { return };
    host_network(cluster, false);
    // A policy that drops what is forwarded drops what goes from a node by another one back to itself;
    // kube-proxy has a rule against that, and here people are told.
    host_network(Cluster::new(Lab::builder().forward_drop(false)), true);
}

/// Pods dial Services whose endpoints are on the network of nodes; also by the node ports of other
/// nodes, if that is asked for.
fn host_network(mut cluster: Cluster, by_others: bool) {
    let clients = [cluster.pod(0, "client-0"), cluster.pod(1, "client-1")];
    let nodes: Vec<_> = cluster.lab.nodes().to_vec();
    let _servers: Vec<_> = nodes
        .iter()
        .map(|node| node.serve(TARGET).unwrap())
        .collect();
    let endpoints: Vec<_> = nodes.iter().map(Endpoint::from).collect();
    let vip = with_node_port();
    publish_with(&cluster, &vip, &endpoints);
    cluster.start_agents();
    let names = ["node-0", "node-1"];
    for client in &clients {
        answered_by(client, vip.remotes(), &names);
        for node in &nodes {
            if by_others || node.number() == client.node().number() {
                answered_by(client, at(node, NODE_PORT), &names);
            }
        }
    }
}
