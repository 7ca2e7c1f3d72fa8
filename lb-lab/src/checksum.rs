// SPDX-License-Identifier: MIT OR Apache-2.0
//! Judges the checksums of one recorded packet.
//!
//! **Invariant:** what cannot be judged (it does not parse, it was cut) counts as wrong.
//! Read next: `capture`, which asks.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use crate::pcap::Frame;

fn addresses(packet: &SlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            Some((
                header.source_addr().into(),
                header.destination_addr().into(),
            ))
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            Some((
                header.source_addr().into(),
                header.destination_addr().into(),
            ))
        }
        NetSlice::Arp(_) => None,
    }
}

/// Source and destination, with ports where there are any.
pub(crate) fn ends(packet: &SlicedPacket<'_>) -> Option<(IpAddr, u16, IpAddr, u16)> {
    let (from, to) = addresses(packet)?;
    let (from_port, to_port) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_))
        | None => (0, 0),
    };
    Some((from, from_port, to, to_port))
}

/// A line about the first wrong checksum of a packet.
pub(crate) fn bad_checksum(
    frame: &Frame,
    packet: Result<SlicedPacket<'_>, String>,
) -> Option<String> {
    let wrong = match packet {
        Ok(_) if frame.cut => "the frame was cut: it is longer than an MTU".to_owned(),
        Ok(packet) => {
            let (from, from_port, to, to_port) = ends(&packet)?;
            let (what, has, should) = wrong_checksum(&packet)?;
            format!("{from}:{from_port} > {to}:{to_port}: {what} {has:#06x} not {should:#06x}")
        }
        Err(error) => error,
    };
    Some(format!("at {} us {wrong}", frame.micros))
}

/// Which checksum is wrong, what it is and what it should be.
fn wrong_checksum(packet: &SlicedPacket<'_>) -> Option<(&'static str, u16, u16)> {
    // The kernel writes a sum of zero as 0xffff, which a receiver cannot tell apart (RFC 1071).
    let same = |has: u16, should: u16| has == should || (has == 0xffff && should == 0);
    let differ = |what, has, should| (!same(has, should)).then_some((what, has, should));
    let transport = packet.transport.as_ref();
    match packet.net.as_ref()? {
        NetSlice::Ipv4(slice) => {
            let ip = slice.header().to_header();
            differ(
                "IPv4 checksum",
                ip.header_checksum,
                ip.calc_header_checksum(),
            )
            .or_else(|| {
                let (what, has, should) = match transport? {
                    TransportSlice::Tcp(tcp) => {
                        let header = tcp.to_header();
                        let should = header.calc_checksum_ipv4(&ip, tcp.payload());
                        ("TCP checksum", header.checksum, should.ok())
                    }
                    // Zero means that the sender computed none (RFC 768).
                    TransportSlice::Udp(udp) if udp.checksum() == 0 => return None,
                    TransportSlice::Udp(udp) => {
                        let should = udp.to_header().calc_checksum_ipv4(&ip, udp.payload());
                        ("UDP checksum", udp.checksum(), should.ok())
                    }
                    TransportSlice::Icmpv4(icmp) => {
                        let should = icmp.header().icmp_type.calc_checksum(icmp.payload());
                        ("ICMP checksum", icmp.checksum(), Some(should))
                    }
                    // Group membership is no traffic of ours.
                    TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => return None,
                };
                // What cannot be computed is shown as a mismatch.
                differ(what, has, should.unwrap_or(!has))
            })
        }
        NetSlice::Ipv6(slice) => {
            let ip = slice.header().to_header();
            let (what, has, should) = match transport? {
                TransportSlice::Tcp(tcp) => {
                    let header = tcp.to_header();
                    let should = header.calc_checksum_ipv6(&ip, tcp.payload());
                    ("TCP checksum", header.checksum, should.ok())
                }
                TransportSlice::Udp(udp) => {
                    let should = udp.to_header().calc_checksum_ipv6(&ip, udp.payload());
                    ("UDP checksum", udp.checksum(), should.ok())
                }
                TransportSlice::Icmpv6(icmp) => {
                    let kind = icmp.header().icmp_type;
                    let should = kind.calc_checksum(ip.source, ip.destination, icmp.payload());
                    ("ICMPv6 checksum", icmp.checksum(), should.ok())
                }
                TransportSlice::Icmpv4(_) | TransportSlice::Igmp(_) => return None,
            };
            differ(what, has, should.unwrap_or(!has))
        }
        NetSlice::Arp(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    /// A segment with a payload of one word; its checksum stands at 36 of 42 bytes.
    fn segment(word: u16) -> Vec<u8> {
        let builder = PacketBuilder::ipv4([10, 0, 1, 1], [10, 244, 0, 5], 64);
        let mut bytes = Vec::new();
        let segment = builder.tcp(80, 40_000, 1, 100);
        segment.write(&mut bytes, &word.to_be_bytes()).unwrap();
        bytes
    }

    fn verdict(bytes: &[u8]) -> Option<(&'static str, u16, u16)> {
        wrong_checksum(&SlicedPacket::from_ip(bytes).unwrap())
    }

    #[test]
    fn a_sum_of_zero_may_be_written_with_all_bits_set_and_nothing_else_may_be() {
        let empty = segment(0);
        // The complement of everything else makes the sum zero.
        let mut bytes = segment(u16::from_be_bytes([empty[36], empty[37]]));
        assert_eq!(bytes[36..38], [0, 0]);
        assert_eq!(verdict(&bytes), None);
        bytes[36..38].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(verdict(&bytes), None);
        bytes[36..38].copy_from_slice(&[0xff, 0xfe]);
        assert_eq!(verdict(&bytes), Some(("TCP checksum", 0xfffe, 0)));
        let mut bytes = empty;
        bytes[36..38].copy_from_slice(&[0xff, 0xff]);
        assert!(verdict(&bytes).is_some());
    }
}
