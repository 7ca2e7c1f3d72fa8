// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two flows whose replies would be the same on the wire: one of them must differ.
//!
//! One client port to two frontends that share a backend, or to a frontend and to its backend
//! itself. Another backend is taken before the source port is changed.

use lb_common::Reason;
use lb_common::abi::ConnState;

use super::case::{Case, EPOCH, Flow, HOSTNAMES, OTHER, Step, each, entries};
use super::kernel::{Hook, Verdict};
use super::wire::{ACK, Proto, RST, Segment};

each! {
    second_flow_to_a_shared_backend_gets_another_source_port,
    second_flow_gets_another_backend_when_there_is_one,
    direct_flow_to_a_backend_gets_another_source_port,
    two_clients_with_one_port_do_not_collide,
    many_flows_from_one_port_all_differ,
}
each! { tcp:
    flow_that_is_over_gives_its_reply_tuple_away,
    direct_flow_after_the_flow_through_the_frontend_is_over_is_left_alone,
}

const CHANGED: [(Reason, u64); 1] = [(Reason::SourcePortChanged, 1)];

/// The source ports that flows are changed to: where clients' own ports are.
const CHANGED_PORTS: std::ops::Range<u16> = 32_768..61_000;

/// Sends the opening packet of a flow whose source port must be changed; gives the flow with the
/// port that it got.
fn open_with_another_port(case: &Case, mut flow: Flow, others: &[Flow]) -> Flow {
    let request = case.opening(flow.frontend).from(flow.client);
    let (verdict, output) = case.kernel.run(Hook::Ingress, &request.frame());
    assert_eq!(verdict, Verdict::Pass);
    flow.client_port = request.source_port(&output);
    assert_ne!(flow.client_port, flow.client.port());
    assert!(
        CHANGED_PORTS.contains(&flow.client_port),
        "port {}",
        flow.client_port
    );
    let expected = request.to(flow.backend).from(flow.translated_client());
    assert_eq!(output, expected.frame());
    let mut all = others.to_vec();
    all.push(flow);
    case.check_state("opened with another port", &CHANGED, entries(&all));
    flow
}

/// A packet of a flow there, and one back, at the end of which the client sees what it dialled.
fn works(case: &Case, flow: &Flow, after: &[Flow]) {
    let request = Segment::new(case.proto, flow.client, flow.frontend)
        .flags(ACK)
        .payload(b"there");
    case.check(Step {
        description: "there",
        hook: Hook::Ingress,
        input: request.frame(),
        verdict: Verdict::Pass,
        output: request
            .to(flow.backend)
            .from(flow.translated_client())
            .frame(),
        counters: &CHANGED,
        entries: entries(after),
    });
    let reply = Segment::new(case.proto, flow.backend, flow.translated_client())
        .flags(ACK)
        .payload(b"and back");
    case.check(Step {
        description: "back",
        hook: Hook::Egress,
        input: reply.frame(),
        verdict: Verdict::Pass,
        output: reply.from(flow.frontend).to(flow.client).frame(),
        counters: &CHANGED,
        entries: entries(after),
    });
}

/// Both flows have answered, as their first packets back show.
fn answered(case: &Case, flow: &mut Flow, others: &[Flow]) {
    flow.reply_seen = ConnState::REPLIED;
    let reply = case.answer(flow.backend, flow.translated_client());
    let mut all = others.to_vec();
    all.push(*flow);
    case.check(Step {
        description: "the first answer",
        hook: Hook::Egress,
        input: reply.frame(),
        verdict: Verdict::Pass,
        output: reply.from(flow.frontend).to(flow.client).frame(),
        counters: &CHANGED,
        entries: entries(&all),
    });
}

fn second_flow_to_a_shared_backend_gets_another_source_port(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    case.serve(OTHER, &[0]);
    let first = case.establish(HOSTNAMES, 0);
    let mut second = open_with_another_port(case, case.flow(OTHER, 0), &[first]);
    answered(case, &mut second, &[first]);
    works(case, &first, &[first, second]);
    works(case, &second, &[first, second]);
    works(case, &first, &[first, second]);
}

fn second_flow_gets_another_backend_when_there_is_one(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    case.serve(OTHER, &[0, 1]);
    let first = case.establish(HOSTNAMES, 0);
    // The cursor points at the shared backend; the next one takes the flow with its own port.
    let second = case.flow(OTHER, 1);
    let request = case.opening(second.frontend);
    case.translates(
        "to the backend that is not shared",
        Hook::Ingress,
        (&request, &request.to(second.backend)),
        entries(&[first, second]),
    );
}

fn direct_flow_to_a_backend_gets_another_source_port(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let first = case.establish(HOSTNAMES, 0);
    let direct = Flow {
        frontend: first.backend,
        service: 0,
        backend_id: 0,
        epoch: 0,
        generation: 0,
        ..case.flow(HOSTNAMES, 0)
    };
    let mut direct = open_with_another_port(case, direct, &[first]);
    answered(case, &mut direct, &[first]);
    works(case, &direct, &[first, direct]);
    works(case, &first, &[first, direct]);
    works(case, &direct, &[first, direct]);
}

fn two_clients_with_one_port_do_not_collide(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let first = case.establish(HOSTNAMES, 0);
    let second = Flow {
        client: (case.backend(3).ip(), first.client.port()).into(),
        ..case.flow(HOSTNAMES, 0)
    };
    let request = case.opening(second.frontend).from(second.client);
    case.translates(
        "from another address",
        Hook::Ingress,
        (&request, &request.to(second.backend)),
        entries(&[first, second]),
    );
}

/// Twelve frontends share one backend, and one client port dials them all.
fn many_flows_from_one_port_all_differ(case: &mut Case) {
    const SERVICES: u32 = 12;
    let mut ports = std::collections::BTreeSet::new();
    for service in 1..=SERVICES {
        case.serve(service, &[0]);
        let request = case.opening(case.vip(service));
        let (verdict, output) = case.kernel.run(Hook::Ingress, &request.frame());
        assert_eq!(verdict, Verdict::Pass);
        let port = request.source_port(&output);
        assert!(ports.insert(port), "port {port} was given twice");
        let reply = case.answer(case.backend(0), (case.client().ip(), port).into());
        let (verdict, output) = case.kernel.run(Hook::Egress, &reply.frame());
        let expected = reply.from(case.vip(service)).to(case.client());
        assert_eq!((verdict, output), (Verdict::Pass, expected.frame()));
    }
    let changed = u64::from(SERVICES) - 1;
    let counters = case.kernel.counters();
    assert_eq!(
        counters.into_iter().collect::<Vec<_>>(),
        [(Reason::SourcePortChanged, changed)]
    );
    assert_eq!(case.kernel.entries().len(), 2 * ports.len());
}

fn flow_that_is_over_gives_its_reply_tuple_away(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    case.serve(OTHER, &[0]);
    let first = case.establish(HOSTNAMES, 0);
    let reset = Segment::new(Proto::Tcp, first.backend, first.client).flags(RST | ACK);
    let (verdict, _) = case.kernel.run(Hook::Egress, &reset.frame());
    assert_eq!(verdict, Verdict::Pass);
    let second = case.flow(OTHER, 0);
    assert_eq!(second.epoch, EPOCH);
    let request = case.opening(second.frontend);
    case.translates(
        "with the client's own port",
        Hook::Ingress,
        (&request, &request.to(second.backend)),
        second.entries(),
    );
}

/// What is left of the old flow would translate the answers of the new one.
fn direct_flow_after_the_flow_through_the_frontend_is_over_is_left_alone(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let first = case.establish(HOSTNAMES, 0);
    let reset = Segment::new(Proto::Tcp, first.client, first.frontend).flags(RST);
    case.kernel.run(Hook::Ingress, &reset.frame());
    let direct = case.opening(first.backend);
    case.translates(
        "the SYN as it is",
        Hook::Ingress,
        (&direct, &direct),
        vec![],
    );
    let answer = case.answer(first.backend, first.client);
    case.leaves_alone("and the answer", Hook::Egress, &answer.frame());
}
