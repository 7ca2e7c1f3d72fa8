// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is not for a Service passes as if we were not there.
//!
//! **Invariant:** nothing is counted and nothing is written for it: all counters are zero and
//! all tables of flows empty at the end. Read next: `inspect.rs`, which reads them.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_lab::{Builder, Host, HttpClient, Node, Place};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cluster::{Cluster, TARGET, Vip, get, in_default_and_routed};
use crate::common::assert_direct;
use crate::inspect;
use crate::load::assert_no_retransmission;

/// One echo request; the time until its answer, which must come within a second.
fn ping(host: &Host, address: IpAddr) -> Duration {
    let (domain, protocol, header) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 0),
    };
    let text = *b"not for a Service";
    let identifier = 0x6c62_u16.to_be_bytes();
    let request_type = if address.is_ipv4() { 8 } else { 128 };
    let mut packet = vec![request_type, 0, 0, 0, identifier[0], identifier[1], 0, 1];
    packet.extend(text);
    if address.is_ipv4() {
        // The kernel computes the checksum of ICMPv6 only.
        let words = packet.chunks(2).map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        });
        let sum: u32 = words.sum();
        let folded = u16::try_from((sum >> 16) + (sum & 0xffff)).unwrap();
        packet[2..4].copy_from_slice(&(!folded).to_be_bytes());
    }
    let work = || {
        let mut socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let began = Instant::now();
        socket
            .send_to(&packet, &SocketAddr::new(address, 0).into())
            .unwrap();
        let mut answer = [0; 200];
        loop {
            let length = socket.read(&mut answer).unwrap();
            let answer = &answer[header..length];
            let answer_type = if address.is_ipv4() { 0 } else { 129 };
            if answer[0] == answer_type && answer[4..6] == identifier {
                assert_eq!(answer[8..], text);
                return began.elapsed();
            }
        }
    };
    host.run(work).unwrap()
}

#[test]
fn traffic_that_is_for_no_service_is_untouched() {
    in_default_and_routed(leave_alone);
}

fn leave_alone(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&near, &far]);
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let _servers = [
        cluster.node(0).serve(TARGET).unwrap(),
        cluster.node(1).serve(TARGET).unwrap(),
        outside.serve(TARGET).unwrap(),
    ];
    cluster.start_agents();
    let capture = client.capture("eth0").unwrap();
    for (from, to) in [
        (&client, &near),
        (&client, &far),
        (&far, &client),
        (&far, &near),
    ] {
        if to.name() != "client" {
            assert_direct(from, to, TARGET);
        }
        for address in to.addresses() {
            ping(from, address);
        }
    }
    let [here, there] = [0, 1].map(|number| cluster.node(number));
    for node in [here, there] {
        for address in node.addresses() {
            assert_eq!(
                get(&client, SocketAddr::new(address, TARGET), "/").text(),
                node.name()
            );
            ping(&client, address);
        }
    }
    for address in client.addresses().into_iter().chain(far.addresses()) {
        ping(here, address);
    }
    for pod in [&near, &far] {
        for address in pod.addresses() {
            assert_eq!(
                get(here, SocketAddr::new(address, TARGET), "/").text(),
                pod.name()
            );
        }
    }
    for (address, masqueraded) in outside.addresses().into_iter().zip(here.addresses()) {
        let source = get(&client, SocketAddr::new(address, TARGET), "/source");
        let source = source.text().split(' ').next().unwrap().to_owned();
        assert_eq!(
            source,
            masqueraded.to_string(),
            "the CNI's rule applies as before"
        );
        ping(&client, address);
    }
    // A Service's address with a port that it does not have is nobody's business here.
    let nobody = SocketAddr::new(vip.v4.ip(), 81);
    let connect = || {
        HttpClient::new(nobody)
            .timeout(Duration::from_millis(200))
            .connect()
    };
    assert!(client.run(connect).unwrap().is_err());
    assert_no_retransmission(&capture.stop().unwrap());
    assert_nothing_noted(&[here, there]);
}

fn assert_nothing_noted(nodes: &[&Node]) {
    for node in nodes {
        assert_eq!(inspect::reasons(node), []);
        for map in ["CONNS_V4", "CONNS_V6", "HALF_OPEN_V4", "HALF_OPEN_V6"] {
            assert_eq!(inspect::entries(node, map), Vec::<String>::new(), "{map}");
        }
    }
}
