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
    // (offset, value): version, header length, later fragment, total length, data offset.
    for (offset, value) in [(0, 0x65), (0, 0x44), (7, 1), (3, 39), (32, 0x40)] {
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
        if let Some(packet) = v4 {
            prop_assert!(packet.checksum_offset() as usize + 2 <= bytes.len());
        }
    }
}
