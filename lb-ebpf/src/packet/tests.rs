// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Packets that are as they should be, cut off, or in contradiction with themselves.
//!
//! **Invariant:** headers are built by another library than the one under test.

use super::*;
use etherparse::PacketBuilder;
use proptest::prelude::*;

/// A packet in memory.
pub(crate) struct Slice<'a>(pub(crate) &'a [u8]);

impl Bytes for Slice<'_> {
    const WALKS: bool = true;

    fn read<T: Pod>(&self, offset: u32) -> Option<T> {
        let start = usize::try_from(offset).unwrap();
        self.0
            .get(start..start + size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
    }
}

fn parse_slice<F: Parse>(bytes: &[u8]) -> Option<Packet<F::Addr>> {
    let mut packet = Packet::new();
    parse::<F, _>(&Slice(bytes), &mut packet).map(|()| packet)
}

fn tcp_v4() -> Vec<u8> {
    let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let mut bytes = Vec::new();
    builder
        .tcp(40_000, 80, 1, 1000)
        .syn()
        .write(&mut bytes, b"data")
        .unwrap();
    bytes
}

fn udp_v6() -> Vec<u8> {
    let builder = PacketBuilder::ipv6([1; 16], [2; 16], 64);
    let mut bytes = Vec::new();
    builder.udp(40_000, 53).write(&mut bytes, b"data").unwrap();
    bytes
}

#[test]
fn headers_are_read_as_they_were_built() {
    let packet = parse_slice::<V4>(&tcp_v4()).unwrap();
    assert_eq!(
        (packet.source, packet.destination),
        ([10, 0, 0, 1], [10, 0, 0, 2])
    );
    assert_eq!((packet.source_port, packet.destination_port), (40_000, 80));
    assert_eq!((packet.proto, packet.tcp_flags), (proto::TCP, tcp::SYN));
    assert_eq!((packet.l4, packet.checksum_offset()), (20, 36));
    let packet = parse_slice::<V6>(&udp_v6()).unwrap();
    assert_eq!((packet.source, packet.destination), ([1; 16], [2; 16]));
    assert_eq!((packet.source_port, packet.destination_port), (40_000, 53));
    assert_eq!((packet.l4, packet.checksum_offset()), (40, 46));
}

#[test]
fn headers_that_are_cut_off_are_not_ours() {
    for length in 0..40 {
        assert_eq!(parse_slice::<V4>(&tcp_v4()[..length]), None, "{length}");
    }
    for length in 0..48 {
        assert_eq!(parse_slice::<V6>(&udp_v6()[..length]), None, "{length}");
    }
}

#[test]
fn headers_that_contradict_themselves_are_not_ours() {
    // (offset, value): version, header length, total length, data offset.
    for (offset, value) in [(0, 0x65), (0, 0x44), (3, 39), (32, 0x40)] {
        let mut bytes = tcp_v4();
        bytes[offset] = value;
        assert_eq!(parse_slice::<V4>(&bytes), None, "byte {offset} = {value}");
    }
    for (offset, value) in [(0, 0x40), (5, 7), (6, 44)] {
        let mut bytes = udp_v6();
        bytes[offset] = value;
        assert_eq!(parse_slice::<V6>(&bytes), None, "byte {offset} = {value}");
    }
}

#[test]
fn length_field_of_zero_is_for_tcp_only() {
    let mut bytes = tcp_v4();
    bytes[2..4].copy_from_slice(&[0, 0]);
    assert!(parse_slice::<V4>(&bytes).is_some());
    bytes[2..4].copy_from_slice(&[0, 20]);
    assert_eq!(parse_slice::<V4>(&bytes), None, "a header and nothing else");
    let mut bytes = udp_v6();
    bytes[4..6].copy_from_slice(&[0, 0]);
    assert_eq!(parse_slice::<V6>(&bytes), None);
}

#[test]
fn the_first_of_several_fragments_is_known_as_such() {
    let mut bytes = tcp_v4();
    bytes[6] = 0x20;
    assert!(parse_slice::<V4>(&bytes).unwrap().first_fragment);
}

proptest! {
    #[test]
    fn no_bytes_whatever_are_read_beyond_their_end(
        bytes in proptest::collection::vec(any::<u8>(), 0..120)
    ) {
        let v4 = parse_slice::<V4>(&bytes);
        let v6 = parse_slice::<V6>(&bytes);
        prop_assert!(v4.is_none() || v6.is_none());
        if let Some(packet) = v4.filter(|packet| !packet.later_fragment) {
            prop_assert!(packet.checksum_offset() as usize + 2 <= bytes.len());
        }
    }
}

#[test]
fn later_fragments_have_no_ports_and_are_read_only_where_asked_for() {
    let mut bytes = tcp_v4();
    bytes[4..8].copy_from_slice(&[1, 2, 0x20, 185]);
    let packet = parse_slice::<V4>(&bytes[..20]).unwrap();
    assert!(packet.later_fragment && !packet.first_fragment);
    assert_eq!(packet.fragment_id, u32::from(u16::from_ne_bytes([1, 2])));
    assert_eq!((packet.source_port, packet.destination_port), (0, 0));
}

#[test]
fn the_first_chunk_of_sctp_tells_what_flags_tell_of_tcp() {
    for (chunk, flags) in [
        (1, tcp::SYN),
        (2, tcp::SYN | tcp::ACK),
        (6, tcp::RST),
        (7, tcp::FIN),
        (8, tcp::FIN | tcp::ACK),
        (14, tcp::FIN),
        (0, tcp::ACK),
        (10, tcp::ACK),
    ] {
        let mut bytes = udp_v6();
        bytes[6] = proto::SCTP;
        bytes[4..6].copy_from_slice(&[0, 16]);
        bytes.truncate(40);
        bytes.extend([0, 1, 0, 2, 0, 0, 0, 0, 9, 9, 9, 9, chunk, 0, 0, 4]);
        let packet = parse_slice::<V6>(&bytes).unwrap();
        assert_eq!((packet.tcp_flags, packet.checksum_offset()), (flags, 48));
        assert_eq!(parse_slice::<V6>(&bytes[..55]), None);
    }
}
