// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames as they come from the wire, and what the driver restores of them.
//!
//! **Invariant:** every checksum is right, so that a translated packet could be sent.

use std::net::{IpAddr, SocketAddr};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

use super::layout::{Headers4, Headers6};

/// Bytes behind the transport header; with IPv4 and TCP that makes the smallest frame of Ethernet.
const PAYLOAD: [u8; 10] = [0; 10];
const CLIENT_LINK: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_LINK: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Transport protocols that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proto {
    Tcp,
    Udp,
}

impl Proto {
    pub(crate) const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// What a packet does in its connection; a datagram only ever is `Data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Syn,
    SynAck,
    Data,
}

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

impl Ends {
    /// Those of the packet that answers.
    pub(crate) fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
        }
    }
}

/// A frame of 64 bytes and a little more.
pub(crate) fn frame(proto: Proto, kind: Kind, ends: Ends) -> Vec<u8> {
    let Ends {
        source,
        destination,
    } = ends;
    let link = PacketBuilder::ethernet2(CLIENT_LINK, HOST_LINK);
    let network = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("one packet has one family"),
    };
    let (from, to) = (source.port(), destination.port());
    let mut bytes = Vec::with_capacity(128);
    match proto {
        Proto::Tcp => {
            let step = network.tcp(from, to, 1000, 64_240);
            let step = match kind {
                Kind::Syn => step.syn(),
                Kind::SynAck => step.syn().ack(1),
                Kind::Data => step.ack(1),
            };
            step.write(&mut bytes, &PAYLOAD)
        }
        Proto::Udp => network.udp(from, to).write(&mut bytes, &PAYLOAD),
    }
    .expect("a Vec takes everything");
    bytes
}

/// A frame that is not of IP.
pub(crate) fn arp() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(&[0xff; 6]);
    bytes[6..12].copy_from_slice(&CLIENT_LINK);
    bytes[12..14].copy_from_slice(&[0x08, 0x06]);
    bytes
}

/// A ping: IP, but neither TCP nor UDP.
pub(crate) fn ping(ends: Ends) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(CLIENT_LINK, HOST_LINK);
    let mut bytes = Vec::with_capacity(128);
    match (ends.source.ip(), ends.destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link
            .ipv4(from.octets(), to.octets(), 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut bytes, &PAYLOAD),
        (IpAddr::V6(from), IpAddr::V6(to)) => link
            .ipv6(from.octets(), to.octets(), 64)
            .icmpv6_echo_request(1, 1)
            .write(&mut bytes, &PAYLOAD),
        _ => unreachable!("one packet has one family"),
    }
    .expect("a Vec takes everything");
    bytes
}

/// Source and destination of a frame of TCP or UDP.
pub(crate) fn ends_of(frame: &[u8]) -> Ends {
    let sliced = SlicedPacket::from_ethernet(frame).expect("the frame is whole");
    let (from, to) = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        other => unreachable!("neither TCP nor UDP: {other:?}"),
    };
    let (source, destination): (IpAddr, IpAddr) = if is_v4(frame) {
        (word4(frame, 26).into(), word4(frame, 30).into())
    } else {
        (word16(frame, 22).into(), word16(frame, 38).into())
    };
    Ends {
        source: (source, from).into(),
        destination: (destination, to).into(),
    }
}

pub(crate) fn is_v4(frame: &[u8]) -> bool {
    frame[12..14] == [0x08, 0x00]
}

/// The link-layer destination, as the driver writes it.
pub(crate) fn link_of(frame: &[u8]) -> [u32; 2] {
    let [a, b] = [frame[4], frame[5]];
    [native(frame, 0), u16::from_ne_bytes([a, b]).into()]
}

/// What the driver restores of a frame of IPv4.
pub(crate) fn headers4(frame: &[u8]) -> Headers4 {
    let sum_at = 34 + if frame[23] == 17 { 6 } else { 16 };
    Headers4 {
        source: native(frame, 26),
        destination: native(frame, 30),
        ports: native(frame, 34),
        header_sum: half(frame, 24),
        sum: half(frame, sum_at),
    }
}

/// What the driver restores of a frame of IPv6.
pub(crate) fn headers6(frame: &[u8]) -> Headers6 {
    let sum_at = 54 + if frame[20] == 17 { 6 } else { 16 };
    Headers6 {
        source: std::array::from_fn(|word| native(frame, 22 + 4 * word)),
        destination: std::array::from_fn(|word| native(frame, 38 + 4 * word)),
        ports: native(frame, 54),
        sum: half(frame, sum_at),
        pad: 0,
    }
}

fn word4(frame: &[u8], at: usize) -> [u8; 4] {
    frame[at..at + 4].try_into().expect("four bytes")
}

fn word16(frame: &[u8], at: usize) -> [u8; 16] {
    frame[at..at + 16].try_into().expect("sixteen bytes")
}

fn native(frame: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(word4(frame, at))
}

fn half(frame: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([frame[at], frame[at + 1]])
}
