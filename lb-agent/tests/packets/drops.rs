// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ours but not possible: dropped, unchanged, each with a counter of its own.
//!
//! Read next: `collisions.rs` for source ports.

use lb_common::Reason;
use lb_common::abi::{ConnFlags, ConnState, Frontend, Policy};

use super::case::{
    CLIENT_PORT, Case, Family, Flow, HOSTNAMES, OTHER, backend_id, each, entries, frontend,
};
use super::kernel::{Hook, Sizes, Verdict};
use super::life::data;
use super::wire::{ACK, Proto, RST, Segment};

each! {
    silent_frontend_without_backends_drops_and_counts,
    client_that_is_the_chosen_backend_is_to_be_masqueraded,
    missing_slot_is_counted,
    missing_backend_is_counted,
    backend_of_another_service_is_counted,
}

fn silent_frontend_without_backends_drops_and_counts(case: &mut Case) {
    let silent = Frontend {
        external_policy: Policy::DROP_IF_EMPTY,
        ..frontend(HOSTNAMES, 0)
    };
    case.kernel
        .put_frontend(case.vip(HOSTNAMES), case.proto, silent);
    let request = case.opening(case.vip(HOSTNAMES));
    case.drops("no backend, silently", &request, Reason::PolicyDrop);
}

fn client_that_is_the_chosen_backend_is_to_be_masqueraded(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1]);
    let flow = Flow {
        client: (case.backend(0).ip(), CLIENT_PORT).into(),
        flags: ConnFlags::MASQUERADED,
        ..case.flow(HOSTNAMES, 0)
    };
    let request = case.opening(flow.frontend).from(flow.client);
    let mut entries = flow.entries();
    entries.push(flow.pending_entry());
    case.translates(
        "to itself",
        Hook::Ingress,
        (&request, &request.to(flow.backend)),
        entries,
    );
}

fn missing_slot_is_counted(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    case.kernel.remove_slot(HOSTNAMES, 0);
    let request = case.opening(case.vip(HOSTNAMES));
    case.drops("no slot", &request, Reason::TableMiss);
}

fn missing_backend_is_counted(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let id = backend_id(HOSTNAMES, 0);
    case.kernel.remove_backend(id, case.client());
    let request = case.opening(case.vip(HOSTNAMES));
    case.drops("no backend entry", &request, Reason::TableMiss);
}

fn backend_of_another_service_is_counted(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    case.serve(OTHER, &[1]);
    case.kernel.put_slot(HOSTNAMES, 0, backend_id(OTHER, 1));
    let request = case.opening(case.vip(HOSTNAMES));
    case.drops("a foreign backend", &request, Reason::TableMiss);
}

/// Opens a flow in a table with room for `connections` entries, then tries a second one.
fn second_flow_with_room_for(connections: u32, proto: Proto, family: Family) {
    let sizes = Sizes {
        connections,
        ..Sizes::default()
    };
    let Some(mut case) = Case::open(proto, family, sizes) else {
        return;
    };
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    let second = Flow {
        client: (case.client().ip(), 40_001).into(),
        client_port: 40_001,
        reply_seen: ConnState::REPLIED,
        ..flow
    };
    let request = case.opening(second.frontend).from(second.client);
    let reply = case.answer(second.backend, second.client);
    for (hook, input) in [(Hook::Ingress, &request), (Hook::Egress, &reply)] {
        let (verdict, _) = case.kernel.run(hook, &input.frame());
        assert_eq!(verdict, Verdict::Pass);
    }
    // What would make it an established flow of TCP is refused; UDP stays half open and lives.
    if proto == Proto::Tcp {
        let acknowledged = request.flags(ACK);
        let (verdict, _) = case.kernel.run(Hook::Ingress, &acknowledged.frame());
        assert_eq!(verdict, Verdict::Drop);
    }
    let full = [(Reason::EstablishedFull, 1)];
    let both = entries(&[flow, second]);
    // Also that no half of a pair is left in the full table.
    case.check_state("both flows", &full, both);
    let reply = data(&case, false, &flow);
    let (verdict, output) = case.kernel.run(Hook::Egress, &reply.frame());
    assert_eq!(
        (verdict, output),
        (Verdict::Pass, reply.from(flow.frontend).frame())
    );
    if proto == Proto::Tcp {
        let reset = Segment::new(proto, flow.client, flow.frontend).flags(RST | ACK);
        case.kernel.run(Hook::Ingress, &reset.frame());
        let again = case.opening(flow.frontend);
        let (verdict, output) = case.kernel.run(Hook::Ingress, &again.frame());
        assert_eq!(
            (verdict, output),
            (Verdict::Pass, again.to(flow.backend).frame())
        );
        let fresh = entries(&[case.flow(HOSTNAMES, 0), second]);
        case.check_state("its port can be used again", &full, fresh);
    }
}

#[test]
fn full_table_takes_no_more_flows_and_keeps_the_open_ones() {
    for proto in [Proto::Tcp, Proto::Udp] {
        for family in [Family::V4, Family::V6] {
            second_flow_with_room_for(2, proto, family);
        }
    }
}

#[test]
fn table_with_room_for_half_a_flow_takes_none_of_it() {
    for proto in [Proto::Tcp, Proto::Udp] {
        for family in [Family::V4, Family::V6] {
            second_flow_with_room_for(3, proto, family);
        }
    }
}
