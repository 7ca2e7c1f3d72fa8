// SPDX-License-Identifier: MIT OR Apache-2.0
//! Request, reply and close of one flow, byte by byte.
//!
//! Read next: `collisions.rs` for two flows, `reselect.rs` for backends that go.

use lb_common::abi::ConnState;

use super::case::{CLIENT_PORT, Case, Family, Flow, HOSTNAMES, each, entries};
use super::kernel::{Hook, Kernel, Sizes, Verdict};
use super::wire::{ACK, FIN, PSH, Proto, RST, SYN, Segment};

each! {
    request_goes_to_the_backend_and_the_reply_comes_from_the_frontend,
    next_packets_of_a_flow_keep_its_backend_and_change_no_entry,
    payloads_of_any_length_keep_their_checksum_right,
    random_flows_are_translated_there_and_back,
    opening_packet_sent_twice_reaches_the_same_backend,
}
each! { tcp:
    closing_both_ways_ends_the_flow_and_frees_the_client_port,
    closing_by_the_backend_first_ends_the_flow_as_well,
    reset_by_the_client_ends_the_flow,
    reset_by_the_backend_ends_the_flow,
    checksum_that_becomes_zero_is_written_as_zero,
    flow_with_one_side_closed_keeps_its_backend,
}
each! { udp:
    checksum_zero_stays_zero_both_ways,
    checksum_that_becomes_zero_is_written_as_all_ones,
}
each! { ipv4:
    options_of_every_length_are_kept,
}

fn request_goes_to_the_backend_and_the_reply_comes_from_the_frontend(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    case.establish(HOSTNAMES, 0);
}

fn data(case: &Case, from_client: bool, flow: &Flow) -> Segment {
    let (source, destination, payload): (_, _, &[u8]) = if from_client {
        (flow.client, flow.frontend, b"GET / HTTP/1.1\r\n\r\n")
    } else {
        (flow.backend, flow.translated_client(), b"hostnames-0uton\n")
    };
    Segment::new(case.proto, source, destination)
        .flags(ACK | PSH)
        .payload(payload)
}

fn next_packets_of_a_flow_keep_its_backend_and_change_no_entry(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let flow = case.establish(HOSTNAMES, 0);
    for _ in 0..3 {
        let request = data(case, true, &flow);
        case.translates(
            "data to the backend",
            Hook::Ingress,
            (&request, &request.to(flow.backend)),
            flow.entries(),
        );
        let reply = data(case, false, &flow);
        case.translates(
            "data from the backend",
            Hook::Egress,
            (&reply, &reply.from(flow.frontend)),
            flow.entries(),
        );
    }
}

fn opening_packet_sent_twice_reaches_the_same_backend(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let flow = case.flow(HOSTNAMES, 0);
    let request = case.opening(flow.frontend);
    for _ in 0..3 {
        case.translates(
            "the opening packet",
            Hook::Ingress,
            (&request, &request.to(flow.backend)),
            flow.entries(),
        );
    }
}

fn payloads_of_any_length_keep_their_checksum_right(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    for length in (0..40).chain([999, 1000, 1399, 1400]) {
        let payload: Vec<u8> = (0..length)
            .map(|n: u32| n.to_le_bytes()[0] ^ 0xa5)
            .collect();
        let request = data(case, true, &flow).payload(&payload);
        case.translates(
            "request",
            Hook::Ingress,
            (&request, &request.to(flow.backend)),
            flow.entries(),
        );
        let reply = data(case, false, &flow).payload(&payload);
        case.translates(
            "reply",
            Hook::Egress,
            (&reply, &reply.from(flow.frontend)),
            flow.entries(),
        );
    }
}

/// Numbers that look random and are the same in each run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn address(&mut self, family: Family, port: u16) -> std::net::SocketAddr {
        let (high, low) = (self.next(), self.next());
        match family {
            Family::V4 => {
                let [_, a, b, c, ..] = low.to_be_bytes();
                ([10, a, b, c], port).into()
            }
            Family::V6 => {
                let address = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
                (address, port).into()
            }
        }
    }

    fn port(&mut self) -> u16 {
        let [a, b, ..] = self.next().to_be_bytes();
        u16::from_be_bytes([a, b]).max(1)
    }
}

/// Each flow with addresses, ports and payload of its own, so that carries happen in every word.
fn random_flows_are_translated_there_and_back(case: &mut Case) {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for service in 1..=30 {
        let (client_port, vip_port, backend_port) =
            (numbers.port(), numbers.port(), numbers.port());
        let flow = Flow {
            client: numbers.address(case.family, client_port),
            frontend: numbers.address(case.family, vip_port),
            backend: numbers.address(case.family, backend_port),
            client_port,
            ..case.flow(service, 0)
        };
        let kernel = &mut case.kernel;
        kernel.put_backend(flow.backend_id, service, flow.epoch, flow.backend);
        kernel.put_slot(service, 0, flow.backend_id);
        kernel.put_frontend(flow.frontend, case.proto, super::case::frontend(service, 1));
        let payload: Vec<u8> = (0..service * 7)
            .map(|_| numbers.next().to_le_bytes()[0])
            .collect();
        let request = Segment::new(case.proto, flow.client, flow.frontend)
            .flags(SYN)
            .payload(&payload);
        let (verdict, output) = kernel.run(Hook::Ingress, &request.frame());
        assert_eq!(
            (verdict, output),
            (Verdict::Pass, request.to(flow.backend).frame())
        );
        let reply = Segment::new(case.proto, flow.backend, flow.client)
            .flags(SYN | ACK)
            .payload(&payload);
        let (verdict, output) = kernel.run(Hook::Egress, &reply.frame());
        assert_eq!(
            (verdict, output),
            (Verdict::Pass, reply.from(flow.frontend).frame())
        );
    }
    assert_eq!(case.kernel.entries().len(), 60);
    assert!(case.kernel.counters().is_empty());
}

/// Sends segments with flags of both sides; each changes the state as told and is translated.
fn close(case: &Case, flow: &mut Flow, packets: &[(bool, u8, u8)]) {
    for &(from_client, flags, bits) in packets {
        let segment = data(case, from_client, flow).payload(&[]).flags(flags);
        let (hook, translated) = if from_client {
            flow.request_seen |= bits;
            (Hook::Ingress, segment.to(flow.backend))
        } else {
            flow.reply_seen |= bits;
            (Hook::Egress, segment.from(flow.frontend))
        };
        case.translates(
            "a closing packet",
            hook,
            (&segment, &translated),
            flow.entries(),
        );
    }
}

/// The same client port again: both old entries make room for a flow to the next backend.
fn reopens_at_the_next_backend(case: &Case) {
    let flow = case.flow(HOSTNAMES, 1);
    let request = case.opening(flow.frontend);
    case.translates(
        "the client port is used again",
        Hook::Ingress,
        (&request, &request.to(flow.backend)),
        flow.entries(),
    );
}

fn closing_both_ways_ends_the_flow_and_frees_the_client_port(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let mut flow = case.establish(HOSTNAMES, 0);
    let packets = [
        (true, FIN | ACK, ConnState::FIN_REQUEST),
        (false, FIN | ACK, ConnState::FIN_REPLY),
        (true, ACK, 0),
        // Sent again, because the last ACK was lost.
        (false, FIN | ACK, 0),
        (true, ACK, 0),
    ];
    close(case, &mut flow, &packets);
    reopens_at_the_next_backend(case);
}

fn closing_by_the_backend_first_ends_the_flow_as_well(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let mut flow = case.establish(HOSTNAMES, 0);
    let packets = [
        (false, FIN | ACK, ConnState::FIN_REPLY),
        (true, FIN | ACK, ConnState::FIN_REQUEST),
        (false, ACK, 0),
    ];
    close(case, &mut flow, &packets);
    reopens_at_the_next_backend(case);
}

fn flow_with_one_side_closed_keeps_its_backend(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let mut flow = case.establish(HOSTNAMES, 0);
    close(
        case,
        &mut flow,
        &[(true, FIN | ACK, ConnState::FIN_REQUEST)],
    );
    let request = case.opening(flow.frontend);
    case.translates(
        "a late copy of the SYN",
        Hook::Ingress,
        (&request, &request.to(flow.backend)),
        flow.entries(),
    );
}

fn reset_by_the_client_ends_the_flow(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let mut flow = case.establish(HOSTNAMES, 0);
    close(case, &mut flow, &[(true, RST, ConnState::RESET)]);
    reopens_at_the_next_backend(case);
}

fn reset_by_the_backend_ends_the_flow(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let mut flow = case.establish(HOSTNAMES, 0);
    close(case, &mut flow, &[(false, RST | ACK, ConnState::RESET)]);
    reopens_at_the_next_backend(case);
}

/// A packet like `like` whose translation by `translate` has the checksum `wanted`.
fn with_checksum(like: &Segment, translate: impl Fn(&Segment) -> Segment, wanted: u16) -> Segment {
    (0..=u16::MAX)
        .map(|payload| like.clone().payload(&payload.to_be_bytes()))
        .find(|segment| {
            let translated = translate(segment);
            translated.checksum(&translated.frame()) == wanted
        })
        .expect("one of all payloads of two bytes has any sum")
}

fn becomes(case: &mut Case, wanted: u16) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let to_backend = |segment: &Segment| segment.to(flow.backend);
    let request = with_checksum(&data(case, true, &flow), to_backend, wanted);
    case.translates(
        "request",
        Hook::Ingress,
        (&request, &to_backend(&request)),
        flow.entries(),
    );
    let from_frontend = |segment: &Segment| segment.from(flow.frontend);
    let reply = with_checksum(&data(case, false, &flow), from_frontend, wanted);
    case.translates(
        "reply",
        Hook::Egress,
        (&reply, &from_frontend(&reply)),
        flow.entries(),
    );
}

fn checksum_that_becomes_zero_is_written_as_zero(case: &mut Case) {
    becomes(case, 0);
}

/// In UDP, zero would say that there is no checksum.
fn checksum_that_becomes_zero_is_written_as_all_ones(case: &mut Case) {
    becomes(case, 0xffff);
}

/// Also over IPv6, where it is allowed for tunnels only (RFC 6935): it is not for us to judge.
fn checksum_zero_stays_zero_both_ways(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let mut request = data(case, true, &flow);
    request.without_checksum = true;
    case.translates(
        "request without checksum",
        Hook::Ingress,
        (&request, &request.to(flow.backend)),
        flow.entries(),
    );
    let mut reply = data(case, false, &flow);
    reply.without_checksum = true;
    case.translates(
        "reply without checksum",
        Hook::Egress,
        (&reply, &reply.from(flow.frontend)),
        flow.entries(),
    );
}

fn options_of_every_length_are_kept(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    for words in 1..=10 {
        // Record route, filled up with "no operation".
        let mut options = vec![1; words * 4];
        options[..3].copy_from_slice(&[7, 3, 4]);
        let mut request = data(case, true, &flow);
        request.ip_options.clone_from(&options);
        case.translates(
            "request with options",
            Hook::Ingress,
            (&request, &request.to(flow.backend)),
            flow.entries(),
        );
        let mut reply = data(case, false, &flow);
        reply.ip_options = options;
        case.translates(
            "reply with options",
            Hook::Egress,
            (&reply, &reply.from(flow.frontend)),
            flow.entries(),
        );
    }
}

/// Waits until the packet path's clock has moved on.
fn wait_a_tick(kernel: &Kernel) {
    let before = kernel.now();
    while kernel.now().wrapping_sub(before) < 2 {
        std::thread::yield_now();
    }
}

fn last_seen_after_waiting(hz: u32) -> Option<(Vec<u32>, Vec<u32>)> {
    let sizes = Sizes {
        hz,
        ..Sizes::default()
    };
    let mut case = Case::open(Proto::Tcp, Family::V4, sizes)?;
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let before = case.kernel.last_seen().into_values().collect();
    wait_a_tick(&case.kernel);
    case.kernel
        .run(Hook::Ingress, &data(&case, true, &flow).frame());
    case.kernel
        .run(Hook::Egress, &data(&case, false, &flow).frame());
    case.check_state("entries are the same", &[], entries(&[flow]));
    Some((before, case.kernel.last_seen().into_values().collect()))
}

#[test]
fn time_is_written_down_by_the_first_packet_of_a_new_second() {
    // With one tick to a second, the wait was longer than a second.
    if let Some((before, after)) = last_seen_after_waiting(1) {
        assert!(
            before
                .iter()
                .zip(&after)
                .all(|(before, after)| before < after)
        );
    }
}

#[test]
fn time_is_not_written_down_twice_in_a_second() {
    if let Some((before, after)) = last_seen_after_waiting(1_000_000_000) {
        assert_eq!(before, after);
    }
}

#[test]
fn source_port_of_the_client_is_the_one_in_the_tests() {
    // Guards the fixtures: port changes are told from this one.
    let segment = Segment::new(
        Proto::Udp,
        ([10, 0, 0, 1], CLIENT_PORT).into(),
        ([10, 0, 0, 2], 1).into(),
    );
    assert_eq!(segment.source_port(&segment.frame()), CLIENT_PORT);
}
