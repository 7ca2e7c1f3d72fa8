// SPDX-License-Identifier: MIT OR Apache-2.0
//! Request, reply and close of one flow, byte by byte.
//!
//! Read next: `checksums.rs`, `collisions.rs` for two flows, `reselect.rs` for backends that go.

use lb_common::abi::ConnState;

use super::case::{CLIENT_PORT, Case, Family, Flow, HOSTNAMES, each, entries};
use super::kernel::{Hook, Kernel, Sizes};
use super::wire::{ACK, FIN, PSH, Proto, RST, Segment};

each! {
    request_goes_to_the_backend_and_the_reply_comes_from_the_frontend,
    next_packets_of_a_flow_keep_its_backend_and_change_no_entry,
    opening_packet_sent_twice_reaches_the_same_backend,
}
each! { tcp:
    closing_both_ways_ends_the_flow_and_frees_the_client_port,
    closing_by_the_backend_first_ends_the_flow_as_well,
    reset_by_the_client_ends_the_flow,
    reset_by_the_backend_ends_the_flow,
    flow_with_one_side_closed_keeps_its_backend,
}

fn request_goes_to_the_backend_and_the_reply_comes_from_the_frontend(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    case.establish(HOSTNAMES, 0);
}

/// A packet in the middle of a flow, as the backend or the client sends it.
pub(crate) fn data(case: &Case, from_client: bool, flow: &Flow) -> Segment {
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
