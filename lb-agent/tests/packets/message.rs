// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP messages that quote packets, every checksum computed from scratch.
//!
//! A translated message is expected by describing it with the translated packet, so nothing here
//! knows how the packet path updates a checksum. Read next: `icmp.rs`.

use std::net::IpAddr;

use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header};

use super::wire::{MACS, Segment, framed, internet_checksum};

/// One ICMP message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    kind: u8,
    source: IpAddr,
    destination: IpAddr,
    /// What lies between the checksum and the quote: four bytes, more in a redirect of IPv6.
    between: Vec<u8>,
    /// The quoted packet from its network header on.
    quote: Vec<u8>,
    /// Bytes of `quote` before the transport header.
    network: usize,
    /// Options of IPv4, a multiple of four bytes.
    pub(crate) ip_options: Vec<u8>,
    /// Link-layer destination and source; none for a device without link-layer headers.
    pub(crate) macs: Option<([u8; 6], [u8; 6])>,
}

impl Message {
    /// A message that quotes a packet whole.
    pub(crate) fn new(
        message_type: u8,
        source: IpAddr,
        destination: IpAddr,
        quoted: &Segment,
    ) -> Self {
        Self {
            kind: message_type,
            source,
            destination,
            between: vec![0, 0, 0x05, 0xaa],
            quote: quoted.frame()[quoted.network()..].to_vec(),
            network: quoted.transport_at() - quoted.network(),
            ip_options: Vec::new(),
            macs: Some(MACS),
        }
    }

    /// The same, quoting so many bytes of the transport header and what is behind it.
    pub(crate) fn quoting(mut self, transport: usize) -> Self {
        self.quote.truncate(self.network + transport);
        self
    }

    /// The bytes on the wire.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut message = vec![self.kind, 4, 0, 0];
        message.extend(&self.between);
        message.extend(&self.quote);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let sum = internet_checksum(&[&message]);
                message[2..4].copy_from_slice(&sum);
                let (from, to) = (source.octets(), destination.octets());
                let mut ip = Ipv4Header::new(0, 64, IpNumber::ICMP, from, to).unwrap();
                ip.options = self.ip_options.as_slice().try_into().unwrap();
                ip.set_payload_len(message.len()).unwrap();
                ip.header_checksum = ip.calc_header_checksum();
                framed(self.macs, EtherType::IPV4, &[&ip.to_bytes(), &message])
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = Ipv6Header {
                    payload_length: message.len().try_into().unwrap(),
                    next_header: IpNumber::IPV6_ICMP,
                    hop_limit: 255,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                let length = u32::from(ip.payload_length).to_be_bytes();
                let pseudo = [&ip.source[..], &ip.destination, &length, &[0, 0, 0, 58]].concat();
                let sum = internet_checksum(&[&pseudo, &message]);
                message[2..4].copy_from_slice(&sum);
                framed(self.macs, EtherType::IPV6, &[&ip.to_bytes(), &message])
            }
            mixed => panic!("two families in one message: {mixed:?}"),
        }
    }
}

/// A redirect that quotes a packet; with IPv6, behind the target's link-layer address if so wished.
pub(crate) fn redirect(
    source: IpAddr,
    destination: IpAddr,
    quoted: &Segment,
    target_address: bool,
) -> Message {
    let mut message = Message::new(5, source, destination, quoted);
    match quoted.destination.ip() {
        IpAddr::V4(gateway) => message.between = gateway.octets().to_vec(),
        IpAddr::V6(target) => {
            message.kind = 137;
            let units = (8 + message.quote.len()).div_ceil(8).try_into().unwrap();
            let mut between = [&[0; 4][..], &target.octets(), &target.octets()].concat();
            if target_address {
                between.extend([2, 1, 2, 0, 0, 0, 0, 5]);
            }
            between.extend([4, units, 0, 0, 0, 0, 0, 0]);
            message.between = between;
        }
    }
    message
}
