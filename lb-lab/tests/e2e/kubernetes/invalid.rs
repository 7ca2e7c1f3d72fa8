// SPDX-License-Identifier: MIT OR Apache-2.0
//! `conntrack.go`: a server sends a packet far outside the window in the middle of a connection.
//!
//! Conntrack calls it invalid and translates it no more; a client that sees the pod's own
//! address answers with a reset, which ends the connection. **Invariant:** the packet goes out,
//! and what reaches the client comes from the Service. Read next: `networking.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use lb_lab::{Builder, HttpClient, Lab, Pod};
use socket2::{Domain, Protocol, Socket, Type};

use super::{SILENCE, Vip};
use crate::cluster::{Cluster, TARGET, pause};
use crate::common::can_run;

/// A TCP segment of four bytes with ACK and PSH whose numbers belong to no window.
fn segment(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (packet, header) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (PacketBuilder::ipv4(from.octets(), to.octets(), 64), 20)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            (PacketBuilder::ipv6(from.octets(), to.octets(), 64), 40)
        }
        mixed => unreachable!("two families: {mixed:?}"),
    };
    let tcp = packet.tcp(from.port(), to.port(), 0x7777_7777, 0x1000);
    let mut bytes = Vec::new();
    tcp.ack(0x1111_1111)
        .psh()
        .write(&mut bytes, b"boom")
        .unwrap();
    // The kernel writes the header of the network layer.
    bytes.split_off(header)
}

/// Sends the segment from the server's pod as if its connection had.
fn boom(server: &Pod, own: SocketAddr, client: SocketAddr) {
    let segment = segment(own, client);
    let send = || {
        let socket = Socket::new(Domain::for_address(own), Type::RAW, Some(Protocol::TCP))?;
        let to = SocketAddr::new(client.ip(), 0);
        socket.send_to(&segment, &to.into())
    };
    assert_eq!(server.run(send).unwrap().unwrap(), segment.len());
}

fn survive(builder: Builder, dropped_as_invalid: bool) {
    let mut cluster = Cluster::new(builder.invalid_drop(dropped_as_invalid));
    let client = cluster.pod(0, "client");
    let server = cluster.web(1, "boom-server");
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&server]);
    cluster.start_agents();
    let sent = server.capture("eth0").unwrap();
    let received = client.capture("eth0").unwrap();
    let own = server.addresses().map(|own| SocketAddr::new(own, TARGET));
    let ports: Vec<u16> = vip
        .remotes()
        .into_iter()
        .zip(own)
        .map(|(remote, own)| survive_one((&client, &server), remote, own))
        .collect();
    let (sent, received) = (sent.stop().unwrap(), received.stop().unwrap());
    for ((remote, own), port) in vip.remotes().into_iter().zip(own).zip(ports) {
        let count = |from: SocketAddr| {
            let from = (from.ip(), from.port());
            move |source: IpAddr, source_port: u16, _: IpAddr, to: u16| {
                (source, source_port) == from && to == port
            }
        };
        assert!(sent.count(count(own)) > 3, "nothing was sent");
        assert!(received.count(count(remote)) > 3);
        let seen = received.count(count(own));
        assert_eq!(seen, 0, "the pod's own address was seen");
    }
}

/// A connection that a segment out of its window does not end; gives the client's port.
fn survive_one((client, server): (&Pod, &Pod), remote: SocketAddr, own: SocketAddr) -> u16 {
    let connect = || HttpClient::new(remote).connect();
    let mut connection = client.run(connect).unwrap().unwrap();
    assert_eq!(connection.get("/").unwrap().text(), "boom-server");
    boom(server, own, connection.local());
    pause(SILENCE);
    // Whoever got a reset has no connection now.
    assert_eq!(connection.get("/").unwrap().text(), "boom-server");
    connection.download(1 << 20).unwrap();
    connection.local().port()
}

#[test]
fn proxy_implementation_should_not_be_vulnerable_to_the_invalid_conntrack_state_bug() {
    if can_run() {
        survive(Lab::builder(), true);
        // Without the rule that protects kube-proxy, the packet is ours to translate.
        survive(Lab::builder(), false);
    }
}
