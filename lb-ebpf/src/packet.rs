// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What the packet path needs to know of a packet, read from its headers.
//!
//! Reading goes through [`Bytes`], so the same code runs on a socket buffer and on a slice.
//! **Invariant:** nothing beyond a checked bound is read; what cannot be read is "not ours".
//! Extension headers and later fragments are read only where [`Bytes::WALKS`] says so, because no
//! other packet shall pay for them.

use bytemuck::{Pod, Zeroable};
use lb_common::abi::proto;
use lb_common::{Address, Family, V4, V6};

use crate::extension;

/// Bytes of a packet from its network header on.
pub trait Bytes {
    /// Whether packets are read that few are like: behind extension headers, and later fragments.
    const WALKS: bool = false;

    /// The value that lies `offset` bytes behind the start of the network header, or none when
    /// the packet is shorter.
    fn read<T: Pod>(&self, offset: u32) -> Option<T>;
}

/// Header of IPv4 without options; multi-byte fields as on the wire, addresses as words.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4))]
struct Ipv4Header {
    version_length: u8,
    traffic_class: u8,
    total_length: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    hop_limit: u8,
    proto: u8,
    checksum: [u8; 2],
    source: u32,
    destination: u32,
}

/// Header of IPv6; multi-byte fields as on the wire, addresses as words.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4))]
struct Ipv6Header {
    version_flow: [u8; 4],
    payload_length: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// The first eight bytes of TCP and UDP alike.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4))]
struct Ports {
    source: [u8; 2],
    destination: [u8; 2],
}

/// Bytes 8 to 15 of a packet of SCTP: checksum, and the first chunk (RFC 9260, 3.1 and 3.2).
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4))]
struct SctpControl {
    checksum: [u8; 4],
    chunk: u8,
    chunk_flags: u8,
    chunk_length: [u8; 2],
}

/// Bytes 12 to 15 of a TCP header.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4))]
struct TcpControl {
    data_offset: u8,
    flags: u8,
    window: [u8; 2],
}

/// Bits of the flags byte of TCP (RFC 9293).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Ends a connection at once.
    pub const RST: u8 = 4;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 16;
}

/// Offsets of checksums within their headers, in bytes.
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;
/// Length of a TCP header without options, in bytes.
const TCP_HEADER: u32 = 20;
const SCTP_CHECKSUM: u32 = 8;
/// Length of a UDP header, in bytes.
const UDP_HEADER: u32 = 8;
/// Length of an SCTP header and the beginning of its first chunk, in bytes.
const SCTP_HEADER: u32 = 16;

/// What the first chunk of a packet of SCTP does to its association, in the flags of TCP.
#[inline(always)]
const fn sctp_flags(chunk: u8) -> u8 {
    match chunk {
        // INIT, INIT ACK.
        1 => tcp::SYN,
        2 => tcp::SYN | tcp::ACK,
        // ABORT.
        6 => tcp::RST,
        // SHUTDOWN, SHUTDOWN COMPLETE; SHUTDOWN ACK.
        7 | 14 => tcp::FIN,
        8 => tcp::FIN | tcp::ACK,
        _ => tcp::ACK,
    }
}

/// What is known of a packet of TCP, UDP or SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packet<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// Protocol number.
    pub proto: u8,
    /// Flags of TCP, see [`tcp`]; 0 for UDP, for SCTP what its first chunk would be in TCP.
    pub tcp_flags: u8,
    /// IPv4 header checksum as on the wire.
    pub header_checksum: [u8; 2],
    /// Start of the transport header, in bytes from the start of the network header.
    pub l4: u32,
    /// True for the first of several fragments: the ports are here, the rest of the datagram is
    /// not.
    pub first_fragment: bool,
    /// True for a later one, which has no ports.
    pub later_fragment: bool,
    /// Identification of the datagram as on the wire, of a fragment.
    pub fragment_id: u32,
    /// Bytes from the start of the network header to the end of the packet, as the header says.
    pub length: u32,
}

impl<A: Address> Packet<A> {
    /// A packet of which nothing is known.
    pub(crate) fn new() -> Self {
        Self {
            source: A::ZERO,
            destination: A::ZERO,
            source_port: 0,
            destination_port: 0,
            proto: 0,
            tcp_flags: 0,
            header_checksum: [0; 2],
            l4: 0,
            first_fragment: false,
            later_fragment: false,
            fragment_id: 0,
            length: 0,
        }
    }
}

impl<A> Packet<A> {
    /// Where the transport checksum lies, in bytes from the start of the network header.
    #[inline(always)]
    pub fn checksum_offset(&self) -> u32 {
        self.l4
            + match self.proto {
                proto::TCP => TCP_CHECKSUM,
                proto::SCTP => SCTP_CHECKSUM,
                _ => UDP_CHECKSUM,
            }
    }
}

/// What the network header says, whichever the family.
pub struct Network {
    /// Addresses as words in memory order: bytes would be copied one by one.
    pub(crate) source: [u32; 4],
    pub(crate) destination: [u32; 4],
    pub(crate) proto: u8,
    pub(crate) checksum: [u8; 2],
    pub(crate) l4: u32,
    /// Bytes from the start of the network header to the end of the packet, or [`OVERSIZED`].
    pub(crate) length: u32,
    first_fragment: bool,
    pub(crate) later_fragment: bool,
    fragment_id: u32,
}

/// The part of parsing that differs between the families.
pub trait Parse: Family {
    /// Reads the network header; none when there is nothing that could be ours behind it.
    fn network<B: Bytes>(bytes: &B) -> Option<Network>;
}

impl Parse for V4 {
    #[inline(always)]
    fn network<B: Bytes>(bytes: &B) -> Option<Network> {
        const OFFSET_MASK: u16 = 0x1fff;
        const MORE: u16 = 0x2000;
        let header: Ipv4Header = bytes.read(0)?;
        let l4 = u32::from(header.version_length & 0x0f) * 4;
        let fragment = u16::from_be_bytes(header.fragment);
        let later_fragment = fragment & OFFSET_MASK != 0;
        if header.version_length >> 4 != 4 || l4 < 20 || (later_fragment && !B::WALKS) {
            return None;
        }
        Some(Network {
            source: [header.source, 0, 0, 0],
            destination: [header.destination, 0, 0, 0],
            proto: header.proto,
            checksum: header.checksum,
            l4,
            length: length(header.total_length, 0),
            first_fragment: fragment & (MORE | OFFSET_MASK) == MORE,
            later_fragment,
            fragment_id: u32::from(u16::from_ne_bytes(header.id)),
        })
    }
}

impl Parse for V6 {
    #[inline(always)]
    fn network<B: Bytes>(bytes: &B) -> Option<Network> {
        const LENGTH: u32 = 40;
        let header: Ipv6Header = bytes.read(0)?;
        if header.version_flow[0] >> 4 != 6 {
            return None;
        }
        let mut network = Network {
            source: header.source,
            destination: header.destination,
            proto: header.next_header,
            checksum: [0; 2],
            l4: LENGTH,
            length: length(header.payload_length, LENGTH),
            first_fragment: false,
            later_fragment: false,
            fragment_id: 0,
        };
        if B::WALKS && extension::is_extension(header.next_header) {
            let walked = extension::walk(bytes, header.next_header, LENGTH)?;
            network.proto = walked.proto;
            network.l4 = walked.l4;
            network.first_fragment = walked.first_fragment;
            network.later_fragment = walked.later_fragment;
            network.fragment_id = walked.id;
        }
        Some(network)
    }
}

/// Reads the headers of a packet of TCP, UDP or SCTP; none when it is of none, malformed or
/// truncated, all of which are left to the stack.
#[inline(always)]
pub fn parse<F: Parse, B: Bytes>(bytes: &B, packet: &mut Packet<F::Addr>) -> Option<()> {
    let network = F::network(bytes)?;
    let header = match network.proto {
        proto::TCP => TCP_HEADER,
        proto::UDP => UDP_HEADER,
        proto::SCTP => SCTP_HEADER,
        _ => return None,
    };
    packet.source = F::Addr::from_words(network.source);
    packet.destination = F::Addr::from_words(network.destination);
    packet.proto = network.proto;
    packet.header_checksum = network.checksum;
    packet.l4 = network.l4;
    packet.length = network.length;
    packet.first_fragment = network.first_fragment;
    packet.later_fragment = network.later_fragment;
    packet.fragment_id = network.fragment_id;
    if network.later_fragment {
        return Some(());
    }
    if network.length < network.l4 + header {
        return None;
    }
    if network.length == OVERSIZED && network.proto != proto::TCP {
        return None;
    }
    let ports: Ports = bytes.read(network.l4)?;
    let mut flags = 0;
    if network.proto == proto::TCP {
        let control: TcpControl = bytes.read(network.l4 + 12)?;
        if u32::from(control.data_offset >> 4) * 4 < TCP_HEADER {
            return None;
        }
        // The checksum that will be changed lies behind the control bytes.
        bytes.read::<[u8; 4]>(network.l4 + TCP_CHECKSUM)?;
        flags = control.flags;
    } else if network.proto == proto::SCTP {
        let control: SctpControl = bytes.read(network.l4 + SCTP_CHECKSUM)?;
        flags = sctp_flags(control.chunk);
    } else {
        bytes.read::<[u8; 4]>(network.l4 + 4)?;
    }
    packet.source_port = u16::from_be_bytes(ports.source);
    packet.destination_port = u16::from_be_bytes(ports.destination);
    packet.tcp_flags = flags;
    Some(())
}

/// Stands for a length field of zero: a segmentation-offloaded packet of TCP that is too long for
/// the field (BIG TCP). In any other packet a zero is a length that contradicts the header.
const OVERSIZED: u32 = u32::MAX;

/// The length that a field says, which does not count the first `before` bytes.
#[inline(always)]
const fn length(field: [u8; 2], before: u32) -> u32 {
    match u16::from_be_bytes(field) {
        0 => OVERSIZED,
        field => before + field as u32,
    }
}

#[cfg(test)]
pub(crate) mod tests;
