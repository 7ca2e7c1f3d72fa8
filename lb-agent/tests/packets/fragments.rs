// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fragments and IPv6 extension headers, byte by byte.
//!
//! A translated datagram's fragments are expected by translating the whole and cutting that.

use super::case::{Case, Family, Flow, HOSTNAMES, Step, each};
use super::kernel::{Hook, Verdict};
use super::life::data;
use super::wire::{Segment, fragments, with_extensions};

each! {
    every_fragment_of_a_flow_goes_the_same_way_in_both_directions,
    later_fragments_before_their_first_one_are_left_alone,
    packets_behind_extension_headers_are_translated,
    extension_headers_that_hide_what_follows_are_left_alone,
}
each! { udp:
    first_fragment_opens_a_flow_and_the_others_follow,
}

/// Bytes of payload in a fragment.
const SIZE: usize = 1_000;

/// Checks that a frame becomes another one, nothing is counted and the flow stays as it is.
fn becomes(case: &Case, what: &str, hook: Hook, frames: (&[u8], &[u8]), flow: &Flow) {
    case.check(Step {
        description: what,
        hook,
        input: frames.0.to_vec(),
        verdict: Verdict::Pass,
        output: frames.1.to_vec(),
        counters: &[],
        entries: flow.entries(),
    });
}

/// A long packet of each direction, as it comes and as it goes.
fn long(case: &Case, flow: &Flow) -> [(Hook, Segment, Segment); 2] {
    let payload: Vec<u8> = (0..2_800_u32).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
    let request = data(case, true, flow).payload(&payload);
    let reply = data(case, false, flow).payload(&payload);
    let there = request.to(flow.backend);
    let back = reply.from(flow.frontend);
    [(Hook::Ingress, request, there), (Hook::Egress, reply, back)]
}

fn every_fragment_of_a_flow_goes_the_same_way_in_both_directions(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let flow = case.establish(HOSTNAMES, 0);
    for (hook, input, output) in long(case, &flow) {
        let (input, output) = (
            fragments(&input.frame(), SIZE),
            fragments(&output.frame(), SIZE),
        );
        assert_eq!(input.len(), 3);
        // The later ones in either order.
        for index in [0, 2, 1] {
            let frames = (&input[index][..], &output[index][..]);
            becomes(case, &format!("fragment {index}"), hook, frames, &flow);
        }
    }
}

fn first_fragment_opens_a_flow_and_the_others_follow(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1, 2]);
    let flow = case.flow(HOSTNAMES, 0);
    let [(hook, input, output), _] = long(case, &flow);
    let input = fragments(&input.frame(), SIZE);
    let output = fragments(&output.frame(), SIZE);
    for (input, output) in input.iter().zip(&output) {
        becomes(case, "a new datagram", hook, (input, output), &flow);
    }
}

fn later_fragments_before_their_first_one_are_left_alone(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    for (hook, input, output) in long(case, &flow) {
        let input = fragments(&input.frame(), SIZE);
        let output = fragments(&output.frame(), SIZE);
        case.leaves_alone("not known yet", hook, &input[1]);
        becomes(case, "the first", hook, (&input[0], &output[0]), &flow);
        becomes(case, "known now", hook, (&input[1], &output[1]), &flow);
        // Another datagram of the same two hosts.
        let mut other = input[1].clone();
        let id = match case.family {
            Family::V4 => 14 + 4,
            Family::V6 => 14 + 40 + 4,
        };
        other[id] ^= 1;
        if case.family == Family::V6 {
            case.leaves_alone("another datagram", hook, &other);
        }
    }
}

/// Extension headers without their first byte, which says what follows.
const HOP_BY_HOP: (u8, &[u8]) = (0, &[0, 1, 4, 0, 0, 0, 0]);
const OPTIONS: (u8, &[u8]) = (60, &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
const ROUTED: (u8, &[u8]) = (43, &[0, 4, 0, 0, 0, 0, 0]);
const WHOLE: (u8, &[u8]) = (44, &[0, 0, 0, 0, 0, 0, 9]);

fn packets_behind_extension_headers_are_translated(case: &mut Case) {
    if case.family == Family::V4 {
        return;
    }
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    for (hook, input, output) in long(case, &flow) {
        for extensions in [
            &[HOP_BY_HOP][..],
            &[OPTIONS],
            &[WHOLE],
            &[HOP_BY_HOP, OPTIONS, ROUTED, WHOLE, OPTIONS],
        ] {
            let input = with_extensions(&input.frame(), extensions);
            let output = with_extensions(&output.frame(), extensions);
            let what = format!("{} extension headers", extensions.len());
            becomes(case, &what, hook, (&input, &output), &flow);
        }
    }
}

fn extension_headers_that_hide_what_follows_are_left_alone(case: &mut Case) {
    if case.family == Family::V4 {
        return;
    }
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let routed_on: (u8, &[u8]) = (43, &[0, 4, 1, 0, 0, 0, 0]);
    let authenticated: (u8, &[u8]) = (51, &[2, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1]);
    for (hook, input, _) in long(case, &flow) {
        for (what, extensions) in [
            ("to be routed on", &[routed_on][..]),
            ("authenticated", &[authenticated]),
            ("seven headers", &[HOP_BY_HOP; 7]),
        ] {
            let input = with_extensions(&input.frame(), extensions);
            case.leaves_alone(what, hook, &input);
        }
    }
}
