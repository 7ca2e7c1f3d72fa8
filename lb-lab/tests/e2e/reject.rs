// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Service without endpoints says so: connections and datagrams are refused at once.
//!
//! The receiving kernel judges the answers, by what it tells the socket and by what it counts as
//! wrong. **Invariant:** an answer comes within a tenth of a second, or it is a failure.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lb_common::Reason;
use lb_lab::{Builder, Host, HttpClient, LabError, Pod};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;

use crate::cluster::{Cluster, Vip, fail};
use crate::inspect;

in_every_topology!(
    a_service_without_endpoints_refuses_whoever_writes_the_checksums,
    datagrams_that_leave_as_one_are_refused,
);

/// How long a refusal may take.
const REFUSED_MAX: Duration = Duration::from_millis(100);

/// Tries a connection of TCP.
fn connect(client: &Host, remote: SocketAddr) -> Result<(), LabError> {
    let connect = || HttpClient::new(remote).connect().map(drop);
    client.run(connect).unwrap()
}

/// Sends a datagram of this length.
fn ask(client: &Host, remote: SocketAddr, length: usize) -> Result<(), LabError> {
    let question = "x".repeat(length);
    client.udp_ask(remote, &question).map(drop)
}

/// Asserts that an attempt is refused, and soon.
fn refused(what: &str, attempt: impl FnOnce() -> Result<(), LabError>) {
    let began = Instant::now();
    let result = attempt();
    let took = began.elapsed();
    let kind = match result {
        Ok(()) => None,
        Err(LabError::Io { source, .. }) => Some(source.kind()),
        Err(error) => fail(what, &error),
    };
    assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{what}");
    assert!(took < REFUSED_MAX, "{what}: {took:?}");
}

/// How many ICMP messages of both families a host has found to be wrong.
fn wrong_messages(host: &Host) -> u64 {
    let v4 = host.output("cat /proc/net/snmp").unwrap();
    let mut icmp = v4.lines().filter(|line| line.starts_with("Icmp:"));
    let (names, values) = (icmp.next().unwrap(), icmp.next().unwrap());
    let v4 = names.split(' ').zip(values.split(' '));
    let v4 = v4.filter(|(name, _)| ["InErrors", "InCsumErrors"].contains(name));
    let v6 = host.output("cat /proc/net/snmp6").unwrap();
    let v6 = v6
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace));
    let v6 = v6.filter(|(name, _)| ["Icmp6InErrors", "Icmp6InCsumErrors"].contains(name));
    let count = |text: &str| text.trim().parse::<u64>().unwrap();
    v4.map(|(_, value)| count(value)).sum::<u64>() + v6.map(|(_, value)| count(value)).sum::<u64>()
}

/// Refusals of TCP and of datagrams of several lengths, both families; gives how many.
fn refuse_all(client: &Pod, vip: &Vip, what: &str) -> u64 {
    let capture = client.capture("eth0").unwrap();
    let before = wrong_messages(client);
    let mut count = 0;
    for remote in vip.remotes() {
        refused(&format!("{what}: TCP, {remote}"), || {
            connect(client, remote)
        });
        count += 1;
        for length in [1, 2, 3, 512, 1373] {
            let what = format!("{what}: {length} bytes of UDP, {remote}");
            refused(&what, || ask(client, remote, length));
            count += 1;
        }
    }
    assert_eq!(wrong_messages(client), before, "{what}");
    let recording = capture.stop().unwrap();
    for (remote, own) in vip.remotes().into_iter().zip(client.addresses()) {
        let answers = recording.count(|from, _, to, _| from == remote.ip() && to == own);
        // One for each datagram, and for TCP a reset beside the ICMP error.
        assert_eq!(answers, 7, "{what}: answers from {remote}");
    }
    // With offload pending up to the client, what is quoted is never finished.
    if what.contains("off") {
        for own in client.addresses() {
            let bad = recording.bad_checksums_to(own);
            assert_eq!(bad, Vec::<String>::new(), "{what}");
        }
    }
    count
}

fn a_service_without_endpoints_refuses_whoever_writes_the_checksums(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let vip = Vip::new("empty", 1);
    cluster.publish(&vip, &[]);
    cluster.start_agents();
    let mut expected = refuse_all(&client, &vip, "nobody finishes checksums");
    // The device that the answer leaves by writes the checksum that is quoted.
    Cluster::tx_off_towards(&[&client]);
    expected += refuse_all(&client, &vip, "tx off on the host side");
    client.output("ethtool -K eth0 tx off").unwrap();
    expected += refuse_all(&client, &vip, "tx off on both sides");
    let reasons = inspect::reasons(cluster.node(0));
    assert_eq!(reasons, [(Reason::NoBackend, expected)]);
}

/// Sends four datagrams by one call: they stay one packet of the kernel's (GSO) on their way.
fn ask_many(client: &Host, remote: SocketAddr) -> Result<(), LabError> {
    const SEGMENT: i32 = 1000;
    let ask = || {
        let any: IpAddr = if remote.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        setsockopt(&socket, UdpGsoSegment, &SEGMENT).map_err(io::Error::from)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect(remote)?;
        socket.send(&[b'x'; 4000])?;
        socket.recv(&mut [0; 64]).map(drop)
    };
    let doing = format!("ask {remote}");
    client
        .run(ask)?
        .map_err(|source| LabError::Io { doing, source })
}

fn datagrams_that_leave_as_one_are_refused(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let vip = Vip::new("empty", 1);
    cluster.publish(&vip, &[]);
    cluster.start_agents();
    let before = wrong_messages(&client);
    let refuse_both = |what: &str| {
        for remote in vip.remotes() {
            refused(&format!("{what}: {remote}"), || ask_many(&client, remote));
        }
    };
    refuse_both("segmented by nobody");
    Cluster::tx_off_towards(&[&client]);
    refuse_both("checksums finished on the host side");
    client.output("ethtool -K eth0 tx off").unwrap();
    refuse_both("segmented by the client");
    assert_eq!(wrong_messages(&client), before);
}
