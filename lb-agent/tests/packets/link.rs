// SPDX-License-Identifier: MIT OR Apache-2.0
//! Link-layer headers: devices without them, and frames for the client's own bridge.
//!
//! A test run always takes the first 14 bytes for an Ethernet header, reads the ethertype there and
//! gives the whole to the program. A packet without such a header has, at that place, part of its
//! source address: with the right address, the kernel reads the right ethertype, and the programs
//! for devices without link-layer headers run on what they will see there.

use std::net::{IpAddr, SocketAddr};

use super::case::{Case, Family, Flow, HOSTNAMES, Step, each};
use super::kernel::{Hook, Verdict};
use super::wire::Segment;

each! {
    device_without_link_layer_headers_is_translated_there_and_back,
    programs_for_such_devices_leave_other_packets_alone,
    tag_in_the_frame_itself_is_looked_behind,
}

/// An address whose bytes, at the place of the ethertype, are the ethertype: 8.0.0.x has 0x0800 in
/// front, and `2001:db8:86dd::x` has 0x86dd as its third word.
fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => [8, 0, 0, last].into(),
        Family::V6 => [0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, last.into()].into(),
    }
}

/// A flow between such addresses, its service written.
fn served(case: &mut Case) -> Flow {
    case.kernel.load_l3();
    let client: SocketAddr = (address(case.family, 9), 40_000).into();
    let backend: SocketAddr = (address(case.family, 5), 9376).into();
    case.serve(HOSTNAMES, &[0]);
    let flow = Flow {
        client,
        backend,
        ..case.flow(HOSTNAMES, 0)
    };
    case.kernel
        .put_backend(flow.backend_id, HOSTNAMES, flow.epoch, backend);
    flow
}

fn without_link(segment: Segment) -> Segment {
    Segment {
        macs: None,
        ..segment
    }
}

fn device_without_link_layer_headers_is_translated_there_and_back(case: &mut Case) {
    let mut flow = served(case);
    let request = without_link(case.opening(flow.frontend).from(flow.client));
    case.translates(
        "request",
        Hook::IngressL3,
        (&request, &request.to(flow.backend)),
        flow.entries(),
    );
    flow.reply_seen = lb_common::abi::ConnState::REPLIED;
    let reply = without_link(case.answer(flow.backend, flow.client));
    case.translates(
        "reply",
        Hook::EgressL3,
        (&reply, &reply.from(flow.frontend)),
        flow.entries(),
    );
}

fn programs_for_such_devices_leave_other_packets_alone(case: &mut Case) {
    let flow = served(case);
    let elsewhere = without_link(case.opening(case.vip(7)).from(flow.client));
    case.leaves_alone("no frontend", Hook::IngressL3, &elsewhere.frame());
    let unasked = without_link(case.answer(flow.backend, flow.client));
    case.leaves_alone("no flow", Hook::EgressL3, &unasked.frame());
    // With an Ethernet header, the network header is not where these programs look for it.
    let framed = case.opening(flow.frontend);
    case.leaves_alone("a frame", Hook::IngressL3, &framed.frame());
}

/// The frame with an 802.1Q tag of VLAN 100.
fn tagged(segment: &Segment) -> Vec<u8> {
    let frame = segment.frame();
    [&frame[..12], &[0x81, 0, 0, 100], &frame[12..]].concat()
}

fn tag_in_the_frame_itself_is_looked_behind(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let request = super::life::data(case, true, &flow);
    let reply = super::life::data(case, false, &flow);
    for (hook, input, output) in [
        (Hook::Ingress, &request, &request.to(flow.backend)),
        (Hook::Egress, &reply, &reply.from(flow.frontend)),
    ] {
        case.check(Step {
            description: "tagged",
            hook,
            input: tagged(input),
            verdict: Verdict::Pass,
            output: tagged(output),
            counters: &[],
            entries: flow.entries(),
        });
        let frame = input.frame();
        let twice = [
            &frame[..12],
            &[0x81, 0, 0, 100, 0x81, 0, 0, 200],
            &frame[12..],
        ]
        .concat();
        case.leaves_alone("tagged twice", hook, &twice);
    }
}
