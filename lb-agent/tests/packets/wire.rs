// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames, built from a description, every checksum computed from scratch.
//!
//! A translated packet is expected by changing the description and building it anew, so nothing
//! here knows how the packet path updates a checksum.
//! **Invariant:** two equal descriptions make equal bytes.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader,
};
use lb_common::abi::proto;

/// Link-layer addresses of all frames here: destination, source.
pub(crate) const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9]);
/// Length of an Ethernet header, in bytes.
pub(crate) const ETHERNET: usize = 14;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// A transport protocol that frontends have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proto {
    Tcp,
    Udp,
    Sctp,
}

impl Proto {
    /// Number of IANA.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => proto::TCP,
            Self::Udp => proto::UDP,
            Self::Sctp => proto::SCTP,
        }
    }
}

/// One packet of TCP, UDP or SCTP.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) proto: Proto,
    /// Flags of TCP.
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
    /// Options of IPv4, a multiple of four bytes.
    pub(crate) ip_options: Vec<u8>,
    /// UDP and SCTP: the field is zero.
    pub(crate) without_checksum: bool,
    /// IPv4 only: another fragment follows.
    pub(crate) more_fragments: bool,
    /// Link-layer destination and source; none for a device without link-layer headers.
    pub(crate) macs: Option<([u8; 6], [u8; 6])>,
}

impl Segment {
    pub(crate) fn new(proto: Proto, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            proto,
            flags: 0,
            payload: Vec::new(),
            ip_options: Vec::new(),
            without_checksum: false,
            more_fragments: false,
            macs: Some(MACS),
        }
    }

    pub(crate) fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The same packet to another destination.
    pub(crate) fn to(&self, destination: SocketAddr) -> Self {
        Self {
            destination,
            ..self.clone()
        }
    }

    /// The same packet from another source.
    pub(crate) fn from(&self, source: SocketAddr) -> Self {
        Self {
            source,
            ..self.clone()
        }
    }

    /// The bytes on the wire.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let transport = self.transport();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = transport.len().try_into().unwrap();
                let number = IpNumber(self.proto.number());
                let (source, destination) = (source.octets(), destination.octets());
                let mut ip = Ipv4Header::new(length, 64, number, source, destination).unwrap();
                ip.options = self.ip_options.as_slice().try_into().unwrap();
                ip.set_payload_len(transport.len()).unwrap();
                ip.identification = 0x1234;
                ip.dont_fragment = !self.more_fragments;
                ip.more_fragments = self.more_fragments;
                ip.header_checksum = ip.calc_header_checksum();
                framed(self.macs, EtherType::IPV4, &[&ip.to_bytes(), &transport])
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = Ipv6Header {
                    flow_label: 0x1_2345.try_into().unwrap(),
                    payload_length: transport.len().try_into().unwrap(),
                    next_header: IpNumber(self.proto.number()),
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                framed(self.macs, EtherType::IPV6, &[&ip.to_bytes(), &transport])
            }
            mixed => panic!("two families in one packet: {mixed:?}"),
        }
    }

    /// Transport header and payload.
    fn transport(&self) -> Vec<u8> {
        match self.proto {
            Proto::Tcp => self.tcp(),
            Proto::Udp => self.udp(),
            Proto::Sctp => self.sctp(),
        }
    }

    fn tcp(&self) -> Vec<u8> {
        let (from, to) = (self.source.port(), self.destination.port());
        let mut header = TcpHeader::new(from, to, 0x0102_0304, 29_200);
        header.fin = self.flags & FIN != 0;
        header.syn = self.flags & SYN != 0;
        header.rst = self.flags & RST != 0;
        header.psh = self.flags & PSH != 0;
        header.ack = self.flags & ACK != 0;
        if header.ack {
            header.acknowledgment_number = 0x0506_0708;
        }
        if header.syn {
            header
                .set_options_raw(&[2, 4, 5, 0xb4, 4, 2, 0, 0])
                .unwrap();
        }
        header.checksum = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                header.calc_checksum_ipv4_raw(a.octets(), b.octets(), &self.payload)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                header.calc_checksum_ipv6_raw(a.octets(), b.octets(), &self.payload)
            }
            mixed => panic!("two families in one packet: {mixed:?}"),
        }
        .unwrap();
        [&header.to_bytes(), self.payload.as_slice()].concat()
    }

    fn udp(&self) -> Vec<u8> {
        let (from, to) = (self.source.port(), self.destination.port());
        let length = UdpHeader::LEN + self.payload.len();
        let mut header = UdpHeader {
            source_port: from,
            destination_port: to,
            length: length.try_into().unwrap(),
            checksum: 0,
        };
        if !self.without_checksum {
            header.checksum = match (self.source.ip(), self.destination.ip()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), &self.payload)
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), &self.payload)
                }
                mixed => panic!("two families in one packet: {mixed:?}"),
            }
            .unwrap();
        }
        [&header.to_bytes(), self.payload.as_slice()].concat()
    }

    /// A header and one chunk, whose type says what the flags would say of TCP.
    fn sctp(&self) -> Vec<u8> {
        let chunk = match self.flags {
            flags if flags & RST != 0 => 6,
            flags if flags & (SYN | ACK) == SYN | ACK => 2,
            flags if flags & SYN != 0 => 1,
            flags if flags & FIN != 0 => 7,
            _ => 0,
        };
        let [l0, l1] = u16::try_from(4 + self.payload.len()).unwrap().to_be_bytes();
        let ports = [
            self.source.port().to_be_bytes(),
            self.destination.port().to_be_bytes(),
        ];
        let mut packet = [
            &ports.concat()[..],
            &[1, 2, 3, 4, 0, 0, 0, 0, chunk, 3, l0, l1],
        ]
        .concat();
        packet.extend(&self.payload);
        if !self.without_checksum {
            let sum = crc32c(&packet).to_le_bytes();
            packet[8..12].copy_from_slice(&sum);
        }
        packet
    }

    /// Where the network header starts.
    pub(crate) fn network(&self) -> usize {
        if self.macs.is_some() { ETHERNET } else { 0 }
    }

    /// Where the transport header starts.
    pub(crate) fn transport_at(&self) -> usize {
        let network = if self.source.is_ipv4() {
            Ipv4Header::MIN_LEN + self.ip_options.len()
        } else {
            Ipv6Header::LEN
        };
        self.network() + network
    }

    /// The transport checksum in a frame of this shape.
    pub(crate) fn checksum(&self, frame: &[u8]) -> u16 {
        let at = self.transport_at()
            + match self.proto {
                Proto::Tcp => 16,
                Proto::Udp => 6,
                Proto::Sctp => 8,
            };
        u16::from_be_bytes([frame[at], frame[at + 1]])
    }

    /// The source port in a frame of this shape.
    pub(crate) fn source_port(&self, frame: &[u8]) -> u16 {
        let at = self.transport_at();
        u16::from_be_bytes([frame[at], frame[at + 1]])
    }
}

/// A frame of any kind: the parts behind a link-layer header, if there is one.
pub(crate) fn framed(
    macs: Option<([u8; 6], [u8; 6])>,
    ether_type: EtherType,
    parts: &[&[u8]],
) -> Vec<u8> {
    let link = macs.map_or_else(Vec::new, |(destination, source)| {
        Ethernet2Header {
            source,
            destination,
            ether_type,
        }
        .to_bytes()
        .to_vec()
    });
    [link, parts.concat()].concat()
}

/// The Internet checksum over the parts, each of an even length but the last (RFC 1071).
pub(crate) fn internet_checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// `CRC32c`, bit by bit (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let carry = if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            crc = (crc >> 1) ^ carry;
        }
    }
    !crc
}

/// Cuts a frame of IP into fragments of at most `size` bytes of payload, a multiple of eight.
pub(crate) fn fragments(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let (link, packet) = frame.split_at(ETHERNET);
    let is_v4 = packet[0] >> 4 == 4;
    let header = if is_v4 {
        usize::from(packet[0] & 15) * 4
    } else {
        40
    };
    let (header, payload) = packet.split_at(header);
    let count = payload.len().div_ceil(size);
    let cut = |(index, part): (usize, &[u8])| {
        let offset = u16::try_from(index * size).unwrap();
        let more = index + 1 < count;
        let mut header = header.to_vec();
        if is_v4 {
            let length = u16::try_from(header.len() + part.len()).unwrap();
            header[2..4].copy_from_slice(&length.to_be_bytes());
            let field = (offset / 8) | if more { 0x2000 } else { 0 };
            header[6..8].copy_from_slice(&field.to_be_bytes());
            header[10..12].copy_from_slice(&[0, 0]);
            let sum = internet_checksum(&[&header]);
            header[10..12].copy_from_slice(&sum);
        } else {
            let length = u16::try_from(8 + part.len()).unwrap();
            header[4..6].copy_from_slice(&length.to_be_bytes());
            let [o0, o1] = (offset | u16::from(more)).to_be_bytes();
            let next = std::mem::replace(&mut header[6], 44);
            header.extend([next, 0, o0, o1, 0x11, 0x22, 0x33, 0x44]);
        }
        [link, &header, part].concat()
    };
    payload.chunks(size).enumerate().map(cut).collect()
}

/// Puts well-formed extension headers between the network header and the rest of an IPv6 frame.
pub(crate) fn with_extensions(frame: &[u8], extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let (head, rest) = frame.split_at(ETHERNET + 40);
    let mut head = head.to_vec();
    let mut next_at = ETHERNET + 6;
    let last = head[next_at];
    for &(number, body) in extensions {
        head[next_at] = number;
        next_at = head.len();
        head.push(last);
        head.extend(body);
    }
    let length = u16::try_from(head.len() - ETHERNET - 40 + rest.len()).unwrap();
    head[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
    [&head, rest].concat()
}
