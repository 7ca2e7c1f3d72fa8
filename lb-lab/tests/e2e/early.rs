// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a client sent to a Service before it was there must not stand in its way later.
//!
//! The first packet leaves an entry in conntrack without a translation, which lasts two minutes
//! and takes in every later packet with the same ports. Our programs come before conntrack.
//! **Invariant:** the client's ports are the same before and after. Read next: `lifecycle.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::SocketAddr;
use std::time::Duration;

use lb_lab::{Builder, Host, HttpClient, Place, UdpClient};

use crate::cluster::{CONNECT_MAX, Cluster, Vip, fail, in_default_and_routed};
use crate::load::assert_no_retransmission;
use crate::nodeport::node_address;

#[test]
fn a_port_that_dialled_a_service_too_early_reaches_it_as_soon_as_it_is_there() {
    in_default_and_routed(dial_too_early);
}

fn dial_too_early(builder: Builder) {
    const PORT: u16 = 40_020;
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let pods = [cluster.web(0, "near"), cluster.web(1, "far")];
    let vips = [Vip::new("near", 1), Vip::new("far", 2)];
    cluster.start_agents();
    let remotes: Vec<_> = vips.iter().flat_map(Vip::remotes).collect();
    let sockets = dial_in_vain(&client, &remotes, PORT);
    let node = cluster.node(0);
    let conntrack = node
        .output("conntrack -L -p tcp --orig-port-src 40020")
        .unwrap();
    assert!(
        conntrack.contains("dst=10.0.1.1"),
        "no entry stands in the way, so this shows nothing: {conntrack}"
    );
    cluster.change(|manifests| {
        for (vip, pod) in vips.iter().zip(&pods) {
            manifests.endpoints(&vip.service, &[pod])?;
            manifests.service(&vip.service)?;
        }
        Ok(())
    });
    let capture = client.capture("eth0").unwrap();
    for (number, (remote, socket)) in remotes.into_iter().zip(&sockets).enumerate() {
        assert_reached(&client, remote, PORT, socket, pods[number / 2].name());
    }
    assert_no_retransmission(&capture.stop().unwrap());
}

/// Dials over TCP and UDP where nobody answers; the sockets of UDP are kept.
fn dial_in_vain(client: &Host, remotes: &[SocketAddr], port: u16) -> Vec<UdpClient> {
    let dial = |&remote: &SocketAddr| {
        let early = HttpClient::new(remote)
            .source_port(port)
            .timeout(Duration::from_millis(200));
        assert!(client.run(|| early.connect()).unwrap().is_err(), "{remote}");
        let bind = || UdpClient::bind(remote, Some(port));
        let socket = client.run(bind).unwrap().unwrap();
        socket.set_timeout(Duration::from_millis(100)).unwrap();
        assert!(socket.ask("hostname").is_err(), "{remote}");
        socket
    };
    remotes.iter().map(dial).collect()
}

/// Asserts that the same ports reach a server with this name, at the first try.
fn assert_reached(client: &Host, remote: SocketAddr, port: u16, socket: &UdpClient, name: &str) {
    let connect = || HttpClient::new(remote).source_port(port).get("/");
    let reply = client.run(connect).unwrap();
    let reply = reply.unwrap_or_else(|error| fail(&remote.to_string(), &error));
    assert_eq!(reply.text(), name, "{remote}");
    assert!(reply.connect_time < CONNECT_MAX, "{:?}", reply.connect_time);
    // An error about the early datagram may still wait in the socket.
    drop(socket.socket().take_error());
    socket.set_timeout(Duration::from_secs(2)).unwrap();
    assert_eq!(socket.ask("hostname").unwrap(), name, "{remote}");
}

#[test]
fn a_port_that_dialled_a_node_port_too_early_reaches_it_as_soon_as_it_is_there() {
    in_default_and_routed(dial_a_node_port_too_early);
}

fn dial_a_node_port_too_early(builder: Builder) {
    const PORT: u16 = 40_021;
    const NODE_PORT: u16 = 30_020;
    let mut cluster = Cluster::new(builder);
    let clients = [Place::Underlay, Place::BeyondRouter].map(|place| {
        let client = cluster
            .lab
            .client(&format!("{place:?}").to_lowercase(), place);
        client.unwrap()
    });
    let pods = [cluster.web(0, "near"), cluster.web(1, "far")];
    let mut vips = [Vip::new("near", 1), Vip::new("far", 2)];
    for (vip, node_port) in vips.iter_mut().zip(NODE_PORT..) {
        vip.service = vip.service.clone().node_port(node_port);
    }
    cluster.start_agents();
    let at = |node_port| [0, 1].map(|family| node_address(&cluster, 0, family, node_port));
    let remotes = [at(NODE_PORT), at(NODE_PORT + 1)].concat();
    let sockets = clients
        .each_ref()
        .map(|client| dial_in_vain(client, &remotes, PORT));
    let entries = "conntrack -L -p udp --orig-port-src 40021";
    let entries = cluster.node(0).output(entries).unwrap();
    assert!(
        entries.contains("dport=30020"),
        "no entry stands in the way, so this shows nothing: {entries}"
    );
    cluster.change(|manifests| {
        for (vip, pod) in vips.iter().zip(&pods) {
            manifests.endpoints(&vip.service, &[pod])?;
            manifests.service(&vip.service)?;
        }
        Ok(())
    });
    for (client, sockets) in clients.iter().zip(&sockets) {
        let capture = client.capture("eth0").unwrap();
        for (number, (&remote, socket)) in remotes.iter().zip(sockets).enumerate() {
            assert_reached(client, remote, PORT, socket, pods[number / 2].name());
        }
        assert_no_retransmission(&capture.stop().unwrap());
    }
}
