// SPDX-License-Identifier: MIT OR Apache-2.0
//! Large transfers, whose segments are merged and split, and datagrams without a checksum.
//!
//! **Invariant:** every byte is checked by its receiver against its offset.
//! Read next: "Checksums" in the README of `lb-ebpf`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use lb_lab::{Builder, HttpClient, Pod, Service};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cluster::{Cluster, Vip, fail, in_default_and_routed, soak};

in_every_topology!(
    sixty_four_megabytes_pass_both_ways_with_offload_on_off_and_off_on_the_host_side
);

/// How many bytes go each way.
const BULK: u64 = 64 << 20;
/// More than a loaded machine needs for a read; a stalled transfer ends here.
const STALLED: Duration = Duration::from_secs(10);

fn transfer(client: &Pod, remote: SocketAddr, bytes: u64) {
    let connect = || HttpClient::new(remote).timeout(STALLED).connect();
    let mut connection = client.run(connect).unwrap().unwrap();
    for transferred in [connection.download(bytes), connection.upload(bytes)] {
        transferred.unwrap_or_else(|error| fail(&format!("{bytes} bytes, {remote}"), &error));
    }
}

fn sixty_four_megabytes_pass_both_ways_with_offload_on_off_and_off_on_the_host_side(
    builder: Builder,
) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let vips = [Vip::new("near", 1), Vip::new("far", 2)];
    for (vip, pod) in vips.iter().zip([&near, &far]) {
        cluster.publish(vip, &[pod]);
    }
    cluster.start_agents();
    let all = vips.map(|vip| vip.remotes());
    let [[near_v4, near_v6], [far_v4, far_v6]] = all;
    // By default not every combination, in a long run every one and often.
    let long = soak(1) - 1;
    let extra: Vec<_> = std::iter::repeat_n(all.as_flattened(), long)
        .flatten()
        .copied()
        .collect();
    let pass = |remotes: &[SocketAddr]| {
        for remote in remotes.iter().chain(&extra) {
            transfer(&client, *remote, BULK);
        }
    };
    pass(&[near_v4, far_v6]);
    cluster.tx_off_on_nodes(&[&client, &near, &far]);
    pass(&[near_v6, far_v4]);
    for pod in [&client, &near, &far] {
        pod.output("ethtool -K eth0 tx off").unwrap();
    }
    pass(&[far_v6]);
}

/// A UDP port of a pod whose datagrams are written and read with their headers.
struct RawPort {
    raw: Socket,
    port: u16,
    /// Without it the kernel would answer that nobody listens.
    _bound: UdpSocket,
}

/// What a [`RawPort`] received.
#[derive(Debug, PartialEq)]
struct Datagram {
    from: SocketAddr,
    checksum: u16,
    payload: Vec<u8>,
}

impl RawPort {
    fn open(pod: &Pod, port: u16) -> Self {
        let open = || {
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
            raw.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let bound = UdpSocket::bind((pod.v4(), port)).unwrap();
            Self {
                raw,
                port,
                _bound: bound,
            }
        };
        pod.run(open).unwrap()
    }

    /// Sends a datagram with checksum zero: none was computed (RFC 768).
    fn send(&self, to: SocketAddr, payload: &[u8]) {
        let length = u16::try_from(8 + payload.len()).unwrap();
        let header = [self.port, to.port(), length, 0].map(u16::to_be_bytes);
        let packet = [header.as_flattened(), payload].concat();
        self.raw.send_to(&packet, &to.into()).unwrap();
    }

    /// The next datagram for this port.
    fn receive(&self) -> Datagram {
        let mut packet = vec![0; 2000];
        loop {
            let length = (&self.raw).read(&mut packet).unwrap();
            // A raw socket gets the IPv4 header too; its length is in units of four bytes.
            let start = usize::from(packet[0] & 15) * 4;
            let half = |at: usize| u16::from_be_bytes([packet[start + at], packet[start + at + 1]]);
            if half(2) == self.port {
                let from = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
                return Datagram {
                    from: SocketAddr::new(IpAddr::V4(from), half(0)),
                    checksum: half(6),
                    payload: packet[start + 8..length].to_vec(),
                };
            }
        }
    }
}

#[test]
fn datagrams_without_a_checksum_stay_without_one() {
    in_default_and_routed(without_checksum);
}

fn without_checksum(builder: Builder) {
    const SERVER: u16 = 9377;
    const CLIENT: u16 = 40_010;
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let pods = [cluster.pod(0, "near"), cluster.pod(1, "far")];
    let vips = [1, 2].map(|number| {
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, 1, number));
        let service = Service::new(&format!("zero-{number}"), &[address]).udp(80, SERVER);
        (service, SocketAddr::new(address, 80))
    });
    for ((service, _), pod) in vips.iter().zip(&pods) {
        cluster.manifests.service(service).unwrap();
        cluster.manifests.endpoints(service, &[pod]).unwrap();
    }
    cluster.start_agents();
    let here = RawPort::open(&client, CLIENT);
    for ((_, vip), pod) in vips.iter().zip(&pods) {
        let there = RawPort::open(pod, SERVER);
        for round in 0..20_u8 {
            let payload: Vec<u8> = (0..1400_u16)
                .map(|at| at.to_le_bytes()[0] ^ round)
                .collect();
            here.send(*vip, &payload);
            let from = SocketAddr::new(client.v4().into(), CLIENT);
            let question = there.receive();
            let expected = Datagram {
                from,
                checksum: 0,
                payload: payload.clone(),
            };
            assert_eq!(question, expected, "at {pod:?}");
            there.send(from, &payload);
            let expected = Datagram {
                from: *vip,
                ..expected
            };
            assert_eq!(here.receive(), expected, "from {pod:?}");
        }
    }
}
