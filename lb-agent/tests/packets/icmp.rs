// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP errors about a flow, byte by byte: what they quote is what their receiver sent.
//!
//! Read next: `message.rs` for how the frames are built, `lb-ebpf/src/path/icmp.rs` for who gets
//! which address.

use std::net::{IpAddr, SocketAddr};

use lb_common::Reason;

use super::case::{Case, Family, Flow, HOSTNAMES, OTHER, Step, each, entries};
use super::kernel::{Hook, Verdict};
use super::life::data;
use super::message::{Message, redirect};
use super::wire::Segment;

each! {
    error_about_a_request_quotes_what_the_client_sent,
    error_about_a_reply_quotes_what_the_backend_sent,
    quotes_of_any_length_keep_every_checksum_right,
    error_about_a_flow_with_another_source_port_quotes_both_ports_right,
    device_without_link_layer_headers_is_translated_as_well,
    redirects_about_a_flow_are_dropped_and_others_pass,
    messages_that_are_not_about_a_flow_are_left_alone,
}
each! { udp:
    quoted_checksum_zero_stays_zero,
}
each! { ipv4:
    options_outside_and_in_the_quote_are_kept,
}

/// A router's address in the pods' range.
fn router(case: &Case) -> IpAddr {
    match case.family {
        Family::V4 => [10, 244, 0, 1].into(),
        Family::V6 => [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1].into(),
    }
}

/// The types of errors of a family.
fn types(case: &Case) -> &'static [u8] {
    match case.family {
        Family::V4 => &[3, 11, 12],
        Family::V6 => &[1, 2, 3, 4],
    }
}

/// A request as it is behind the translation, and as the client sent it.
fn request(case: &Case, flow: &Flow) -> (Segment, Segment) {
    let sent = data(case, true, flow);
    let there = sent.to(flow.backend).from(flow.translated_client());
    (there, sent)
}

/// A reply as the client gets it, and as the backend sent it.
fn reply(case: &Case, flow: &Flow) -> (Segment, Segment) {
    let sent = data(case, false, flow);
    (sent.from(flow.frontend).to(flow.client), sent)
}

/// Checks that a message at a hook is translated, the `count`-th so far.
fn translates(
    case: &Case,
    what: &str,
    hook: Hook,
    (input, output): (&Message, &Message),
    flows: &[Flow],
    counters: &[(Reason, u64)],
) {
    case.check(Step {
        description: what,
        hook,
        input: input.frame(),
        verdict: Verdict::Pass,
        output: output.frame(),
        counters,
        entries: entries(flows),
    });
}

fn error_about_a_request_quotes_what_the_client_sent(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let flow = case.establish(HOSTNAMES, 0);
    let (there, sent) = request(case, &flow);
    let mut count = 0;
    for &message_type in types(case) {
        // Whoever speaks, it comes from what the client dialled.
        for (from, seen) in [
            (router(case), flow.frontend.ip()),
            (flow.backend.ip(), flow.frontend.ip()),
        ] {
            count += 1;
            let input = Message::new(message_type, from, flow.client.ip(), &there);
            let output = Message::new(message_type, seen, flow.client.ip(), &sent);
            let what = format!("type {message_type} from {from}");
            let counters = [(Reason::IcmpError, count)];
            translates(
                case,
                &what,
                Hook::Egress,
                (&input, &output),
                &[flow],
                &counters,
            );
        }
    }
}

fn error_about_a_reply_quotes_what_the_backend_sent(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let flow = case.establish(HOSTNAMES, 0);
    let (there, sent) = reply(case, &flow);
    let mut count = 0;
    for &message_type in types(case) {
        for from in [router(case), flow.client.ip()] {
            count += 1;
            let input = Message::new(message_type, from, flow.frontend.ip(), &there);
            let output = Message::new(message_type, from, flow.backend.ip(), &sent);
            let what = format!("type {message_type} from {from}");
            let counters = [(Reason::IcmpError, count)];
            translates(
                case,
                &what,
                Hook::Ingress,
                (&input, &output),
                &[flow],
                &counters,
            );
        }
    }
}

fn quotes_of_any_length_keep_every_checksum_right(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let error = types(case)[0];
    let mut count = 0;
    // Not 17, which cuts the checksum of TCP in half: what is left of it stays as it was.
    for length in (8..30).filter(|&length| length != 17).chain([100, 500]) {
        for (hook, (there, sent)) in [
            (Hook::Egress, request(case, &flow)),
            (Hook::Ingress, reply(case, &flow)),
        ] {
            count += 1;
            let payload = [0xa5; 600];
            let (there, sent) = (there.payload(&payload), sent.payload(&payload));
            let (from, seen) = match hook {
                Hook::Egress => (flow.backend.ip(), flow.frontend.ip()),
                Hook::Ingress | Hook::IngressL3 | Hook::EgressL3 => {
                    (flow.client.ip(), flow.client.ip())
                }
            };
            let input = Message::new(error, from, there.source.ip(), &there).quoting(length);
            let output = Message::new(error, seen, sent.source.ip(), &sent).quoting(length);
            let what = format!("{length} bytes of the transport header and payload");
            let counters = [(Reason::IcmpError, count)];
            translates(case, &what, hook, (&input, &output), &[flow], &counters);
        }
    }
}

fn error_about_a_flow_with_another_source_port_quotes_both_ports_right(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    case.serve(OTHER, &[0]);
    let first = case.establish(HOSTNAMES, 0);
    let mut flow = case.flow(OTHER, 0);
    let opening = case.opening(flow.frontend);
    let (_, output) = case.kernel.run(Hook::Ingress, &opening.frame());
    flow.client_port = opening.source_port(&output);
    assert_ne!(flow.client_port, flow.client.port());
    let error = types(case)[0];
    let flows = [first, flow];
    let (there, sent) = request(case, &flow);
    let input = Message::new(error, router(case), flow.client.ip(), &there);
    let output = Message::new(error, flow.frontend.ip(), flow.client.ip(), &sent);
    let counters = [(Reason::SourcePortChanged, 1), (Reason::IcmpError, 1)];
    translates(
        case,
        "request",
        Hook::Egress,
        (&input, &output),
        &flows,
        &counters,
    );
    let (there, sent) = reply(case, &flow);
    let input = Message::new(error, flow.client.ip(), flow.frontend.ip(), &there);
    let output = Message::new(error, flow.client.ip(), flow.backend.ip(), &sent);
    let counters = [(Reason::SourcePortChanged, 1), (Reason::IcmpError, 2)];
    translates(
        case,
        "reply",
        Hook::Ingress,
        (&input, &output),
        &flows,
        &counters,
    );
}

fn device_without_link_layer_headers_is_translated_as_well(case: &mut Case) {
    case.kernel.load_l3();
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    // See `link.rs` for the address.
    let from: IpAddr = match case.family {
        Family::V4 => [8, 0, 0, 9].into(),
        Family::V6 => [0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 9].into(),
    };
    let (there, sent) = request(case, &flow);
    let error = types(case)[0];
    let without_link = |mut message: Message| {
        message.macs = None;
        message
    };
    let input = without_link(Message::new(error, from, flow.client.ip(), &there));
    let seen = flow.frontend.ip();
    let output = without_link(Message::new(error, seen, flow.client.ip(), &sent));
    let counters = [(Reason::IcmpError, 1)];
    translates(
        case,
        "request",
        Hook::EgressL3,
        (&input, &output),
        &[flow],
        &counters,
    );
}

fn quoted_checksum_zero_stays_zero(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let error = types(case)[0];
    let (mut there, mut sent) = request(case, &flow);
    there.without_checksum = true;
    sent.without_checksum = true;
    let input = Message::new(error, router(case), flow.client.ip(), &there);
    let output = Message::new(error, flow.frontend.ip(), flow.client.ip(), &sent);
    let counters = [(Reason::IcmpError, 1)];
    translates(
        case,
        "zero",
        Hook::Egress,
        (&input, &output),
        &[flow],
        &counters,
    );
}

fn options_outside_and_in_the_quote_are_kept(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let (there, sent) = request(case, &flow);
    let mut count = 0;
    for (outer, inner) in [(0, 4), (4, 0), (40, 40), (12, 24)] {
        count += 1;
        let with = |from: IpAddr, mut quoted: Segment| {
            quoted.ip_options = vec![1; inner];
            let mut message = Message::new(3, from, flow.client.ip(), &quoted);
            message.ip_options = vec![1; outer];
            message
        };
        let input = with(flow.backend.ip(), there.clone());
        let output = with(flow.frontend.ip(), sent.clone());
        let what = format!("{outer} bytes outside, {inner} inside");
        let counters = [(Reason::IcmpError, count)];
        translates(
            case,
            &what,
            Hook::Egress,
            (&input, &output),
            &[flow],
            &counters,
        );
    }
}

fn redirects_about_a_flow_are_dropped_and_others_pass(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let mut count = 0;
    for (hook, (there, _)) in [
        (Hook::Egress, request(case, &flow)),
        (Hook::Ingress, reply(case, &flow)),
    ] {
        for target_address in [false, true] {
            count += 1;
            let message = redirect(router(case), there.source.ip(), &there, target_address);
            case.check(Step {
                description: "a redirect about the flow",
                hook,
                input: message.frame(),
                verdict: Verdict::Drop,
                output: message.frame(),
                counters: &[(Reason::Redirect, count)],
                entries: flow.entries(),
            });
        }
    }
    let (there, _) = request(case, &flow);
    let elsewhere = there.to((flow.backend.ip(), 22).into());
    let message = redirect(router(case), flow.client.ip(), &elsewhere, true);
    case.check(Step {
        description: "a redirect about the pod itself",
        hook: Hook::Egress,
        input: message.frame(),
        verdict: Verdict::Pass,
        output: message.frame(),
        counters: &[(Reason::Redirect, count)],
        entries: flow.entries(),
    });
}

fn messages_that_are_not_about_a_flow_are_left_alone(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let (there, sent) = request(case, &flow);
    let (client, other) = (flow.client.ip(), case.backend(2));
    let alone = |what: &str, hook, message: Message| {
        case.leaves_alone(what, hook, &message.frame());
    };
    let error = types(case)[0];
    let plain = |quoted: &Segment| Message::new(error, router(case), client, quoted);
    alone("at the other hook", Hook::Ingress, plain(&there));
    alone("already translated", Hook::Egress, plain(&sent));
    alone("another port", Hook::Egress, plain(&there.to(other)));
    let no_flow: SocketAddr = (client, 40_001).into();
    alone("another flow", Hook::Egress, plain(&there.from(no_flow)));
    let to_another = Message::new(error, router(case), other.ip(), &there);
    alone("to another than the sender", Hook::Egress, to_another);
    let others: &[u8] = match case.family {
        Family::V4 => &[0, 4, 8, 10, 13, 14],
        Family::V6 => &[0, 5, 128, 129, 133, 134, 135, 136, 138],
    };
    for &other_type in others {
        let message = Message::new(other_type, router(case), client, &there);
        alone(&format!("type {other_type}"), Hook::Egress, message);
    }
    for length in 0..4 {
        let cut = plain(&there).quoting(length);
        alone("a quote without both ports", Hook::Egress, cut);
    }
}
