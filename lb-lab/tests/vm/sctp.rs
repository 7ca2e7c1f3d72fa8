// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP by the kernel's own sockets: associations through Services, bytes both ways, a shutdown.
//!
//! The ports change on the way, and with them the CRC over the whole packet: where checksums are not
//! left to the devices, the receiver's kernel drops and counts a packet with a wrong one.
//! **Invariant:** a connect that takes as long as a repeated INIT is a failure.
//! Read next: `../e2e/cluster.rs`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends at the first failure"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lb_lab::{Builder, Host, Lab, Place, Topology, TxOffload, Underlay};
use socket2::{Domain, Protocol, Socket, Type};

use crate::assert_nothing_odd;
use crate::cluster::{Cluster, TARGET, Vip};

const NODE_PORT: u16 = 30_132;
/// Where the Service is dialled.
const PORT: u16 = 80;
/// The kernel repeats an INIT after three seconds.
const CONNECT_MAX: Duration = Duration::from_millis(2_500);
/// How long any other step may take.
const STEP_MAX: Duration = Duration::from_secs(30);
/// Bytes that go to and fro at a time, more than one packet holds.
const PIECE: usize = 5_000;
const PIECES: u8 = 8;

#[test]
fn associations_with_partial_checksums_on_a_bridge() {
    through_every_frontend(Lab::builder());
}

#[test]
fn associations_with_full_checksums_on_a_bridge() {
    through_every_frontend(Lab::builder().tx_offload(TxOffload::Off));
}

#[test]
fn associations_with_full_checksums_by_routed_veths_and_vxlan() {
    let lab = Lab::builder()
        .topology(Topology::Routed)
        .underlay(Underlay::Vxlan);
    through_every_frontend(lab.tx_offload(TxOffload::Off));
}

/// A socket of the family of `local`, bound there.
fn socket(local: SocketAddr) -> Socket {
    let protocol = Protocol::from(libc::IPPROTO_SCTP);
    let domain = Domain::for_address(local);
    let socket = Socket::new(domain, Type::STREAM, Some(protocol));
    let socket = socket.expect("the kernel has no SCTP sockets; run `cargo xtask test vm`");
    // Bound to one address, because a list of addresses in an INIT is nothing that a NAT changes.
    socket.bind(&local.into()).unwrap();
    socket
}

/// Serves so many associations on one address of a host: tells the host's name and whom it sees,
/// then sends back what comes.
fn serve(host: &Host, address: IpAddr, associations: usize) -> JoinHandle<()> {
    let name = host.name().to_owned();
    let listen = || {
        let listener = socket(SocketAddr::new(address, TARGET));
        listener.listen(8).unwrap();
        std::thread::spawn(move || {
            for _ in 0..associations {
                let (mut association, peer) = listener.accept().unwrap();
                let peer = peer.as_socket().unwrap();
                association.set_read_timeout(Some(STEP_MAX)).unwrap();
                let greeting = format!("{name} {} {}\n", peer.ip(), peer.port());
                association.write_all(greeting.as_bytes()).unwrap();
                let mut buffer = [0; PIECE];
                loop {
                    let length = association.read(&mut buffer).unwrap();
                    if length == 0 {
                        break;
                    }
                    association.write_all(&buffer[..length]).unwrap();
                }
            }
        })
    };
    host.run(listen).unwrap()
}

/// What a server has said of an association.
#[derive(Debug, PartialEq, Eq)]
struct Greeting {
    server: String,
    /// The client as the server sees it.
    seen: SocketAddr,
    /// The client as it sees itself.
    own: SocketAddr,
}

/// One association: connect, the greeting, bytes to and fro, a shutdown.
fn associate(host: &Host, remote: SocketAddr) -> Greeting {
    let what = format!("{host:?} to {remote}");
    let own = host.addresses()[usize::from(remote.is_ipv6())];
    let work = || {
        let mut socket = socket(SocketAddr::new(own, 0));
        let own = socket.local_addr().unwrap().as_socket().unwrap();
        let start = Instant::now();
        let connected = socket.connect_timeout(&remote.into(), STEP_MAX);
        connected.expect(&what);
        let took = start.elapsed();
        assert!(took < CONNECT_MAX, "{what}: {took:?}");
        socket.set_read_timeout(Some(STEP_MAX)).unwrap();
        let mut greeting = String::new();
        while !greeting.ends_with('\n') {
            let mut buffer = [0; 100];
            let length = socket.read(&mut buffer).unwrap();
            assert_ne!(length, 0, "{what}: no greeting");
            greeting += std::str::from_utf8(&buffer[..length]).unwrap();
        }
        for number in 0..PIECES {
            let sent: Vec<u8> = (0..PIECE)
                .map(|at| number.wrapping_add(at.to_le_bytes()[0]))
                .collect();
            let written = socket.write_all(&sent);
            written.expect(&what);
            let mut received = vec![0; PIECE];
            let read = socket.read_exact(&mut received);
            read.expect(&what);
            assert!(received == sent, "{what}: other bytes in piece {number}");
        }
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut words = greeting.split_whitespace();
        let server = words.next().unwrap().to_owned();
        let address = words.next().unwrap().parse().unwrap();
        let seen = SocketAddr::new(address, words.next().unwrap().parse().unwrap());
        Greeting { server, seen, own }
    };
    host.run(work).unwrap()
}

/// A counter of SCTP in a host's namespace.
fn counter(host: &Host, name: &str) -> u64 {
    let read = || fs::read_to_string("/proc/thread-self/net/sctp/snmp");
    let text = host.run(read).unwrap().unwrap();
    let mut lines = text.lines().map(str::split_whitespace);
    let mut line = lines
        .find(|line| line.clone().next() == Some(name))
        .expect(name);
    line.nth(1).unwrap().parse().unwrap()
}

/// A pod and a client outside dial a cluster address and node ports that lead to a pod on the first
/// node and to one on the second.
fn through_every_frontend(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let client = cluster.pod(0, "client");
    // What SCTP has cut into chunks before it learns of a smaller MTU comes as fragments, in which
    // ports cannot be changed: the checksum is over the whole.
    let mtu = cluster.node(0).pod_mtu();
    outside
        .output(&format!("ip link set eth0 mtu {mtu}"))
        .unwrap();
    let pods = [cluster.pod(0, "near"), cluster.pod(1, "far")];
    let mut vips = [Vip::new("near", 1), Vip::new("far", 2)];
    for ((vip, pod), node_port) in vips.iter_mut().zip(&pods).zip(NODE_PORT..) {
        vip.service = vip.service.clone().sctp(PORT, TARGET).node_port(node_port);
        cluster.publish(vip, &[pod]);
    }
    cluster.start_agents();
    for (vip, (pod, node_port)) in vips.iter().zip(pods.iter().zip(NODE_PORT..)) {
        for (family, cluster_address) in vip.remotes().into_iter().enumerate() {
            let server = serve(pod, pod.addresses()[family], 4);
            let node_ports = [0, 1].map(|node| {
                let address = cluster.node(node).addresses()[family];
                SocketAddr::new(address, node_port)
            });
            let by_address = associate(&client, cluster_address);
            assert_eq!(
                (&*by_address.server, by_address.seen),
                (pod.name(), by_address.own)
            );
            assert_eq!(associate(&client, node_ports[0]).server, pod.name());
            for (node, node_port) in node_ports.into_iter().enumerate() {
                let from_outside = associate(&outside, node_port);
                assert_eq!(from_outside.server, pod.name());
                let is_near = node == usize::from(pod.node().number());
                let kept = from_outside.seen.ip() == from_outside.own.ip();
                assert_eq!(
                    kept, is_near,
                    "masqueraded towards other nodes: {from_outside:?}"
                );
            }
            server.join().unwrap();
        }
    }
    for host in [&*client, &outside, &*pods[0], &*pods[1]] {
        assert_ne!(counter(host, "SctpInSCTPPacks"), 0, "{host:?}");
        assert_eq!(counter(host, "SctpChecksumErrors"), 0, "{host:?}");
    }
    for node in cluster.lab.nodes() {
        assert_nothing_odd(node);
    }
}
