// SPDX-License-Identifier: MIT OR Apache-2.0
//! Translated bytes: every address, port, payload and option keeps its checksum right.
//!
//! The expected bytes are built anew, so these tests know no incremental arithmetic.
//! Read next: `lb-ebpf/src/checksum.rs`.

use std::net::SocketAddr;

use super::case::{Case, Family, Flow, HOSTNAMES, each, frontend};
use super::kernel::{Hook, Verdict};
use super::life::data;
use super::wire::{ACK, SYN, Segment};

each! {
    payloads_of_any_length_keep_their_checksum_right,
    random_flows_are_translated_there_and_back,
}
each! { tcp:
    checksum_that_becomes_zero_is_written_as_zero,
}
each! { udp:
    checksum_zero_stays_zero_both_ways,
    checksum_that_becomes_zero_is_written_as_all_ones,
}
each! { ipv4:
    options_of_every_length_are_kept,
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

    fn address(&mut self, family: Family, port: u16) -> SocketAddr {
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
        kernel.put_frontend(flow.frontend, case.proto, frontend(service, 1));
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
