// SPDX-License-Identifier: MIT OR Apache-2.0
//! SCTP: one flow from its first chunk to its last, its CRC computed from scratch.
//!
//! The backend's port is another one than the frontend's, so every packet's CRC changes.

use lb_common::abi::ConnState;

use super::case::{Case, Flow, HOSTNAMES, each};
use super::kernel::Hook;
use super::wire::{ACK, FIN, RST, Segment};

each! { sctp:
    association_is_translated_there_and_back,
    packets_of_any_length_keep_their_crc_right,
    crc_that_is_left_to_the_device_stays_zero,
    end_of_an_association_is_seen,
}

fn association_is_translated_there_and_back(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1]);
    case.establish(HOSTNAMES, 0);
}

fn there(case: &Case, flow: &Flow) -> Segment {
    Segment::new(case.proto, flow.client, flow.frontend).flags(ACK)
}

fn back(case: &Case, flow: &Flow) -> Segment {
    Segment::new(case.proto, flow.backend, flow.client).flags(ACK)
}

fn both_ways(case: &Case, flow: &Flow, change: impl Fn(Segment) -> Segment) {
    let request = change(there(case, flow));
    case.translates(
        "request",
        Hook::Ingress,
        (&request, &request.to(flow.backend)),
        flow.entries(),
    );
    let reply = change(back(case, flow));
    case.translates(
        "reply",
        Hook::Egress,
        (&reply, &reply.from(flow.frontend)),
        flow.entries(),
    );
}

fn packets_of_any_length_keep_their_crc_right(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    for length in (0..20).chain([255, 256, 257, 1023, 1024, 1400]) {
        let payload: Vec<u8> = (0..length)
            .map(|n: u32| n.to_le_bytes()[0] ^ 0xa5)
            .collect();
        both_ways(case, &flow, |segment| segment.payload(&payload));
    }
}

fn crc_that_is_left_to_the_device_stays_zero(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    both_ways(case, &flow, |mut segment| {
        segment.without_checksum = true;
        segment.payload(b"data")
    });
}

fn end_of_an_association_is_seen(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let mut flow = case.establish(HOSTNAMES, 0);
    let shutdown = there(case, &flow).flags(FIN);
    flow.request_seen |= ConnState::FIN_REQUEST;
    case.translates(
        "shutdown",
        Hook::Ingress,
        (&shutdown, &shutdown.to(flow.backend)),
        flow.entries(),
    );
    let abort = back(case, &flow).flags(RST);
    flow.reply_seen |= ConnState::RESET;
    case.translates(
        "abort",
        Hook::Egress,
        (&abort, &abort.from(flow.frontend)),
        flow.entries(),
    );
}
