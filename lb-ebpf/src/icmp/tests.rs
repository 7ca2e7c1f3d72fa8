// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Messages that quote packets, and others.

use etherparse::PacketBuilder;
use lb_common::{Family, V4, V6};
use proptest::prelude::*;

use super::{Icmp, Kind, Message, parse};
use crate::packet::Packet;
use crate::packet::tests::Slice;

type Parsed<F> = (Message<<F as Family>::Addr>, Packet<<F as Family>::Addr>);

fn parsed<F: Icmp>(bytes: &[u8]) -> Option<Parsed<F>> {
    let (mut message, mut quoted) = (Message::new(), Packet::new());
    parse::<F, _>(&Slice(bytes), &mut message, &mut quoted).map(|()| (message, quoted))
}

/// A segment of TCP from port 80 to port 40,000.
fn quoted_v4() -> Vec<u8> {
    let builder = PacketBuilder::ipv4([10, 0, 1, 175], [10, 244, 0, 9], 63);
    let mut bytes = Vec::new();
    builder
        .tcp(80, 40_000, 7, 1000)
        .write(&mut bytes, b"data")
        .unwrap();
    bytes
}

fn quoted_v6() -> Vec<u8> {
    let builder = PacketBuilder::ipv6([1; 16], [2; 16], 63);
    let mut bytes = Vec::new();
    builder.udp(53, 40_000).write(&mut bytes, b"data").unwrap();
    bytes
}

/// A message of this type from a router, its checksum being 0x1234.
fn message_v4(message_type: u8, rest: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4([192, 0, 2, 1], [10, 0, 1, 175], 64);
    let body = [&[message_type, 4, 0x12, 0x34, 0, 0, 5, 0xaa], rest].concat();
    let mut bytes = Vec::new();
    builder
        .write(&mut bytes, etherparse::IpNumber::ICMP, &body)
        .unwrap();
    bytes
}

fn message_v6(message_type: u8, rest: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv6([3; 16], [1; 16], 64);
    let body = [&[message_type, 0, 0x12, 0x34, 0, 0, 5, 0xaa], rest].concat();
    let mut bytes = Vec::new();
    builder
        .write(&mut bytes, etherparse::IpNumber::IPV6_ICMP, &body)
        .unwrap();
    bytes
}

#[test]
fn errors_are_read_together_with_the_packet_they_quote() {
    for message_type in [3, 11, 12] {
        let (message, quoted) = parsed::<V4>(&message_v4(message_type, &quoted_v4())).unwrap();
        assert_eq!(message.kind, Kind::Error);
        assert_eq!(
            (message.source, message.destination),
            ([192, 0, 2, 1], [10, 0, 1, 175])
        );
        assert_eq!(
            (message.start, message.quote, message.checksum),
            (20, 28, [0x12, 0x34])
        );
        assert_eq!(
            (quoted.source, quoted.destination),
            ([10, 0, 1, 175], [10, 244, 0, 9])
        );
        assert_eq!((quoted.source_port, quoted.destination_port), (80, 40_000));
        assert!(message.has_transport_checksum);
        assert_eq!(message.transport_checksum, quoted_v4()[36..38]);
    }
    for message_type in [1, 2, 3, 4] {
        let (message, quoted) = parsed::<V6>(&message_v6(message_type, &quoted_v6())).unwrap();
        assert_eq!(
            (message.kind, message.start, message.quote),
            (Kind::Error, 40, 48)
        );
        assert_eq!((message.source, message.destination), ([3; 16], [1; 16]));
        assert_eq!((quoted.source, quoted.destination), ([1; 16], [2; 16]));
        assert_eq!((quoted.source_port, quoted.destination_port), (53, 40_000));
        assert!(message.has_transport_checksum);
    }
}

#[test]
fn a_quote_may_end_behind_the_ports_and_the_checksum_is_then_not_there() {
    let quote = &quoted_v4()[..28];
    let (message, quoted) = parsed::<V4>(&message_v4(3, quote)).unwrap();
    assert_eq!((quoted.source_port, quoted.destination_port), (80, 40_000));
    assert!(!message.has_transport_checksum);
    // Padding of the frame is no part of the quote.
    let padded = [message_v4(3, quote), vec![0; 18]].concat();
    assert!(!parsed::<V4>(&padded).unwrap().0.has_transport_checksum);
    assert_eq!(parsed::<V4>(&message_v4(3, &quoted_v4()[..23])), None);
}

#[test]
fn a_quoted_datagram_without_checksum_has_none_to_change() {
    let mut quote = quoted_v6();
    quote[46..48].copy_from_slice(&[0, 0]);
    let (message, _) = parsed::<V6>(&message_v6(1, &quote)).unwrap();
    assert!(!message.has_transport_checksum);
}

#[test]
fn redirects_are_read_wherever_they_quote() {
    let (message, quoted) = parsed::<V4>(&message_v4(5, &quoted_v4())).unwrap();
    assert_eq!((message.kind, quoted.source_port), (Kind::Redirect, 80));
    let head = [[4; 16], [5; 16]].concat();
    let link = [2, 1, 2, 0, 0, 0, 0, 1];
    let option = [&[4, 7, 0, 0, 0, 0, 0, 0], quoted_v6().as_slice()].concat();
    for rest in [
        [head.as_slice(), &option].concat(),
        [head.as_slice(), &link, &option].concat(),
    ] {
        let (message, quoted) = parsed::<V6>(&message_v6(137, &rest)).unwrap();
        assert_eq!((message.kind, quoted.source_port), (Kind::Redirect, 53));
    }
    assert_eq!(parsed::<V6>(&message_v6(137, &head)), None, "no quote");
}

#[test]
fn other_messages_and_quotes_without_ports_are_not_ours() {
    for message_type in [0, 4, 8, 13, 200] {
        assert_eq!(parsed::<V4>(&message_v4(message_type, &quoted_v4())), None);
    }
    for message_type in [0, 5, 128, 129, 135, 136] {
        assert_eq!(parsed::<V6>(&message_v6(message_type, &quoted_v6())), None);
    }
    let mut echo = quoted_v4();
    echo[9] = 1;
    assert_eq!(parsed::<V4>(&message_v4(3, &echo)), None);
    let mut later_fragment = quoted_v4();
    later_fragment[7] = 1;
    assert_eq!(parsed::<V4>(&message_v4(3, &later_fragment)), None);
    assert_eq!(parsed::<V4>(&quoted_v4()), None, "no ICMP");
}

proptest! {
    #[test]
    fn a_message_cut_off_anywhere_is_read_within_its_bounds(
        length in 0_usize..100,
        message_type in any::<u8>(),
        noise in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        for bytes in [
            message_v4(message_type, &quoted_v4()),
            message_v4(message_type, &noise),
        ] {
            let bytes = &bytes[..length.min(bytes.len())];
            if let Some((message, quoted)) = parsed::<V4>(bytes) {
                let ports = (message.quote + quoted.l4 + 4) as usize;
                prop_assert!(ports <= bytes.len());
            }
        }
        for bytes in [
            message_v6(message_type, &quoted_v6()),
            message_v6(message_type, &noise),
        ] {
            let bytes = &bytes[..length.min(bytes.len())];
            if let Some((message, quoted)) = parsed::<V6>(bytes) {
                let ports = (message.quote + quoted.l4 + 4) as usize;
                prop_assert!(ports <= bytes.len());
            }
        }
    }
}
