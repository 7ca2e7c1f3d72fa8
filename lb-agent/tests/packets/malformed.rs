// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets to a frontend that are cut off or wrong: left to the stack, which drops them.
//!
//! Wrong means that the headers we need cannot be trusted; a payload that is cut off is not looked
//! at, and the packet is translated like any other.
//! **Invariant:** nothing behind the end of a packet is read or written.

use super::case::{Case, Family, HOSTNAMES, each, entries};
use super::kernel::{Hook, Verdict};
use super::wire::{ETHERNET, Proto, Segment};

each! {
    every_prefix_of_a_request_is_left_alone_until_its_headers_are_whole,
    every_prefix_of_a_reply_is_left_alone_until_its_headers_are_whole,
    other_versions_are_left_alone,
    length_field_that_leaves_no_room_for_the_header_is_left_alone,
    length_field_beyond_the_packet_does_not_matter,
    empty_payload_is_translated,
}
each! { tcp:
    data_offset_below_the_header_is_left_alone,
}
each! { ipv4:
    header_length_below_the_header_is_left_alone,
    header_length_beyond_the_packet_is_left_alone,
}

/// Bytes of the transport header that must be there.
fn header(proto: Proto) -> usize {
    match proto {
        Proto::Tcp => 20,
        Proto::Udp => 8,
        Proto::Sctp => 16,
    }
}

/// Sends every prefix of `input` through a hook; with whole headers, the prefix of `output` must
/// come out. `before` puts the tables in order for each.
fn prefixes(case: &mut Case, hook: Hook, (input, output): (&Segment, &Segment)) {
    let whole = input.transport_at() + header(case.proto);
    let (input, output) = (input.frame(), output.frame());
    let mut refused = 0;
    for length in ETHERNET..=input.len() {
        let before = case.kernel.entries();
        let Some((verdict, bytes)) = case.kernel.try_run(hook, &input[..length]) else {
            refused += 1;
            // KERNEL: a test run may refuse a frame without a whole network header.
            assert!(
                length < input.len().min(ETHERNET + 40),
                "{length} bytes are refused"
            );
            continue;
        };
        let expected = if length < whole { &input } else { &output };
        assert_eq!(verdict, Verdict::Pass, "verdict of {length} bytes");
        assert_eq!(bytes, expected[..length], "bytes of {length} bytes");
        if length < whole {
            assert_eq!(
                case.kernel.entries(),
                before,
                "entries after {length} bytes"
            );
        }
        assert!(
            case.kernel.counters().is_empty(),
            "counters after {length} bytes"
        );
    }
    // Those behind the network header are what this is about.
    assert!(
        refused <= whole - header(case.proto) - ETHERNET + 1,
        "{refused} were refused"
    );
}

fn every_prefix_of_a_request_is_left_alone_until_its_headers_are_whole(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let request = case.opening(case.vip(HOSTNAMES)).payload(b"truncated");
    prefixes(
        case,
        Hook::Ingress,
        (&request, &request.to(case.backend(0))),
    );
    let flow = case.flow(HOSTNAMES, 0);
    case.check_state("the whole one made a flow", &[], flow.entries());
}

fn every_prefix_of_a_reply_is_left_alone_until_its_headers_are_whole(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let reply = case.answer(flow.backend, flow.client).payload(b"truncated");
    prefixes(case, Hook::Egress, (&reply, &reply.from(flow.frontend)));
    case.check_state("no entry has changed", &[], flow.entries());
}

/// An opening packet with some bytes changed, counted from the network header on.
fn spoilt(case: &Case, changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = case.opening(case.vip(HOSTNAMES)).frame();
    for &(at, value) in changes {
        frame[ETHERNET + at] = value;
    }
    frame
}

fn other_versions_are_left_alone(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let (right, low) = match case.family {
        Family::V4 => (4, 5),
        Family::V6 => (6, 0),
    };
    for version in (0..16).filter(|version| *version != right) {
        let frame = spoilt(case, &[(0, version << 4 | low)]);
        case.leaves_alone(&format!("version {version}"), Hook::Ingress, &frame);
    }
}

fn header_length_below_the_header_is_left_alone(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    for words in 0..5 {
        let frame = spoilt(case, &[(0, 0x40 | words)]);
        case.leaves_alone(&format!("{words} words"), Hook::Ingress, &frame);
    }
}

fn header_length_beyond_the_packet_is_left_alone(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let mut segment = case.opening(case.vip(HOSTNAMES));
    segment.payload.clear();
    let mut frame = segment.frame();
    // The header says 60 bytes, and there are 20 and the transport header.
    frame[ETHERNET] = 0x4f;
    case.leaves_alone("60 bytes of header", Hook::Ingress, &frame);
    // The header ends exactly with the packet.
    frame.truncate(ETHERNET + 24);
    frame[ETHERNET] = 0x46;
    case.leaves_alone("no byte behind the header", Hook::Ingress, &frame);
}

fn data_offset_below_the_header_is_left_alone(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let at = case.opening(case.vip(HOSTNAMES)).transport_at() - ETHERNET + 12;
    for words in 0..5 {
        let frame = spoilt(case, &[(at, words << 4)]);
        case.leaves_alone(&format!("{words} words"), Hook::Ingress, &frame);
    }
}

/// Writes the length field of the network header: `l4` bytes behind a header of 20 or 40.
fn with_length(case: &Case, l4: u16) -> Vec<u8> {
    let (at, length) = match case.family {
        Family::V4 => (2, 20 + l4),
        Family::V6 => (4, l4),
    };
    let [high, low] = length.to_be_bytes();
    spoilt(case, &[(at, high), (at + 1, low)])
}

fn length_field_that_leaves_no_room_for_the_header_is_left_alone(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let header = u16::try_from(header(case.proto)).unwrap();
    // Zero is no length in TCP over IPv6: there it says that the packet is too long for the field.
    let first = u16::from(case.proto == Proto::Tcp && case.family == Family::V6);
    for l4 in first..header {
        case.leaves_alone(
            &format!("{l4} bytes"),
            Hook::Ingress,
            &with_length(case, l4),
        );
    }
    if case.family == Family::V4 {
        let shorter_than_its_own_header = spoilt(case, &[(2, 0), (3, 19)]);
        case.leaves_alone(
            "19 bytes in all",
            Hook::Ingress,
            &shorter_than_its_own_header,
        );
        if case.proto == Proto::Udp {
            case.leaves_alone(
                "0 bytes in all",
                Hook::Ingress,
                &spoilt(case, &[(2, 0), (3, 0)]),
            );
        }
    }
}

/// The stack finds that out when it receives the packet. What counts is that nothing breaks.
fn length_field_beyond_the_packet_does_not_matter(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let (verdict, output) = case.kernel.run(Hook::Ingress, &with_length(case, 20_000));
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(
        output.len(),
        case.opening(case.vip(HOSTNAMES)).frame().len()
    );
    case.check_state("a flow", &[], entries(&[case.flow(HOSTNAMES, 0)]));
}

fn empty_payload_is_translated(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.flow(HOSTNAMES, 0);
    let request = case.opening(flow.frontend).payload(&[]);
    case.translates(
        "nothing behind the header",
        Hook::Ingress,
        (&request, &request.to(flow.backend)),
        flow.entries(),
    );
}
