// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! IPv6 extension headers (RFC 8200, section 4): the walk to the transport header.
//!
//! Rare, and a loop over what a stranger wrote, so it is no part of the way of ordinary packets.
//! **Invariant:** at most [`HEADERS_MAX`] headers of [`BYTES_MAX`] bytes together are walked; what
//! lies behind more, or behind one that hides what follows (ESP, AH, unknown ones) is not ours.

use crate::packet::Bytes;

/// Extension headers of a packet at most: each kind once and one of them twice (RFC 8200, 4.1).
const HEADERS_MAX: u32 = 6;
/// Bytes in them at most.
const BYTES_MAX: u32 = 256;

/// Numbers of extension headers.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// What lies behind the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Protocol number of the transport header; behind a later fragment's header, the number of
    /// what was cut into fragments.
    pub proto: u8,
    /// Start of the transport header, in bytes from the start of the network header.
    pub l4: u32,
    /// Identification of the datagram as on the wire, 0 when it is whole.
    pub id: u32,
    /// Whether it is the first of several fragments.
    pub first_fragment: bool,
    /// Whether it is a later one, behind whose header no transport header lies.
    pub later_fragment: bool,
}

/// True for a header that is walked over.
#[inline(always)]
pub const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS
    )
}

/// Walks from the extension header with this number, which starts `at` bytes behind the start of
/// the network header.
#[inline(always)]
pub fn walk<B: Bytes>(bytes: &B, number: u8, at: u32) -> Option<Walked> {
    const MORE: u16 = 1;
    const OFFSET: u16 = 0xfff8;
    let mut walked = Walked {
        proto: number,
        l4: at,
        id: 0,
        first_fragment: false,
        later_fragment: false,
    };
    let mut count = 0;
    while count < HEADERS_MAX && is_extension(walked.proto) {
        let [next, length, f0, f1] = bytes.read::<[u8; 4]>(walked.l4)?;
        let mut size = (u32::from(length) + 1) * 8;
        // The destination is not the last one yet, but checksums are made for that.
        if walked.proto == ROUTING && f1 != 0 {
            return None;
        }
        if walked.proto == FRAGMENT {
            size = 8;
            let field = u16::from_be_bytes([f0, f1]);
            if field & (OFFSET | MORE) != 0 {
                walked.id = u32::from_ne_bytes(bytes.read::<[u8; 4]>(walked.l4 + 4)?);
                walked.first_fragment = field & OFFSET == 0;
                walked.later_fragment = !walked.first_fragment;
            }
        }
        walked.proto = next;
        walked.l4 += size;
        if walked.l4 > at + BYTES_MAX {
            return None;
        }
        if walked.later_fragment {
            return Some(walked);
        }
        count += 1;
    }
    (!is_extension(walked.proto)).then_some(walked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tests::Slice;
    use proptest::prelude::*;

    /// A chain of headers as they follow each other, each with its own bytes 2 to 7.
    fn chain(headers: &[(u8, usize, [u8; 6])], last: u8) -> (u8, Vec<u8>) {
        let mut bytes = Vec::new();
        for (index, &(_, size, body)) in headers.iter().enumerate() {
            let next = headers.get(index + 1).map_or(last, |header| header.0);
            let mut header = vec![0; size];
            header[0] = next;
            header[1] = u8::try_from(size / 8 - 1).unwrap();
            header[2..8].copy_from_slice(&body);
            bytes.extend(header);
        }
        (headers.first().map_or(last, |header| header.0), bytes)
    }

    fn walked(headers: &[(u8, usize, [u8; 6])], last: u8) -> Option<Walked> {
        let (first, bytes) = chain(headers, last);
        walk(&Slice(&bytes), first, 0)
    }

    const EMPTY: [u8; 6] = [1, 4, 0, 0, 0, 0];
    const UDP: u8 = 17;

    #[test]
    fn the_transport_header_is_found_behind_every_kind() {
        let headers = [
            (HOP_BY_HOP, 8, EMPTY),
            (DESTINATION_OPTIONS, 24, EMPTY),
            (ROUTING, 40, [4, 0, 0, 0, 0, 0]),
            (FRAGMENT, 8, [0, 0, 0, 0, 0, 9]),
            (DESTINATION_OPTIONS, 16, EMPTY),
        ];
        for count in 0..=headers.len() {
            let walked = walked(&headers[..count], UDP).unwrap();
            let length: usize = headers[..count].iter().map(|header| header.1).sum();
            assert_eq!((walked.proto, walked.l4 as usize), (UDP, length));
            assert!(!walked.first_fragment && !walked.later_fragment);
        }
    }

    #[test]
    fn fragments_are_told_apart() {
        let fragment = |field: u16| {
            let [f0, f1] = field.to_be_bytes();
            walked(&[(FRAGMENT, 8, [f0, f1, 1, 2, 3, 4])], UDP).unwrap()
        };
        let id = u32::from_ne_bytes([1, 2, 3, 4]);
        let first = fragment(1);
        assert_eq!((first.id, first.first_fragment), (id, true));
        for field in [8, 9, 0xfff8] {
            let later = fragment(field);
            assert_eq!(
                (later.id, later.later_fragment, later.proto),
                (id, true, UDP)
            );
        }
        // Alone with a fragment header: whole (RFC 6946).
        let whole = fragment(0);
        assert!(!whole.first_fragment && !whole.later_fragment);
    }

    #[test]
    fn what_hides_or_is_too_much_is_not_ours() {
        // ESP and AH are where the walk ends; they are no transport of ours.
        assert_eq!(walked(&[(HOP_BY_HOP, 8, EMPTY)], 50).unwrap().proto, 50);
        let routed_on = [(ROUTING, 24, [4, 1, 0, 0, 0, 0])];
        assert_eq!(walked(&routed_on, UDP), None);
        let six = [(DESTINATION_OPTIONS, 8, EMPTY); 6];
        assert!(walked(&six, UDP).is_some());
        let seven = [(DESTINATION_OPTIONS, 8, EMPTY); 7];
        assert_eq!(walked(&seven, UDP), None);
        assert!(walked(&[(DESTINATION_OPTIONS, 256, EMPTY)], UDP).is_some());
        assert_eq!(walked(&[(DESTINATION_OPTIONS, 264, EMPTY)], UDP), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end_the_walk_within_its_limits(
            bytes in proptest::collection::vec(prop_oneof![0_u8..3, any::<u8>(), Just(60)], 0..400),
            number in any::<u8>(),
        ) {
            if let Some(walked) = walk(&Slice(&bytes), number, 0) {
                prop_assert!(walked.l4 <= BYTES_MAX);
                prop_assert!(walked.later_fragment || !is_extension(walked.proto));
            }
        }
    }
}
