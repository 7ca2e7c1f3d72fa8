// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What of a packet decides where its flow goes, for algorithms that choose by hash.
//!
//! **Invariant:** nothing but headers goes in, so every node that sees the packet as the client sent
//! it comes to the same hash.

use lb_common::Address;
use lb_common::hash::{START, finish, mix, mix_address};

use crate::packet::Packet;

/// The hash of the client's address alone.
#[inline(always)]
pub(super) fn client<A: Address>(packet: &Packet<A>) -> u64 {
    finish(mix_address(START, packet.source))
}

/// The hash of the whole tuple.
#[inline(always)]
pub(super) fn flow<A: Address>(packet: &Packet<A>) -> u64 {
    let state = mix_address(mix_address(START, packet.source), packet.destination);
    let ports = u32::from(packet.source_port) << 16 | u32::from(packet.destination_port);
    finish(mix(mix(state, ports), packet.proto.into()))
}

#[cfg(test)]
mod tests {
    use lb_common::abi::proto::{TCP, UDP};

    use super::*;

    fn packet() -> Packet<[u8; 4]> {
        Packet {
            source: [10, 244, 1, 2],
            destination: [10, 0, 0, 10],
            source_port: 40_000,
            destination_port: 80,
            proto: TCP,
            ..Packet::new()
        }
    }

    #[test]
    fn each_field_of_the_tuple_counts_for_the_flow_and_the_source_for_the_client() {
        let changes: [fn(&mut Packet<[u8; 4]>); 5] = [
            |p| p.source[3] = 3,
            |p| p.destination[3] = 11,
            |p| p.source_port = 40_001,
            |p| p.destination_port = 81,
            |p| p.proto = UDP,
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut other = packet();
            change(&mut other);
            assert_ne!(flow(&other), flow(&packet()), "field {at}");
            assert_eq!(client(&other) != client(&packet()), at == 0, "field {at}");
        }
    }

    #[test]
    fn what_differs_from_packet_to_packet_of_a_flow_does_not_count() {
        let other = Packet {
            tcp_flags: 0x18,
            first_fragment: true,
            ..packet()
        };
        assert_eq!(flow(&other), flow(&packet()));
    }

    #[test]
    fn every_byte_of_an_address_of_ipv6_counts() {
        let mut all = std::collections::BTreeSet::new();
        for at in 0..16 {
            let mut packet = Packet::<[u8; 16]>::new();
            packet.source[at] = 1;
            all.insert(client(&packet));
            packet.destination[at] = 1;
            all.insert(flow(&packet));
        }
        assert_eq!(all.len(), 32);
    }
}
