// SPDX-License-Identifier: MIT OR Apache-2.0
//! Refused: the packet comes back as an ICMP error that quotes it, byte by byte; a SYN comes back
//! as a reset, behind such an error, which a test run does not show.
//!
//! Answers to packets whose checksum is left to the hardware cannot be made here; the lab's
//! `reject.rs` has them. Read next: `lb-ebpf/src/unreachable.rs`.

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header};
use lb_common::Reason;

use super::case::{Case, Family, HOSTNAMES, Step, each};
use super::kernel::{Hook, Sizes, Verdict};
use super::wire::{ACK, Proto, RST, Segment, framed, internet_checksum};

each! {
    packet_to_a_frontend_without_backends_comes_back_as_port_unreachable,
    refused_packets_of_any_length_are_answered,
    device_without_link_layer_headers_gets_the_answer_without_any,
    packets_that_do_not_come_from_one_host_are_dropped_in_silence,
    answers_are_limited_and_the_rest_is_dropped_and_counted_apart,
    refused_packets_leave_room_for_a_later_success,
}
each! { ipv4:
    options_are_quoted_whole,
}
each! { sctp:
    packet_of_sctp_to_a_frontend_without_backends_comes_back_as_port_unreachable,
}
each! { udp:
    checksum_zero_is_quoted_as_it_is,
}

/// The answer to a refused packet, built anew: what was dialled is the source, and quoted are the
/// network header and the transport header without options.
pub(crate) fn unreachable(refused: &Segment) -> Vec<u8> {
    let quoted = match refused.proto {
        Proto::Tcp => 20,
        Proto::Udp | Proto::Sctp => 8,
    };
    let network = refused.network();
    let quote = refused.frame()[network..refused.transport_at() + quoted].to_vec();
    let macs = refused.macs.map(|(to, from)| (from, to));
    let length = (8 + quote.len()).try_into().unwrap();
    match (refused.destination.ip(), refused.source.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (from, to) = (from.octets(), to.octets());
            let mut ip = Ipv4Header::new(length, 64, IpNumber::ICMP, from, to).unwrap();
            ip.dscp = 48.try_into().unwrap();
            ip.dont_fragment = false;
            ip.header_checksum = ip.calc_header_checksum();
            let mut message = [&[3, 3, 0, 0, 0, 0, 0, 0], &quote[..]].concat();
            let sum = internet_checksum(&[&message]);
            message[2..4].copy_from_slice(&sum);
            framed(macs, EtherType::IPV4, &[&ip.to_bytes(), &message])
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ip = Ipv6Header {
                payload_length: length,
                next_header: IpNumber::IPV6_ICMP,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            let mut message = [&[1, 4, 0, 0, 0, 0, 0, 0], &quote[..]].concat();
            let pseudo = [&ip.source[..], &ip.destination, &[0, 0, 0, 58]].concat();
            let sum = internet_checksum(&[&pseudo, &u32::from(length).to_be_bytes(), &message]);
            message[2..4].copy_from_slice(&sum);
            framed(macs, EtherType::IPV6, &[&ip.to_bytes(), &message])
        }
        mixed => panic!("two families in one packet: {mixed:?}"),
    }
}

/// The reset that answers a refused SYN, built anew.
fn reset(refused: &Segment) -> Vec<u8> {
    let mut segment = Segment::new(Proto::Tcp, refused.destination, refused.source);
    segment.flags = RST | ACK;
    segment.ip_options.clone_from(&refused.ip_options);
    segment.macs = refused.macs.map(|(to, from)| (from, to));
    let mut frame = segment.frame();
    let tcp = &mut frame[segment.transport_at()..];
    tcp[4..8].copy_from_slice(&[0; 4]);
    tcp[8..12].copy_from_slice(&0x0102_0305_u32.to_be_bytes());
    tcp[14..18].copy_from_slice(&[0; 4]);
    let pseudo = match (segment.source.ip(), segment.destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [&from.octets()[..], &to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [&from.octets()[..], &to.octets()].concat(),
        mixed => panic!("two families in one packet: {mixed:?}"),
    };
    let sum = internet_checksum(&[&pseudo, &[0, 20, 0, 6], tcp]);
    tcp[16..18].copy_from_slice(&sum);
    frame
}

/// What a refused packet becomes.
fn answer(refused: &Segment) -> Vec<u8> {
    match refused.proto {
        Proto::Tcp => reset(refused),
        Proto::Udp | Proto::Sctp => unreachable(refused),
    }
}

/// A Service without backends. The ICMP error beside a reset goes out of the device of a test run,
/// the loopback, which must be up for that.
fn empty_service(case: &mut Case) {
    let up = std::process::Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(up.unwrap().success());
    case.serve(HOSTNAMES, &[]);
}

fn answers(case: &Case, description: &str, hook: Hook, input: &Segment, count: u64) {
    case.check(Step {
        description,
        hook,
        input: input.frame(),
        verdict: Verdict::Redirect,
        output: answer(input),
        counters: &[(Reason::NoBackend, count)],
        entries: Vec::new(),
    });
}

fn packet_to_a_frontend_without_backends_comes_back_as_port_unreachable(case: &mut Case) {
    empty_service(case);
    let request = case.opening(case.vip(HOSTNAMES));
    answers(case, "no backend", Hook::Ingress, &request, 1);
}

fn packet_of_sctp_to_a_frontend_without_backends_comes_back_as_port_unreachable(case: &mut Case) {
    packet_to_a_frontend_without_backends_comes_back_as_port_unreachable(case);
}

fn refused_packets_of_any_length_are_answered(case: &mut Case) {
    empty_service(case);
    for (count, length) in (1..).zip((0..20).chain([63, 999, 1000, 1399, 1400])) {
        let payload: Vec<u8> = (0..length)
            .map(|n: u32| n.to_le_bytes()[0] ^ 0xa5)
            .collect();
        let request = case.opening(case.vip(HOSTNAMES)).payload(&payload);
        let what = format!("payload of {length} bytes");
        answers(case, &what, Hook::Ingress, &request, count);
    }
}

fn options_are_quoted_whole(case: &mut Case) {
    empty_service(case);
    for words in 1..=10 {
        let mut request = case.opening(case.vip(HOSTNAMES));
        request.ip_options = vec![1; words * 4];
        request.ip_options[..3].copy_from_slice(&[7, 3, 4]);
        let count = words.try_into().unwrap();
        answers(case, "with options", Hook::Ingress, &request, count);
    }
}

fn checksum_zero_is_quoted_as_it_is(case: &mut Case) {
    empty_service(case);
    let mut request = case.opening(case.vip(HOSTNAMES));
    request.without_checksum = true;
    answers(case, "without checksum", Hook::Ingress, &request, 1);
}

fn device_without_link_layer_headers_gets_the_answer_without_any(case: &mut Case) {
    case.kernel.load_l3();
    empty_service(case);
    // See `link.rs` for the addresses; room is made behind what the test run takes for a
    // link-layer header, the packet's first 14 bytes, so of a quote only the headers before it can be
    // compared.
    let client: IpAddr = match case.family {
        Family::V4 => [8, 0, 0, 9].into(),
        Family::V6 => [0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 9].into(),
    };
    let mut request = case
        .opening(case.vip(HOSTNAMES))
        .from((client, 40_000).into());
    request.macs = None;
    let (verdict, output) = case.kernel.run(Hook::IngressL3, &request.frame());
    assert_eq!(verdict, Verdict::Redirect);
    let wanted = answer(&request);
    assert_eq!(output.len(), wanted.len());
    let headers = match (case.proto, client) {
        (Proto::Tcp, _) => wanted.len(),
        (_, IpAddr::V4(_)) => 28,
        (_, IpAddr::V6(_)) => 48,
    };
    assert_eq!(output[..headers], wanted[..headers]);
    case.check_state("refused", &[(Reason::NoBackend, 1)], Vec::new());
}

fn packets_that_do_not_come_from_one_host_are_dropped_in_silence(case: &mut Case) {
    empty_service(case);
    let sources: [IpAddr; 3] = match case.family {
        Family::V4 => [[0; 4].into(), [224, 0, 0, 1].into(), [255; 4].into()],
        Family::V6 => [
            [0_u16; 8].into(),
            [0xff02, 0, 0, 0, 0, 0, 0, 1].into(),
            [0xff00_u16, 0, 0, 0, 0, 0, 0, 0].into(),
        ],
    };
    for (count, source) in (1..).zip(sources) {
        let from: SocketAddr = (source, 40_000).into();
        let request = case.opening(case.vip(HOSTNAMES)).from(from);
        silent(case, &request, count);
    }
    let mut request = case.opening(case.vip(HOSTNAMES));
    for (count, to) in [(4, [0xff; 6]), (5, [0x33, 0x33, 0, 0, 0, 1])] {
        request.macs = Some((to, [2, 0, 0, 0, 0, 9]));
        silent(case, &request, count);
    }
}

fn silent(case: &Case, request: &Segment, count: u64) {
    case.check(Step {
        description: "not from one host to another",
        hook: Hook::Ingress,
        input: request.frame(),
        verdict: Verdict::Drop,
        output: request.frame(),
        counters: &[(Reason::NoBackend, count)],
        entries: Vec::new(),
    });
}

/// A second is so long here that nothing comes back into the bucket, and a test run stays on its
/// CPU only as long as the scheduler likes: there is one bucket for each.
fn answers_are_limited_and_the_rest_is_dropped_and_counted_apart(case: &mut Case) {
    let sizes = Sizes {
        hz: u32::MAX,
        ..Sizes::default()
    };
    *case = Case::open(case.proto, case.family, sizes).unwrap();
    empty_service(case);
    let request = case.opening(case.vip(HOSTNAMES));
    let (input, answer) = (request.frame(), answer(&request));
    let buckets: u64 = std::thread::available_parallelism()
        .unwrap()
        .get()
        .try_into()
        .unwrap();
    let packets = 1_000 * buckets + 100;
    let mut refused = 0;
    for _ in 0..packets {
        let (verdict, output) = case.kernel.run(Hook::Ingress, &input);
        if verdict == Verdict::Drop {
            assert_eq!(output, input);
            refused += 1;
        } else {
            assert_eq!((verdict, &output), (Verdict::Redirect, &answer));
        }
    }
    assert!(
        (100..=packets - 1_000).contains(&refused),
        "{refused} of {packets}"
    );
    let counters = [
        (Reason::NoBackend, packets),
        (Reason::RejectLimited, refused),
    ];
    case.check_state("flood", &counters, Vec::new());
}

fn refused_packets_leave_room_for_a_later_success(case: &mut Case) {
    empty_service(case);
    let request = case.opening(case.vip(HOSTNAMES));
    answers(case, "no backend", Hook::Ingress, &request, 1);
    case.serve(HOSTNAMES, &[1]);
    let flow = case.flow(HOSTNAMES, 1);
    let (verdict, output) = case.kernel.run(Hook::Ingress, &request.frame());
    assert_eq!(
        (verdict, output),
        (Verdict::Pass, request.to(flow.backend).frame())
    );
    case.check_state("a flow", &[(Reason::NoBackend, 1)], flow.entries());
}
