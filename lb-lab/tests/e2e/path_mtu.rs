// SPDX-License-Identifier: MIT OR Apache-2.0
//! Path MTU discovery through a Service: "fragmentation needed" and "packet too big" arrive as
//! about what their receiver sent.
//!
//! Without their translation a connection through a Service hangs as soon as a path is narrower
//! than its ends. **Invariant:** a transfer that stalls for two seconds is a failure.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::{IpAddr, SocketAddr};

use lb_common::Reason;
use lb_lab::{Builder, Host, HttpClient, Lab, Pod, Topology, UdpClient, Underlay};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cluster::{Cluster, TARGET, Vip, fail, in_default_and_routed};
use crate::common::can_run;
use crate::inspect;

/// Bytes of a transfer, several times what one window holds at the beginning.
const BYTES: u64 = 64 * 1024;

/// A transfer in each direction on connections of their own.
fn transfer(client: &Pod, remote: SocketAddr) {
    let connect = || HttpClient::new(remote).connect();
    let connection = || client.run(connect).unwrap().unwrap();
    let (mut up, mut down) = (connection(), connection());
    for transferred in [up.upload(BYTES), down.download(BYTES)] {
        transferred.unwrap_or_else(|error| fail(&format!("{BYTES} bytes, {remote}"), &error));
    }
}

/// A client, a backend on the other node, and their Service.
fn far_service(cluster: &mut Cluster) -> (Pod, Pod, Vip) {
    let (client, far) = (cluster.pod(0, "client"), cluster.web(1, "far"));
    let vip = Vip::new("far", 1);
    cluster.publish(&vip, &[&far]);
    cluster.start_agents();
    (client, far, vip)
}

/// How many errors the client's node has translated, and that it counted nothing else.
fn translated(cluster: &Cluster) -> u64 {
    let reasons = inspect::reasons(cluster.node(0));
    let [(Reason::IcmpError, count)] = reasons[..] else {
        assert_eq!(reasons, [(Reason::IcmpError, 1)]);
        return 0;
    };
    count
}

#[test]
fn pods_with_a_larger_mtu_than_their_overlay_transfer_both_ways() {
    if !can_run() {
        return;
    }
    for topology in [Topology::Bridge { br_netfilter: true }, Topology::Routed] {
        let builder = Lab::builder().topology(topology).underlay(Underlay::Vxlan);
        let mut cluster = Cluster::new(builder.pod_mtu(1500));
        let (client, _far, vip) = far_service(&mut cluster);
        for remote in vip.remotes() {
            transfer(&client, remote);
        }
        // One for each family at least: the client's node said it about what was uploaded.
        assert!(translated(&cluster) >= 2);
    }
}

#[test]
fn a_router_near_the_backend_is_heard_by_the_client() {
    in_default_and_routed(|builder: Builder| {
        let mut cluster = Cluster::new(builder);
        let (client, far, vip) = far_service(&mut cluster);
        let device = match cluster.lab.topology() {
            Topology::Bridge { .. } => "cni0",
            Topology::Routed => far.device(),
        };
        let narrow = format!("ip link set {device} mtu 1300");
        cluster.node(1).output(&narrow).unwrap();
        for remote in vip.remotes() {
            transfer(&client, remote);
        }
        assert!(translated(&cluster) >= 2);
    });
}

/// What a router behind the client would say about a datagram that the client was sent.
fn too_big(about: SocketAddr, to: SocketAddr, mtu: u16) -> Vec<u8> {
    let (from_port, to_port) = (about.port().to_be_bytes(), to.port().to_be_bytes());
    let [m0, m1] = mtu.to_be_bytes();
    let datagram = [&from_port[..], &to_port, &1408_u16.to_be_bytes(), &[0, 0]].concat();
    match (about.ip(), to.ip()) {
        (IpAddr::V4(about), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 5, 0x94, 0, 1, 0x40, 0, 63, 17, 0, 0];
            header.extend(about.octets());
            header.extend(to.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            let mut message = [&[3, 4, 0, 0, 0, 0, m0, m1], &header[..], &datagram].concat();
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum);
            message
        }
        (IpAddr::V6(about), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0, 5, 0x80, 17, 63];
            header.extend(about.octets());
            header.extend(to.octets());
            // The kernel computes the checksum of ICMPv6.
            [&[2, 0, 0, 0, 0, 0, m0, m1], &header[..], &datagram].concat()
        }
        mixed => unreachable!("two families: {mixed:?}"),
    }
}

/// The Internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2);
    let mut sum: u32 = words
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// Sends an ICMP message.
fn send(host: &Host, to: IpAddr, message: &[u8]) {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let work = || {
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        socket
            .send_to(message, &SocketAddr::new(to, 0).into())
            .unwrap();
    };
    host.run(work).unwrap();
}

#[test]
fn a_router_near_the_client_is_heard_by_the_backend() {
    in_default_and_routed(|builder: Builder| {
        let mut cluster = Cluster::new(builder);
        let (client, far, vip) = far_service(&mut cluster);
        for (remote, own) in vip.remotes().into_iter().zip(client.addresses()) {
            let ask = || {
                let socket = UdpClient::bind(remote, Some(40_000)).unwrap();
                socket.ask("hostname").unwrap()
            };
            assert_eq!(client.run(ask).unwrap(), "far");
            let route = format!("ip route get {own}");
            assert!(!far.output(&route).unwrap().contains("mtu 1300"));
            let message = too_big(remote, SocketAddr::new(own, 40_000), 1300);
            send(&client, remote.ip(), &message);
            // The backend's kernel takes it only if it is about a socket of its own.
            let began = std::time::Instant::now();
            while !far.output(&route).unwrap().contains("mtu 1300") {
                assert!(
                    began.elapsed() < std::time::Duration::from_secs(2),
                    "{own}: the backend did not hear, port {TARGET}"
                );
            }
        }
        assert_eq!(translated(&cluster), 2);
    });
}
