// SPDX-License-Identifier: MIT OR Apache-2.0
//! `conntrack.go`, `loadbalancer.go`: UDP clients that keep their port while servers change.
//!
//! Kubernetes asks until somebody answers; here the first datagram after the change counts.
//! **Invariant:** one socket per client and address, opened once, but where Kubernetes has it otherwise.
//! Read next: `invalid.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::SocketAddr;
use std::time::Duration;

use lb_lab::{Endpoint, Host, Place, Pod, ServerOptions, Service, UdpClient};

use super::loadbalancer::{balanced, lead_to};
use super::{NODE_PORT, at, cluster, with_node_port, with_spec};
use crate::cluster::{Cluster, TARGET, Vip};

/// The port of every client.
const CLIENT_PORT: u16 = 40_180;

/// A socket for each address.
fn sockets(client: &Host, remotes: [SocketAddr; 2]) -> [UdpClient; 2] {
    let bind = || remotes.map(|remote| UdpClient::bind(remote, Some(CLIENT_PORT)).unwrap());
    client.run(bind).unwrap()
}

fn all_answered_by(sockets: &[[UdpClient; 2]], name: &str) {
    for (number, socket) in sockets.iter().flatten().enumerate() {
        assert_eq!(socket.ask("hostname").unwrap(), name, "socket {number}");
    }
}

/// The first pod goes as pods do and the second takes over, then the same the other way round.
fn cycle(cluster: &mut Cluster, vip: &Vip, pods: [&Pod; 2], sockets: &[[UdpClient; 2]]) {
    cycle_while(cluster, vip, pods, |name| all_answered_by(sockets, name));
}

/// The same, with another way to ask who answers.
fn cycle_while(
    cluster: &mut Cluster,
    vip: &Vip,
    pods: [&Pod; 2],
    assert_answered_by: impl Fn(&str),
) {
    assert_answered_by(pods[0].name());
    for [leaving, coming] in [pods, [pods[1], pods[0]]] {
        let going = Endpoint::from(leaving).terminating();
        let both = [going.clone(), Endpoint::from(coming)];
        cluster.change(|manifests| manifests.endpoints_with(&vip.service, &[going]));
        assert_answered_by(leaving.name());
        cluster.change(|manifests| manifests.endpoints_with(&vip.service, &both));
        cluster.set_endpoints(vip, &[coming]);
        assert_answered_by(coming.name());
    }
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_node_port_service() {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let client = cluster.pod(0, "client");
    let (first, second) = (cluster.web(1, "first"), cluster.web(0, "second"));
    let vip = with_node_port();
    cluster.publish(&vip, &[&first]);
    cluster.start_agents();
    let remotes = at(cluster.node(0), NODE_PORT);
    let sockets = [sockets(&client, remotes), sockets(&outside, remotes)];
    cycle(&mut cluster, &vip, [&first, &second], &sockets);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_cluster_ip_service() {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let (first, second) = (cluster.web(1, "first"), cluster.web(0, "second"));
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&first]);
    cluster.start_agents();
    let sockets = [sockets(&client, vip.remotes())];
    cycle(&mut cluster, &vip, [&first, &second], &sockets);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_cluster_ip_service_with_internal_traffic_policy_local()
 {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.pod(0, "client");
    let (first, second) = (cluster.web(0, "first"), cluster.web(0, "second"));
    let vip = with_spec(Vip::new("web", 1), "internalTrafficPolicy: Local");
    cluster.publish(&vip, &[&first]);
    cluster.start_agents();
    let sockets = [sockets(&client, vip.remotes())];
    cycle(&mut cluster, &vip, [&first, &second], &sockets);
}

/// As the client of Kubernetes, this one has a port that stays and a socket for each datagram.
#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_cluster_ip_service_and_client_is_host_network()
 {
    let Some(mut cluster) = cluster() else { return };
    let client = cluster.node(0).host_network_pod("client").unwrap();
    let (first, second) = (cluster.web(1, "first"), cluster.web(0, "second"));
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&first]);
    cluster.start_agents();
    cycle_while(&mut cluster, &vip, [&first, &second], |name| {
        for _ in 0..3 {
            all_answered_by(&[sockets(&client, vip.remotes())], name);
        }
    });
}

/// The server at a load balancer cycles between two nodes.
fn at_a_load_balancer(nodes: [usize; 2]) {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let [first, second] = [(nodes[0], "first"), (nodes[1], "second")];
    let (first, second) = (
        cluster.web(first.0, first.1),
        cluster.web(second.0, second.1),
    );
    let vip = balanced();
    cluster.publish(&vip, &[&first]);
    cluster.start_agents();
    let sockets = [sockets(&outside, lead_to(&cluster, 0))];
    cycle(&mut cluster, &vip, [&first, &second], &sockets);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_load_balancer_service_on_different_nodes()
 {
    at_a_load_balancer([0, 1]);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_load_balancer_service_on_the_same_node()
 {
    at_a_load_balancer([0, 0]);
    at_a_load_balancer([1, 1]);
}

#[test]
fn should_be_able_to_preserve_udp_traffic_when_initial_unready_endpoints_get_ready() {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "web");
    let vip = with_node_port();
    super::publish_with(&cluster, &vip, &[Endpoint::from(&pod).unready()]);
    cluster.start_agents();
    let remotes = at(cluster.node(0), NODE_PORT);
    let sockets = [sockets(&client, vip.remotes()), sockets(&outside, remotes)];
    for socket in sockets.iter().flatten() {
        socket.set_timeout(Duration::from_millis(300)).unwrap();
        for _ in 0..3 {
            assert!(socket.ask("hostname").is_err());
        }
    }
    cluster.set_endpoints(&vip, &[&pod]);
    for socket in sockets.iter().flatten() {
        // An error about an early datagram may still wait in the socket.
        drop(socket.socket().take_error());
        socket.set_timeout(Duration::from_secs(2)).unwrap();
    }
    all_answered_by(&sockets, "web");
}

#[test]
fn should_be_able_to_cleanup_conntrack_entries_when_udp_service_target_port_changes_for_a_node_port_service()
 {
    let Some(mut cluster) = cluster() else { return };
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let client = cluster.pod(0, "client");
    let pod = cluster.web(1, "first");
    let options = ServerOptions::new("second", &[TARGET + 1]);
    let _server = pod.serve_with(&options).unwrap();
    let vip = with_node_port();
    let addresses = vip.remotes().map(|remote| remote.ip());
    let moved = Service::new("web", &addresses);
    let moved = moved.tcp(80, TARGET + 1).udp(80, TARGET + 1);
    let moved = moved.node_port(NODE_PORT);
    cluster.publish(&vip, &[&pod]);
    cluster.start_agents();
    let remotes = at(cluster.node(0), NODE_PORT);
    let sockets = [sockets(&client, remotes), sockets(&outside, remotes)];
    all_answered_by(&sockets, "first");
    cluster.change(|manifests| {
        manifests.service(&moved)?;
        manifests.endpoints(&moved, &[&pod])
    });
    all_answered_by(&sockets, "second");
}
