// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The answer to a refused packet: ICMP port unreachable (RFC 792, RFC 4443), with the packet's
//! network header and the beginning of its transport header quoted.
//!
//! The headers are written as words in memory order; the quoted bytes stay where they are, behind
//! them. **Invariant:** the answer comes from the address that was dialled, so the client matches it
//! with its socket and never learns of the node. What is done to the socket buffer is in
//! `kernel/reject.rs`, how often in `limit.rs`.

use lb_common::abi::proto;
use lb_common::{Address, Family};

use crate::checksum;
use crate::packet::Packet;

/// Most words that the new headers take: IPv6 and `ICMPv6`.
pub const HEADER_WORDS: usize = 12;
/// Protocol numbers of ICMP and `ICMPv6`.
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// Hop limit of the answer, the default of the kernel.
const HOPS: u8 = 64;
/// Type of service of the answer: internetwork control (RFC 1812, 4.3.2.5).
const PRECEDENCE: u8 = 0xc0;
/// Type and code of port unreachable.
const TYPE_V4: [u8; 2] = [3, 3];
const TYPE_V6: [u8; 2] = [1, 4];

/// Bytes that the answer's headers take.
#[inline(always)]
pub const fn header_length<F: Family>() -> u32 {
    if F::IS_V6 { 48 } else { 28 }
}

/// Bytes of the transport header that are quoted: all that have a meaning of their own, without
/// options. Eight are the least (RFC 792).
#[inline(always)]
pub const fn quoted_transport(number: u8) -> u32 {
    match number {
        proto::TCP => 20,
        _ => 8,
    }
}

/// Whether the packet's sender may be answered: both ends are one host each (RFC 1122, 3.2.2).
#[inline(always)]
pub fn may_answer<A: Address>(packet: &Packet<A>) -> bool {
    is_one_host(packet.source) && is_one_host(packet.destination)
}

/// True for any address but multicast, broadcast, reserved and unspecified ones.
#[inline(always)]
fn is_one_host<A: Address>(address: A) -> bool {
    let words = address.words();
    let [first, ..] = words[0].to_ne_bytes();
    let several = if A::LEN == 4 {
        first >= 224
    } else {
        first == 0xff
    };
    !several && words[0] | words[1] | words[2] | words[3] != 0
}

/// Writes the headers of the answer to `packet`, whose first `quoted` bytes, a multiple of four
/// from the network header on, have the one's complement sum `sum`.
///
/// Of `headers`, the words of [`header_length`] are written.
#[inline(always)]
pub fn write_headers<F: Family>(
    packet: &Packet<F::Addr>,
    quoted: u32,
    sum: u32,
    headers: &mut [u32; HEADER_WORDS],
) {
    let from = packet.destination.words();
    let to = packet.source.words();
    if F::IS_V6 {
        let length = (8 + quoted).to_be();
        let mut pseudo = checksum::add(sum, length);
        pseudo = checksum::add(pseudo, u32::from(ICMP_V6).to_be());
        let mut index = 0;
        while index < 4 {
            pseudo = checksum::add(pseudo, from[index]);
            pseudo = checksum::add(pseudo, to[index]);
            headers[2 + index] = from[index];
            headers[6 + index] = to[index];
            index += 1;
        }
        let [_, _, l0, l1] = length.to_ne_bytes();
        headers[0] = u32::from_ne_bytes([0x60, 0, 0, 0]);
        headers[1] = u32::from_ne_bytes([l0, l1, ICMP_V6, HOPS]);
        headers[10] = message(TYPE_V6, pseudo);
        headers[11] = 0;
    } else {
        let [_, _, l0, l1] = (28 + quoted).to_be_bytes();
        headers[0] = u32::from_ne_bytes([0x45, PRECEDENCE, l0, l1]);
        headers[1] = 0;
        headers[2] = u32::from_ne_bytes([HOPS, ICMP, 0, 0]);
        headers[3] = from[0];
        headers[4] = to[0];
        let mut header = checksum::add(headers[0], headers[2]);
        header = checksum::add(header, from[0]);
        header = checksum::add(header, to[0]);
        let [c0, c1] = checksum::finish(header);
        headers[2] = u32::from_ne_bytes([HOPS, ICMP, c0, c1]);
        headers[5] = message(TYPE_V4, sum);
        headers[6] = 0;
    }
}

/// The first word of the message, with the checksum over it and what sums up to `rest`.
#[inline(always)]
fn message([kind, code]: [u8; 2], rest: u32) -> u32 {
    let [c0, c1] = checksum::finish(checksum::add(rest, u32::from_ne_bytes([kind, code, 0, 0])));
    u32::from_ne_bytes([kind, code, c0, c1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv4Header, Icmpv6Header, Ipv4Header, Ipv6Header};
    use lb_common::{V4, V6};
    use proptest::prelude::*;

    fn packet<A: Address>(source: A, destination: A) -> Packet<A> {
        Packet {
            source,
            destination,
            ..Packet::new()
        }
    }

    fn headers<F: Family>(packet: &Packet<F::Addr>, quote: &[u8]) -> Vec<u8> {
        let words: Vec<u32> = quote
            .chunks(4)
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        let mut headers = [0; HEADER_WORDS];
        let length = quote.len().try_into().unwrap();
        write_headers::<F>(packet, length, checksum::sum(&words), &mut headers);
        let bytes: Vec<u8> = headers.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes[..header_length::<F>() as usize].to_vec()
    }

    #[test]
    fn only_packets_between_single_hosts_are_answered() {
        let pod = [10, 244, 0, 9];
        for (address, answered) in [
            ([10, 0, 1, 175], true),
            ([223, 255, 255, 255], true),
            ([0, 0, 0, 0], false),
            ([224, 0, 0, 1], false),
            ([239, 1, 2, 3], false),
            ([255, 255, 255, 255], false),
        ] {
            assert_eq!(may_answer(&packet(pod, address)), answered, "{address:?}");
            assert_eq!(may_answer(&packet(address, pod)), answered, "{address:?}");
        }
        let pod = [0xfd; 16];
        let mut loopback = [0; 16];
        loopback[15] = 1;
        let mut multicast = [0; 16];
        multicast[0] = 0xff;
        for (address, answered) in [([0; 16], false), (multicast, false), (loopback, true)] {
            assert_eq!(may_answer(&packet(pod, address)), answered, "{address:?}");
            assert_eq!(may_answer(&packet(address, pod)), answered, "{address:?}");
        }
    }

    proptest! {
        #[test]
        fn headers_over_any_quote_have_the_right_checksums(
            source in any::<[u8; 16]>(),
            destination in any::<[u8; 16]>(),
            words in proptest::collection::vec(any::<[u8; 4]>(), 2..30),
        ) {
            let quote = words.concat();
            let message = [&[0; 4][..], &quote].concat();
            let v4: ([u8; 4], [u8; 4]) = (source[..4].try_into().unwrap(), destination[..4].try_into().unwrap());
            let bytes = headers::<V4>(&packet(v4.0, v4.1), &quote);
            let (ip, rest) = Ipv4Header::from_slice(&bytes).unwrap();
            prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            prop_assert_eq!((ip.source, ip.destination), (v4.1, v4.0));
            prop_assert_eq!(usize::from(ip.total_len), 28 + quote.len());
            let icmp = Icmpv4Header::from_slice(rest).unwrap().0;
            prop_assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(&quote));
            prop_assert_eq!(&rest[..2], &TYPE_V4);
            let bytes = headers::<V6>(&packet(source, destination), &quote);
            let (ip, rest) = Ipv6Header::from_slice(&bytes).unwrap();
            prop_assert_eq!((ip.source, ip.destination), (destination, source));
            prop_assert_eq!(usize::from(ip.payload_length), 8 + quote.len());
            let icmp = Icmpv6Header::from_slice(rest).unwrap().0;
            let wanted = icmp.icmp_type.calc_checksum(destination, source, &quote).unwrap();
            prop_assert_eq!(icmp.checksum, wanted);
            prop_assert_eq!(&rest[..2], &TYPE_V6);
            prop_assert_eq!(message.len() % 4, 0);
        }
    }
}
