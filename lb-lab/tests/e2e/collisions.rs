// SPDX-License-Identifier: MIT OR Apache-2.0
//! One client port in two flows whose replies would look the same on the wire.
//!
//! **Invariant:** both flows are open at once and carry data both ways in turns, so a reply
//! that went to the other one is seen. Read next: "One tuple, two flows" in `lb-ebpf`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::SocketAddr;

use lb_lab::{Builder, HttpClient, HttpConnection, Pod, UdpClient};

use crate::cluster::{CONNECT_MAX, Cluster, TARGET, Vip, in_default_and_routed, own};
use crate::load::assert_no_retransmission;

in_every_topology!(one_client_port_reaches_a_service_and_its_pod_at_once_in_both_orders);

/// Opens a connection from a fixed port, which several connections may share.
fn connect(client: &Pod, remote: SocketAddr, port: u16) -> HttpConnection {
    let connect = || HttpClient::new(remote).source_port(port).connect();
    let connection = client.run(connect).unwrap();
    let connection = connection
        .unwrap_or_else(|error| crate::cluster::fail(&format!("port {port} to {remote}"), &error));
    assert!(connection.connect_time() < CONNECT_MAX, "{remote}");
    assert_eq!(connection.local().port(), port);
    assert_eq!(connection.stream().peer_addr().unwrap(), remote);
    connection
}

/// Both remotes over TCP from one port, opened in this order, then used in turns.
fn tcp_at_once(client: &Pod, server: &Pod, remotes: [SocketAddr; 2], port: u16) {
    let mut connections = remotes.map(|remote| connect(client, remote, port));
    for _ in 0..3 {
        for connection in &mut connections {
            assert_eq!(connection.get("/").unwrap().text(), server.name());
            connection.upload(200_000).unwrap();
            connection.download(200_000).unwrap();
        }
    }
    // The server tells the two apart, so their ports differ there.
    let [a, b] = connections
        .each_mut()
        .map(|connection| connection.get("/source").unwrap().body);
    assert_ne!(a, b);
    let address = own(client, remotes[0], 0).ip().to_string();
    for source in [a, b] {
        assert_eq!(source.split(' ').next().unwrap(), address);
    }
    let [first, mut second] = connections;
    drop(first);
    assert_eq!(
        second.get("/").unwrap().text(),
        server.name(),
        "it outlives the other"
    );
}

/// Both remotes over UDP from one port, first used in this order, then in turns.
fn udp_at_once(client: &Pod, remotes: [SocketAddr; 2], port: u16) {
    let bind = || remotes.map(|remote| UdpClient::bind(remote, Some(port)));
    let sockets = client.run(bind).unwrap().map(Result::unwrap);
    for round in 0..5 {
        for (socket, remote) in sockets.iter().zip(remotes) {
            // The sockets are connected: each sees answers of its own remote only.
            let question = format!("{remote} in round {round}");
            let answer = socket.ask(&question);
            let answer = answer.unwrap_or_else(|error| crate::cluster::fail(&question, &error));
            assert_eq!(answer, question);
        }
    }
    // Both questions are under way before the first answer is read.
    for (socket, remote) in sockets.iter().zip(remotes) {
        socket.socket().send(remote.to_string().as_bytes()).unwrap();
    }
    for (socket, remote) in sockets.iter().zip(remotes) {
        let mut buffer = [0; 100];
        let length = socket.socket().recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], remote.to_string().as_bytes());
    }
}

#[test]
fn one_client_port_reaches_two_services_that_share_a_backend_at_once() {
    in_default_and_routed(two_services);
}

fn two_services(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let pairs = [
        [Vip::new("near-a", 1), Vip::new("near-b", 2)],
        [Vip::new("far-a", 3), Vip::new("far-b", 4)],
    ];
    for (pair, pod) in pairs.iter().zip([&near, &far]) {
        for vip in pair {
            cluster.publish(vip, &[pod]);
        }
    }
    cluster.start_agents();
    let capture = client.capture("eth0").unwrap();
    for ([a, b], pod) in pairs.iter().zip([&near, &far]) {
        for (a, b) in a.remotes().into_iter().zip(b.remotes()) {
            tcp_at_once(&client, pod, [a, b], 40_001);
            udp_at_once(&client, [a, b], 40_001);
        }
    }
    assert_no_retransmission(&capture.stop().unwrap());
}

fn one_client_port_reaches_a_service_and_its_pod_at_once_in_both_orders(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let vips = [Vip::new("near", 1), Vip::new("far", 2)];
    for (vip, pod) in vips.iter().zip([&near, &far]) {
        cluster.publish(vip, &[pod]);
    }
    cluster.start_agents();
    let capture = client.capture("eth0").unwrap();
    for (vip, pod) in vips.iter().zip([&near, &far]) {
        for remote in vip.remotes() {
            let itself = own(pod, remote, TARGET);
            tcp_at_once(&client, pod, [remote, itself], 40_002);
            tcp_at_once(&client, pod, [itself, remote], 40_003);
            udp_at_once(&client, [remote, itself], 40_002);
            udp_at_once(&client, [itself, remote], 40_003);
        }
    }
    assert_no_retransmission(&capture.stop().unwrap());
}

#[test]
fn a_client_port_serves_again_at_another_service_when_the_server_has_closed_first() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let client = cluster.pod(0, "client");
        let pod = cluster.web(1, "web");
        let vips = [Vip::new("first", 1), Vip::new("second", 2)];
        for vip in &vips {
            cluster.publish(vip, &[&pod]);
        }
        cluster.start_agents();
        let [first, second] = vips.each_ref().map(Vip::remotes);
        for remotes in first.into_iter().zip(second) {
            for port in 41_000..41_020 {
                // The server waits in TIME_WAIT, by turns older and newer than what comes.
                for remote in [remotes.0, remotes.1] {
                    let get = || HttpClient::new(remote).source_port(port).get("/");
                    let reply = client.run(get).unwrap();
                    let what = format!("port {port} to {remote}");
                    let reply = reply.unwrap_or_else(|error| crate::cluster::fail(&what, &error));
                    assert_eq!(reply.text(), "web");
                    assert!(reply.connect_time < CONNECT_MAX, "{what}");
                }
            }
        }
    });
}
