// SPDX-License-Identifier: MIT OR Apache-2.0
//! Masquerading, byte by byte: a request goes through ingress and, as ingress left it, through
//! egress; its reply comes the same way back.
//!
//! A test run leaves by the loopback of the test's namespace, so that is the device that has
//! masquerade addresses.
//! **Invariant:** every step also states the mark that the packet had and has.
//! Read next: `lb-ebpf/src/path/masquerade.rs`.

use std::net::{IpAddr, SocketAddr};

use lb_common::Reason;
use lb_common::abi::{Action, ConnFlags, ConnState, Frontend, Hook as Side, Policy, PrefixTable};

use super::case::{Case, Family, Flow, HOSTNAMES, each, frontend};
use super::kernel::{Entry, Hook, Sizes, Verdict};
use super::wire::{ACK, PSH, Proto, SYN, Segment};

/// The bit of the mark that is compiled in.
pub(crate) const MARK: u32 = 0x4000;
/// What someone else keeps in the mark.
const OTHERS: u32 = 0x8a00_0a05;
/// The loopback.
const DEVICE: u32 = 1;
/// A port of the client that is in the pool, and one that is not.
const IN_POOL: u16 = 20_000;
const NOT_IN_POOL: u16 = 40_000;

each! { all:
    node_port_flow_is_masqueraded_there_and_back,
    packet_that_someone_else_marked_is_masqueraded,
}
each! { udp:
    checksum_zero_of_a_masqueraded_flow_stays_zero,
}
each! {
    without_its_mark_a_flow_is_masqueraded_all_the_same,
    packet_without_a_masquerade_address_is_refused,
}

/// The node's address that requests to pods get.
fn node(case: &Case) -> IpAddr {
    match case.family {
        Family::V4 => [192, 0, 2, 1].into(),
        Family::V6 => [0x2001, 0xdb8, 1, 0, 0, 0, 0, 1].into(),
    }
}

/// Another address, which would be wrong.
fn wrong(case: &Case) -> IpAddr {
    match case.family {
        Family::V4 => [198, 51, 100, 1].into(),
        Family::V6 => [0x2001, 0xdb8, 2, 0, 0, 0, 0, 1].into(),
    }
}

/// Puts the node's addresses into the tables: what leaves towards pods gets `node`.
fn give_addresses(case: &mut Case) {
    let (node, wrong) = (node(case), wrong(case));
    let (whole, pods, everything) = match case.family {
        Family::V4 => (32, ([10, 244, 0, 0].into(), 16), ([0; 4].into(), 0)),
        Family::V6 => (
            128,
            ([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0].into(), 48),
            ([0_u16; 8].into(), 0),
        ),
    };
    let kernel = &mut case.kernel;
    kernel.put_prefix(PrefixTable::OWN, (node, whole), node);
    kernel.put_prefix(DEVICE, pods, node);
    kernel.put_prefix(DEVICE, everything, wrong);
    kernel.put_prefix(DEVICE + 1, pods, wrong);
}

/// A node port that masquerades towards backends elsewhere, and one such backend.
fn serve_node_port(case: &mut Case) -> SocketAddr {
    give_addresses(case);
    case.serve(HOSTNAMES, &[0]);
    let at = (node(case), 30_080).into();
    let node_port = Frontend {
        external_policy: Policy::SNAT_REMOTE,
        ..frontend(HOSTNAMES, 1)
    };
    case.kernel.put_frontend(at, case.proto, node_port);
    at
}

/// The flow from a port of the client through a node port.
fn flow_from(case: &Case, client_port: u16, node_port: SocketAddr) -> Flow {
    Flow {
        client: (case.client().ip(), client_port).into(),
        client_port,
        frontend: node_port,
        flags: ConnFlags::MASQUERADED,
        ..case.flow(HOSTNAMES, 0)
    }
}

/// Both entries that masquerade a flow, whose state they have.
fn pair(flow: &Flow, masquerade: SocketAddr) -> Vec<Entry> {
    let request = Entry {
        peer: masquerade,
        client_port: flow.backend.port(),
        request_seen: flow.request_seen,
        reply_seen: flow.reply_seen,
        flags: 0,
        ..flow.pending_entry()
    };
    let reply = Entry {
        hook: Side::Ingress as u8,
        source: request.destination,
        destination: masquerade,
        peer: request.source,
        action: Action::UndoSnat as u8,
        ..request.clone()
    };
    vec![request, reply]
}

/// A packet through a hook: what goes in and what comes out, each with its mark.
fn step(
    case: &Case,
    description: &str,
    hook: Hook,
    (input, before): (&Segment, u32),
    (output, after): (&Segment, u32),
) {
    let (verdict, bytes, mark) = case.kernel.run_marked(hook, &input.frame(), before);
    assert_eq!(verdict, Verdict::Pass, "{description}");
    assert_eq!(bytes, output.frame(), "bytes: {description}");
    assert_eq!(mark, after, "mark: {description}");
}

/// A request through both hooks, whose first one must mark it.
fn request(case: &Case, mark: u32, segment: &Segment, flow: &Flow, masquerade: SocketAddr) {
    let others = OTHERS & !mark;
    let marked = others | mark;
    let to_backend = segment.to(flow.backend);
    let ingress = (segment, others);
    step(case, "in", Hook::Ingress, ingress, (&to_backend, marked));
    let masqueraded = to_backend.from(masquerade);
    let (input, output) = ((&to_backend, marked), (&masqueraded, others));
    step(case, "out", Hook::Egress, input, output);
}

/// A reply through both hooks, which have no business with its mark.
fn reply(case: &Case, mark: u32, segment: &Segment, flow: &Flow, masquerade: SocketAddr) {
    let others = OTHERS & !mark;
    let input = segment.to(masquerade);
    let to_client = segment.to(flow.client);
    let (input, output) = ((&input, others), (&to_client, others));
    step(case, "reply in", Hook::Ingress, input, output);
    let from_frontend = to_client.from(flow.frontend);
    let (input, output) = ((&to_client, others), (&from_frontend, others));
    step(case, "reply out", Hook::Egress, input, output);
}

/// Opens a flow and sends data both ways; gives the entries that it has then. `before` are those of
/// others.
fn there_and_back(
    case: &Case,
    mark: u32,
    flow: &Flow,
    before: &[Entry],
    change: impl Fn(Segment) -> Segment,
) -> Vec<Entry> {
    let all = |entries: [Vec<Entry>; 2]| [before, &entries[0], &entries[1]].concat();
    let opening = change(case.opening(flow.frontend).from(flow.client));
    let to_backend = opening.to(flow.backend);
    let (others, marked) = (OTHERS & !mark, OTHERS | mark);
    let input = (&opening, others);
    step(case, "in", Hook::Ingress, input, (&to_backend, marked));
    let pending = all([flow.entries(), vec![flow.pending_entry()]]);
    case.check_state("marked", &[], pending);
    // The port is the client's own or one that nobody foresees.
    let (verdict, bytes, after) = case
        .kernel
        .run_marked(Hook::Egress, &to_backend.frame(), marked);
    let port = opening.source_port(&bytes);
    let masquerade = (node(case), port).into();
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(bytes, to_backend.from(masquerade).frame());
    assert_eq!(after, others, "only our bit is cleared");
    match flow.client.port() {
        IN_POOL => assert_eq!(port, IN_POOL),
        _ => assert!(matches!(port, 1024..=29_999 | 61_000..), "{port}"),
    }
    case.check_state(
        "masqueraded",
        &[],
        all([flow.entries(), pair(flow, masquerade)]),
    );
    // Once more: the same port.
    request(case, mark, &opening, flow, masquerade);
    let replied = Flow {
        reply_seen: ConnState::REPLIED,
        ..*flow
    };
    let answer = change(case.answer(flow.backend, flow.client));
    reply(case, mark, &answer, flow, masquerade);
    let entries = all([replied.entries(), pair(&replied, masquerade)]);
    case.check_state("answered", &[], entries.clone());
    for length in [0_u8, 1, 2, 3, 255] {
        let payload: Vec<u8> = (0..length).map(|n| n ^ 0xa5).collect();
        let data = |from, to| {
            let segment = Segment::new(case.proto, from, to).flags(ACK | PSH);
            change(segment.payload(&payload))
        };
        let there = data(flow.client, flow.frontend);
        request(case, mark, &there, flow, masquerade);
        reply(
            case,
            mark,
            &data(flow.backend, flow.client),
            flow,
            masquerade,
        );
        case.check_state("data", &[], entries.clone());
    }
    entries
}

fn node_port_flow_is_masqueraded_there_and_back(case: &mut Case) {
    let node_port = serve_node_port(case);
    let mut entries = Vec::new();
    for client_port in [IN_POOL, NOT_IN_POOL] {
        let flow = flow_from(case, client_port, node_port);
        entries = there_and_back(case, MARK, &flow, &entries, |segment| segment);
    }
}

fn checksum_zero_of_a_masqueraded_flow_stays_zero(case: &mut Case) {
    let node_port = serve_node_port(case);
    let flow = flow_from(case, IN_POOL, node_port);
    there_and_back(case, MARK, &flow, &[], |segment| Segment {
        without_checksum: true,
        ..segment
    });
}

#[test]
fn another_bit_of_the_mark_does_as_well_and_ours_is_then_someone_elses() {
    for (mark, family) in [(1, Family::V4), (0x8000_0000, Family::V6)] {
        let sizes = Sizes {
            mark,
            ..Sizes::default()
        };
        let Some(mut case) = Case::open(Proto::Tcp, family, sizes) else {
            return;
        };
        let node_port = serve_node_port(&mut case);
        let flow = flow_from(&case, IN_POOL, node_port);
        let entries = there_and_back(&case, mark, &flow, &[], |segment| segment);
        let stranger = foreign(&case, NOT_IN_POOL);
        let marked = (&stranger, MARK | OTHERS & !mark);
        step(&case, "the usual bit", Hook::Egress, marked, marked);
        case.check_state("the usual bit", &[], entries);
    }
}

/// A packet of the client that is at egress already and that no entry of ours knows.
pub(crate) fn foreign(case: &Case, client_port: u16) -> Segment {
    let client = SocketAddr::from((case.client().ip(), client_port));
    case.opening(case.backend(0)).from(client)
}

/// What is known of such a flow.
fn foreign_flow(case: &Case, segment: &Segment) -> Flow {
    Flow {
        client: segment.source,
        client_port: segment.source.port(),
        backend: segment.destination,
        service: 0,
        backend_id: 0,
        epoch: 0,
        generation: 0,
        ..case.flow(HOSTNAMES, 0)
    }
}

/// Makes a flow that someone else has marked an established one; gives it and its masquerade address.
fn establish_foreign(case: &Case) -> (Flow, SocketAddr) {
    let opening = foreign(case, IN_POOL);
    let masquerade = SocketAddr::from((node(case), IN_POOL));
    let flow = foreign_flow(case, &opening);
    let out = |segment: &Segment| {
        let masqueraded = segment.from(masquerade);
        let (input, output) = ((segment, OTHERS | MARK), (&masqueraded, OTHERS));
        step(case, "out", Hook::Egress, input, output);
    };
    out(&opening);
    case.check_state("masqueraded", &[], pair(&flow, masquerade));
    let answer = case.answer(flow.backend, flow.client);
    let input = answer.to(masquerade);
    let (input, output) = ((&input, OTHERS), (&answer, OTHERS));
    step(case, "answer", Hook::Ingress, input, output);
    if case.proto != Proto::Udp {
        out(&opening.flags(ACK));
    }
    let flow = Flow {
        reply_seen: ConnState::REPLIED,
        ..flow
    };
    case.check_state("established", &[], pair(&flow, masquerade));
    (flow, masquerade)
}

fn packet_that_someone_else_marked_is_masqueraded(case: &mut Case) {
    give_addresses(case);
    let (flow, masquerade) = establish_foreign(case);
    let entries = pair(&flow, masquerade);
    // The node's own packets need no other address; the mark goes all the same.
    let own = foreign(case, IN_POOL).from((node(case), 555).into());
    let (input, output) = ((&own, OTHERS | MARK), (&own, OTHERS));
    step(case, "the node's own", Hook::Egress, input, output);
    let unmarked = foreign(case, NOT_IN_POOL);
    let same = (&unmarked, OTHERS);
    step(case, "not marked", Hook::Egress, same, same);
    case.check_state("nothing new", &[], entries);
}

fn without_its_mark_a_flow_is_masqueraded_all_the_same(case: &mut Case) {
    let node_port = serve_node_port(case);
    let flow = flow_from(case, IN_POOL, node_port);
    let opening = case.opening(flow.frontend).from(flow.client);
    let to_backend = opening.to(flow.backend);
    let (input, output) = ((&opening, OTHERS & !MARK), (&to_backend, OTHERS | MARK));
    step(case, "in", Hook::Ingress, input, output);
    let masquerade = (node(case), IN_POOL).into();
    let masqueraded = to_backend.from(masquerade);
    step(
        case,
        "out",
        Hook::Egress,
        (&to_backend, 0),
        (&masqueraded, 0),
    );
    let entries = [flow.entries(), pair(&flow, masquerade)].concat();
    case.check_state("masqueraded", &[(Reason::MarkLost, 1)], entries);
}

/// A marked packet is refused at egress: dropped as it came, and nothing is left of it.
fn refuses(case: &Case, segment: &Segment, counters: &[(Reason, u64)], entries: &[Entry]) {
    let (verdict, bytes, _) = case
        .kernel
        .run_marked(Hook::Egress, &segment.frame(), OTHERS | MARK);
    assert_eq!((verdict, bytes), (Verdict::Drop, segment.frame()));
    case.check_state("refused", counters, entries.to_vec());
}

fn packet_without_a_masquerade_address_is_refused(case: &mut Case) {
    let segment = foreign(case, IN_POOL);
    refuses(case, &segment, &[(Reason::NoMasqueradeAddress, 1)], &[]);
}

/// Runs a check for each protocol and family, on a node that has these ranges of masquerade ports.
pub(crate) fn with_ports(snat_ports: [u16; 8], check: fn(&Case)) {
    let sizes = Sizes {
        snat_ports,
        ..Sizes::default()
    };
    for proto in [Proto::Tcp, Proto::Udp] {
        for family in [Family::V4, Family::V6] {
            let Some(mut case) = Case::open(proto, family, sizes) else {
                return;
            };
            give_addresses(&mut case);
            check(&case);
        }
    }
}

#[test]
fn without_a_free_port_a_packet_is_refused_and_counted_once() {
    with_ports([50_000, 50_001, 1, 0, 1, 0, 1, 0], |case| {
        let mut entries = Vec::new();
        let mut take = |segment: &Segment, port: u16| {
            let masquerade = SocketAddr::from((node(case), port));
            let masqueraded = segment.from(masquerade);
            let (input, output) = ((segment, OTHERS | MARK), (&masqueraded, OTHERS));
            step(case, "a port is free", Hook::Egress, input, output);
            entries.extend(pair(&foreign_flow(case, segment), masquerade));
            entries.clone()
        };
        // Both ports of the pool by the clients that have them, so no chance is in this.
        take(&foreign(case, 50_000), 50_000);
        let two = take(&foreign(case, 50_001), 50_001);
        let third = foreign(case, NOT_IN_POOL);
        for count in 1..3 {
            let counters = [(Reason::NoMasqueradePort, count)];
            refuses(case, &third, &counters, &two);
        }
        let elsewhere = foreign(case, 50_000).to(case.backend(1));
        let three = take(&elsewhere, 50_000);
        let counters = [(Reason::NoMasqueradePort, 2)];
        case.check_state("another backend has ports of its own", &counters, three);
    });
}

/// Waits for more ticks than a second of the programs has.
fn wait_a_second(case: &Case, hz: u32) {
    let before = case.kernel.now();
    while case.kernel.now().wrapping_sub(before) <= hz {
        std::thread::yield_now();
    }
}

#[test]
fn reply_whose_flow_has_lost_its_other_half_goes_to_the_stack_untouched() {
    // Short seconds, because an entry is asked for its other half once in each; not so short that a
    // flow that has only begun is given up within the test.
    let sizes = Sizes {
        hz: 20,
        ..Sizes::default()
    };
    for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
        for family in [Family::V4, Family::V6] {
            let Some(mut case) = Case::open(proto, family, sizes) else {
                return;
            };
            give_addresses(&mut case);
            let (flow, masquerade) = establish_foreign(&case);
            let data = Segment::new(proto, flow.backend, masquerade).flags(ACK | PSH);
            let restored = data.to(flow.client);
            wait_a_second(&case, sizes.hz);
            let output = (&restored, OTHERS);
            step(&case, "both halves", Hook::Ingress, (&data, OTHERS), output);
            let halves = pair(&flow, masquerade);
            case.kernel.remove_established(&halves[0]);
            wait_a_second(&case, sizes.hz);
            for what in ["one half", "none"] {
                let same = (&data, OTHERS);
                step(&case, what, Hook::Ingress, same, same);
                case.check_state(what, &[(Reason::MasqueradeStray, 1)], Vec::new());
            }
            // A marked packet begins the flow anew.
            let opening = foreign(&case, IN_POOL).flags(SYN);
            let masqueraded = opening.from(masquerade);
            let (input, output) = ((&opening, OTHERS | MARK), (&masqueraded, OTHERS));
            step(&case, "anew", Hook::Egress, input, output);
        }
    }
}
