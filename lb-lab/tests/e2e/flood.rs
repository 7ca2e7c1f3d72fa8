// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets of made-up senders by the hundred thousand, while a thousand connections transfer.
//!
//! The table of established connections has room for hardly more than those, and the table of
//! half-open ones overflows many times. **Invariant:** sources and ports are drawn anew for every
//! packet; what reached the node is counted there and not by the sender.
//! Read next: "Connections" in the README of `lb-common`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, IpHeaders, PacketBuilder, PacketBuilderStep};
use lb_common::Reason;
use lb_lab::{Host, HttpClient, HttpConnection, Lab, Node, Place, Pod};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cluster::{Cluster, Vip, soak};
use crate::common::can_run;
use crate::inspect;
use crate::nodeport::node_address;

/// Connections that must survive; each takes two entries.
const CONNECTIONS: usize = 1_000;
/// Room for a tenth more than those.
const ESTABLISHED_MAX: usize = 2_200;
const HALF_OPEN_MAX: usize = 4_096;
/// Descriptors of both ends of all connections, and some.
const FILES: u64 = 8 * CONNECTIONS as u64;
const NODE_PORT: u16 = 30_050;
/// The flood takes turns on the processors, so an answer may take its time.
const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers that look random and are the same in every run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The headers of a packet from a sender that nobody has: of 100.64.0.0/10 or `2001:db8:64::/48`.
fn from_nobody(to: IpAddr, number: u64) -> PacketBuilderStep<IpHeaders> {
    match to {
        IpAddr::V4(to) => {
            let [.., high, middle, low] = number.to_be_bytes();
            let from = [100, 64 | high & 0x3f, middle, low];
            PacketBuilder::ipv4(from, to.octets(), 64)
        }
        IpAddr::V6(to) => {
            let from = (0x2001_0db8_0064_u128 << 80) | u128::from(number);
            PacketBuilder::ipv6(from.to_be_bytes(), to.octets(), 64)
        }
    }
}

/// One packet of the flood: a SYN, a datagram, an echo request, or an ICMP error about nothing.
fn packet(remote: SocketAddr, sequence: usize, numbers: &mut Numbers) -> Vec<u8> {
    let to = from_nobody(remote.ip(), numbers.next());
    let [a, b, c, d, ..] = numbers.next().to_be_bytes();
    let source_port = u16::from_be_bytes([a, b]) | 1024;
    let random = u16::from_be_bytes([c, d]);
    let mut bytes = Vec::with_capacity(128);
    let written = match (sequence % 4, remote) {
        (0, _) => to
            .tcp(source_port, remote.port(), random.into(), 1024)
            .syn()
            .write(&mut bytes, &[]),
        (1, _) => to
            .udp(source_port, remote.port())
            .write(&mut bytes, b"flood"),
        (2, SocketAddr::V4(_)) => to
            .icmpv4_echo_request(random, source_port)
            .write(&mut bytes, b"flood"),
        (2, SocketAddr::V6(_)) => to
            .icmpv6_echo_request(random, source_port)
            .write(&mut bytes, b"flood"),
        (_, _) => {
            // As if a router had it back from the Service: sent by its address to nobody.
            let quoted = quoted(remote, source_port, numbers);
            match remote {
                SocketAddr::V4(_) => {
                    let needed = DestUnreachableHeader::FragmentationNeeded {
                        next_hop_mtu: 1_280,
                    };
                    to.icmpv4(Icmpv4Type::DestinationUnreachable(needed))
                        .write(&mut bytes, &quoted)
                }
                SocketAddr::V6(_) => to
                    .icmpv6(Icmpv6Type::PacketTooBig { mtu: 1_280 })
                    .write(&mut bytes, &quoted),
            }
        }
    };
    written.unwrap();
    bytes
}

fn quoted(remote: SocketAddr, port: u16, numbers: &mut Numbers) -> Vec<u8> {
    let [.., a, b] = numbers.next().to_be_bytes();
    let from = match remote.ip() {
        IpAddr::V4(from) => PacketBuilder::ipv4(from.octets(), [100, 64, a, b], 60),
        IpAddr::V6(from) => {
            let to = Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, a.into(), b.into());
            PacketBuilder::ipv6(from.octets(), to.octets(), 60)
        }
    };
    let mut bytes = Vec::new();
    let tcp = from.tcp(remote.port(), port, 1, 1024).ack(1);
    tcp.write(&mut bytes, &[0; 8]).unwrap();
    bytes
}

/// Sends `count` packets to a Service by a raw socket, as fast as it can.
fn flood(attacker: &Host, remote: SocketAddr, count: usize, seed: u64) {
    /// `IPPROTO_RAW`: the packets bring their own headers.
    const WITH_HEADERS: i32 = 255;
    let work = || {
        let domain = Domain::for_address(remote);
        let protocol = Some(Protocol::from(WITH_HEADERS));
        let socket = Socket::new(domain, Type::RAW, protocol).unwrap();
        let (mut numbers, to) = (Numbers(seed), SocketAddr::new(remote.ip(), 0).into());
        for sequence in 0..count {
            let packet = packet(remote, sequence, &mut numbers);
            while let Err(error) = socket.send_to(&packet, &to) {
                let full = error.raw_os_error() == Some(libc::ENOBUFS);
                assert!(full || error.kind() == ErrorKind::WouldBlock, "{error}");
                thread::yield_now();
            }
        }
    };
    attacker.run(work).unwrap();
}

/// Packets that a device of a node has taken in.
fn received(node: &Node, device: &str) -> u64 {
    let text = node
        .output(&format!("ip -j -s link show dev {device}"))
        .unwrap();
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

fn connect_all(client: &Pod, remote: SocketAddr) -> Vec<HttpConnection> {
    let connect = |_| HttpClient::new(remote).timeout(PATIENCE).connect();
    let work = || (0..CONNECTIONS).map(connect).collect::<Result<_, _>>();
    client.run(work).unwrap().unwrap()
}

/// Uses every connection in turn until told to stop, and at least once; gives how many rounds.
fn transfer(connections: &mut [HttpConnection], stop: &AtomicBool) -> usize {
    let mut rounds = 0;
    while rounds == 0 || !stop.load(Ordering::Relaxed) {
        for (number, connection) in connections.iter_mut().enumerate() {
            let reply = connection.get("/").map(|reply| reply.status);
            assert_eq!(reply.ok(), Some(200), "connection {number}, round {rounds}");
        }
        rounds += 1;
    }
    rounds
}

/// How many of the entries are of TCP.
fn tcp_entries(node: &Node, map: &str) -> usize {
    let entries = inspect::entries(node, map);
    let is_tcp = |entry: &&String| entry.contains("\"proto\":6,") || entry.contains("\"proto\":6}");
    entries.iter().filter(is_tcp).count()
}

#[test]
fn a_flood_of_ipv4_loses_none_of_a_thousand_connections() {
    if can_run() {
        survive(0, ["CONNS_V4", "HALF_OPEN_V4"]);
    }
}

#[test]
fn a_flood_of_ipv6_loses_none_of_a_thousand_connections() {
    if can_run() {
        survive(1, ["CONNS_V6", "HALF_OPEN_V6"]);
    }
}

/// A cluster without netfilter, whose own table would overflow first.
fn quiet_cluster() -> Cluster {
    let builder = Lab::builder().masquerade(false).forward_drop(false);
    Cluster::new(builder.invalid_drop(false))
}

/// Sends what answers nobody to a host that drops it, else the router would report each.
fn send_answers_to(cluster: &Cluster, host: &Host) {
    let [v4, v6] = host.addresses();
    for route in [
        format!("100.64.0.0/10 via {v4}"),
        format!("2001:db8:64::/48 via {v6}"),
    ] {
        let command = format!("ip route add {route}");
        cluster.lab.router().output(&command).unwrap();
    }
}

fn survive(family: usize, [established, half_open]: [&str; 2]) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(FILES.min(hard)), hard).unwrap();
    let mut cluster = quiet_cluster();
    let (client, inside) = (cluster.pod(0, "client"), cluster.pod(0, "inside"));
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    send_answers_to(&cluster, &outside);
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let mut vip = Vip::new("web", 1);
    vip.service = vip.service.node_port(NODE_PORT);
    cluster.publish(&vip, &[&near, &far]);
    let maxima = [ESTABLISHED_MAX, HALF_OPEN_MAX].map(|max| max.to_string());
    let [connections_max, half_open_max] = maxima.each_ref().map(String::as_str);
    cluster.start_agents_with(&[
        "--connections-max",
        connections_max,
        "--half-open-max",
        half_open_max,
    ]);
    let remote = vip.remotes()[family];
    let mut connections = connect_all(&client, remote);
    transfer(&mut connections, &AtomicBool::new(true));
    let node = cluster.node(0);
    assert_eq!(tcp_entries(node, established), 2 * CONNECTIONS);

    let each = soak(200_000) / 2;
    let devices = [inside.device(), "eth0"];
    let before = devices.map(|device| received(node, device));
    let began = Instant::now();
    let stop = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let transfers = scope.spawn(|| transfer(&mut connections, &stop));
        let node_port = node_address(&cluster, 0, family, NODE_PORT);
        let floods = [(&*inside, remote, 1), (&outside, node_port, 2)]
            .map(|(attacker, to, seed)| scope.spawn(move || flood(attacker, to, each, seed)));
        let ends = floods.map(|flood| flood.join().is_ok());
        stop.store(true, Ordering::Relaxed);
        assert_eq!(ends, [true; 2], "the flood itself failed");
        transfers.join().unwrap()
    });
    let took = began.elapsed();
    let arrived = [0, 1].map(|at| received(node, devices[at]) - before[at]);
    for arrived in arrived {
        let enough = each as u64 * 9 / 10;
        assert!(
            arrived > enough,
            "only {arrived} of {each} reached the node"
        );
    }
    let reasons = inspect::reasons(node);
    let entries = [established, half_open].map(|map| inspect::entries(node, map).len());
    report(&format!(
        "{arrived:?} packets in {took:?}, {rounds} rounds of {CONNECTIONS} connections; \
         entries {entries:?}; {reasons:?}"
    ));
    assert_eq!(
        tcp_entries(node, established),
        2 * CONNECTIONS,
        "{reasons:?}"
    );
    assert!(entries[0] <= ESTABLISHED_MAX && entries[1] <= HALF_OPEN_MAX);
    let full = inspect::reason(node, Reason::EstablishedFull);
    assert!(full > 0, "the flood never met a full table: {reasons:?}");
    for connection in &mut connections {
        connection.upload(20_000).unwrap();
        connection.download(20_000).unwrap();
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the numbers of a long run are its result"
)]
fn report(text: &str) {
    eprintln!("{text}");
}
