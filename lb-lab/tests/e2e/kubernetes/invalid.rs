// SPDX-License-Identifier: MIT OR Apache-2.0
//! `conntrack.go`: a server sends a packet far outside the window in the middle of a connection.
//!
//! Conntrack calls it invalid and translates it no more; a client that sees the pod's own
//! address answers with a reset, which ends the connection. **Invariant:** the packet goes out,
//! and what reaches the client comes from the Service. Read next: `networking.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_lab::{Builder, HttpClient, Lab, Pod};
use socket2::{Domain, Protocol, Socket, Type};

use super::{SILENCE, Vip};
use crate::cluster::{Cluster, TARGET, pause};
use crate::common::can_run;

/// The sum of the Internet checksum over whole 16-bit words, big endian, folded.
fn checksum(words: &[u8]) -> u16 {
    let pairs = words.chunks_exact(2);
    let mut sum: u32 = pairs
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// A TCP segment of one byte with ACK and PSH whose numbers belong to no window.
fn segment(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(from.1.to_be_bytes());
    tcp.extend(to.1.to_be_bytes());
    tcp.extend([0x77, 0x77, 0x77, 0x77, 0x11, 0x11, 0x11, 0x11]);
    tcp.extend([0x50, 0x18, 0x10, 0x00, 0, 0, 0, 0]);
    tcp.extend(*b"boom");
    let mut summed = Vec::new();
    summed.extend(from.0.octets());
    summed.extend(to.0.octets());
    summed.extend([0, 6]);
    summed.extend(u16::try_from(tcp.len()).unwrap().to_be_bytes());
    summed.extend(&tcp);
    let sum = checksum(&summed).to_be_bytes();
    tcp[16..18].copy_from_slice(&sum);
    tcp
}

/// Sends the segment from the server's pod as if its connection had.
fn boom(server: &Pod, client: (Ipv4Addr, u16)) {
    let segment = segment((server.v4(), TARGET), client);
    let send = || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
        let to = SocketAddr::new(IpAddr::V4(client.0), 0);
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
    let mut connection = client
        .run(|| HttpClient::new(vip.v4).connect())
        .unwrap()
        .unwrap();
    assert_eq!(connection.get("/").unwrap().text(), "boom-server");
    let port = connection.local().port();
    let count = |from: SocketAddr| {
        let from = (from.ip(), from.port());
        move |source: IpAddr, source_port: u16, _: IpAddr, to: u16| {
            (source, source_port) == from && to == port
        }
    };
    boom(&server, (client.v4(), port));
    pause(SILENCE);
    // Whoever got a reset has no connection now.
    assert_eq!(connection.get("/").unwrap().text(), "boom-server");
    connection.download(1 << 20).unwrap();
    let own = SocketAddr::new(IpAddr::V4(server.v4()), TARGET);
    let (sent, received) = (sent.stop().unwrap(), received.stop().unwrap());
    assert!(sent.count(count(own)) > 3, "nothing was sent");
    assert!(received.count(count(vip.v4)) > 3);
    assert_eq!(
        received.count(count(own)),
        0,
        "the pod's own address was seen"
    );
}

#[test]
fn proxy_implementation_should_not_be_vulnerable_to_the_invalid_conntrack_state_bug() {
    if can_run() {
        survive(Lab::builder(), true);
        // Without the rule that protects kube-proxy, the packet is ours to translate.
        survive(Lab::builder(), false);
    }
}
