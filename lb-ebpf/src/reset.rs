// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The other answer to a refused SYN: a reset (RFC 9293, 3.10.7.1).
//!
//! Written over the SYN's own headers as they lie in memory, in words; options of IPv4 and extension
//! headers of IPv6 stay what they are.
//! **Invariant:** the reset acknowledges the SYN, so its sender takes it for the answer.

use lb_common::{Address as _, Family};

use crate::checksum;
use crate::packet::{Packet, tcp};

/// Header length of five words, and the flags of a reset.
const OFFSET_FLAGS: [u8; 2] = [5 << 4, tcp::RST | tcp::ACK];
/// Protocol number of TCP.
const TCP: u8 = 6;
/// Bytes of the segment.
const LENGTH: u32 = 20;

/// Writes the headers of the reset over those of the SYN in `packet`: `network` are its network
/// headers, `transport` the first five words of its transport header. With `pending` the device is
/// to finish the checksum, which then holds the sum of the pseudo header alone.
#[inline(always)]
pub fn write_headers<F: Family>(
    packet: &Packet<F::Addr>,
    pending: bool,
    network: &mut [u32],
    transport: &mut [u32; 5],
) {
    let from = packet.destination.words();
    let to = packet.source.words();
    let mut pseudo = checksum::add(LENGTH.to_be(), u32::from(TCP).to_be());
    let first = if F::IS_V6 { 2 } else { 3 };
    let words = if F::IS_V6 { 4 } else { 1 };
    let mut index = 0;
    while index < words {
        pseudo = checksum::add(pseudo, from[index]);
        pseudo = checksum::add(pseudo, to[index]);
        network[first + index] = from[index];
        network[first + words + index] = to[index];
        index += 1;
    }
    if F::IS_V6 {
        let [_, _, next, hops] = network[1].to_ne_bytes();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "headers of at most 96 bytes"
        )]
        let length = (packet.l4 - 40 + LENGTH) as u16;
        let [l0, l1] = length.to_be_bytes();
        network[1] = u32::from_ne_bytes([l0, l1, next, hops]);
    } else {
        write_length(packet.l4 + LENGTH, network);
    }

    let [p0, p1] = packet.destination_port.to_be_bytes();
    let [p2, p3] = packet.source_port.to_be_bytes();
    transport[0] = u32::from_ne_bytes([p0, p1, p2, p3]);
    transport[2] = u32::from_be(transport[1]).wrapping_add(1).to_be();
    transport[1] = 0;
    let [o, f] = OFFSET_FLAGS;
    transport[3] = u32::from_ne_bytes([o, f, 0, 0]);
    transport[4] = 0;
    let [c0, c1] = if pending {
        let [c0, c1] = checksum::finish(pseudo);
        [!c0, !c1]
    } else {
        checksum::finish(checksum::add(pseudo, checksum::sum(transport)))
    };
    transport[4] = u32::from_ne_bytes([c0, c1, 0, 0]);
}

/// Writes the total length of IPv4 and what it changes of the header's checksum; the addresses
/// that have changed places do not.
#[inline(always)]
fn write_length(length: u32, network: &mut [u32]) {
    let before = network[0];
    let [version, service, _, _] = before.to_ne_bytes();
    let [_, _, l0, l1] = length.to_be_bytes();
    network[0] = u32::from_ne_bytes([version, service, l0, l1]);
    let [ttl, number, c0, c1] = network[2].to_ne_bytes();
    let difference = checksum::difference(&[before, 0, 0, 0], &[network[0], 0, 0, 0], 1);
    let [c0, c1] = checksum::update([c0, c1], difference);
    network[2] = u32::from_ne_bytes([ttl, number, c0, c1]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use lb_common::{V4, V6};

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes
            .chunks(4)
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect()
    }

    /// The reset as it is on the wire.
    fn reset<F: Family>(packet: &Packet<F::Addr>, syn: &[u8], pending: bool) -> Vec<u8> {
        let l4 = packet.l4 as usize;
        let mut network = words(&syn[..l4]);
        let mut transport = words(&syn[l4..l4 + 20]).try_into().unwrap();
        write_headers::<F>(packet, pending, &mut network, &mut transport);
        network
            .iter()
            .chain(&transport)
            .flat_map(|word| word.to_ne_bytes())
            .collect()
    }

    fn check(bytes: &[u8]) {
        let sliced = SlicedPacket::from_ip(bytes).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("no TCP");
        };
        assert!(tcp.rst() && tcp.ack() && !tcp.syn());
        assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 40_000));
        assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (0, 0));
        assert_eq!((tcp.data_offset(), tcp.payload()), (5, &[][..]));
        let expected = match sliced.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                assert_eq!(header.source, [10, 0, 1, 175]);
                tcp.calc_checksum_ipv4(header.source, header.destination)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.source, [2; 16]);
                tcp.calc_checksum_ipv6(header.source, header.destination)
            }
            NetSlice::Arp(_) => unreachable!("it is IP"),
        };
        assert_eq!(tcp.checksum(), expected.unwrap());
    }

    #[test]
    fn a_reset_of_ipv4_acknowledges_the_syn_with_right_checksums() {
        let builder = PacketBuilder::ipv4([10, 244, 0, 9], [10, 0, 1, 175], 64);
        let mut syn = Vec::new();
        // A sequence number whose successor wraps.
        let tcp = builder.tcp(40_000, 80, u32::MAX, 64_240).syn();
        let options = [etherparse::TcpOptionElement::MaximumSegmentSize(1460)];
        tcp.options(&options).unwrap().write(&mut syn, &[]).unwrap();
        let packet = Packet {
            source: [10, 244, 0, 9],
            destination: [10, 0, 1, 175],
            source_port: 40_000,
            destination_port: 80,
            proto: TCP,
            l4: 20,
            ..Packet::new()
        };
        check(&reset::<V4>(&packet, &syn, false));
    }

    #[test]
    fn a_reset_of_ipv6_acknowledges_the_syn_with_right_checksums() {
        let builder = PacketBuilder::ipv6([1; 16], [2; 16], 64);
        let mut syn = Vec::new();
        let tcp = builder.tcp(40_000, 80, u32::MAX, 64_240).syn();
        tcp.write(&mut syn, &[]).unwrap();
        let packet = Packet {
            source: [1; 16],
            destination: [2; 16],
            source_port: 40_000,
            destination_port: 80,
            proto: TCP,
            l4: 40,
            ..Packet::new()
        };
        check(&reset::<V6>(&packet, &syn, false));
        // What is left to the device: the complement of the rest of the sum.
        let pending = reset::<V6>(&packet, &syn, true);
        let field = u16::from_be_bytes([pending[56], pending[57]]);
        let finished = reset::<V6>(&packet, &syn, false);
        let rest: u32 = finished[40..]
            .chunks(2)
            .enumerate()
            .filter(|(at, _)| *at != 8)
            .map(|(_, pair)| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let sum = u32::from(field) + rest;
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        let checksum = u16::from_be_bytes([finished[56], finished[57]]);
        assert_eq!(!u16::try_from(folded).unwrap(), checksum);
    }
}
