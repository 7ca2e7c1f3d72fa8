// SPDX-License-Identifier: MIT OR Apache-2.0
//! Backends and frontends that change while flows are open.
//!
//! A datagram never goes to a backend that is gone; a connection of TCP keeps its backend to the
//! end; answers that are under way still reach the client under the frontend's address.

use lb_common::Reason;
use lb_common::abi::{ConnState, Frontend};

use super::case::{
    Case, EPOCH, Flow, GENERATION, HOSTNAMES, Step, backend_id, each, entries, frontend,
};
use super::kernel::{Entry, Hook, Verdict};
use super::wire::{ACK, Proto, Segment};

each! {
    frontend_that_is_gone_is_left_to_the_stack,
    reply_after_the_frontend_is_gone_still_comes_from_it,
}
each! { tcp:
    connection_to_a_removed_backend_goes_on,
    opening_again_after_the_backend_is_gone_chooses_another,
    changed_generation_leaves_an_opening_connection_alone,
}
each! { tcp:
    opening_again_after_the_frontend_is_gone_forgets_the_flow,
}
each! { udp:
    datagram_after_its_backend_is_removed_goes_to_another,
    datagram_after_its_backend_id_is_used_anew_goes_to_the_new_one,
    datagram_after_the_frontend_changed_chooses_anew,
    late_answer_of_a_removed_backend_comes_from_the_frontend,
}

/// Takes the backend at 0 out of a service that had 0 and 1, as the agent does it.
fn remove_first_backend(case: &mut Case) {
    let kept = backend_id(HOSTNAMES, 1);
    case.kernel.put_slot(HOSTNAMES, 0, kept);
    let frontend = frontend(HOSTNAMES, 1);
    case.kernel
        .put_frontend(case.vip(HOSTNAMES), case.proto, frontend);
    case.kernel.remove_slot(HOSTNAMES, 1);
    case.kernel
        .remove_backend(backend_id(HOSTNAMES, 0), case.client());
}

/// The next datagram goes to `new`; of `old`, the reply entry stays when its tuple is not taken.
fn reselects(case: &Case, new: &Flow, left: Vec<Entry>) {
    let request = case.opening(new.frontend);
    let mut entries = new.entries();
    entries.extend(left);
    for _ in 0..2 {
        case.check(Step {
            description: "the next datagram",
            hook: Hook::Ingress,
            input: request.frame(),
            verdict: Verdict::Pass,
            output: request.to(new.backend).frame(),
            counters: &[(Reason::Reselected, 1)],
            entries: entries.clone(),
        });
    }
}

fn datagram_after_its_backend_is_removed_goes_to_another(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1]);
    let old = case.establish(HOSTNAMES, 0);
    remove_first_backend(case);
    reselects(case, &case.flow(HOSTNAMES, 1), vec![old.reply_entry()]);
}

fn late_answer_of_a_removed_backend_comes_from_the_frontend(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1]);
    let old = case.establish(HOSTNAMES, 0);
    remove_first_backend(case);
    let new = case.flow(HOSTNAMES, 1);
    reselects(case, &new, vec![old.reply_entry()]);
    let late = case.answer(old.backend, old.client);
    let mut entries = new.entries();
    entries.push(old.reply_entry());
    case.check(Step {
        description: "the late answer",
        hook: Hook::Egress,
        input: late.frame(),
        verdict: Verdict::Pass,
        output: late.from(old.frontend).frame(),
        counters: &[(Reason::Reselected, 1)],
        entries,
    });
}

fn datagram_after_its_backend_id_is_used_anew_goes_to_the_new_one(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let old = case.establish(HOSTNAMES, 0);
    let id = backend_id(HOSTNAMES, 0);
    let at = case.backend(1);
    case.kernel.put_backend(id, HOSTNAMES, EPOCH + 1, at);
    let new = Flow {
        backend: at,
        epoch: EPOCH + 1,
        ..case.flow(HOSTNAMES, 0)
    };
    reselects(case, &new, vec![old.reply_entry()]);
}

fn datagram_after_the_frontend_changed_chooses_anew(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1]);
    let old = case.establish(HOSTNAMES, 0);
    let changed = Frontend {
        generation: GENERATION + 1,
        ..frontend(HOSTNAMES, 2)
    };
    case.kernel
        .put_frontend(case.vip(HOSTNAMES), case.proto, changed);
    let new = Flow {
        generation: GENERATION + 1,
        ..case.flow(HOSTNAMES, 1)
    };
    reselects(case, &new, vec![old.reply_entry()]);
}

fn changed_generation_leaves_an_opening_connection_alone(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1]);
    let flow = case.flow(HOSTNAMES, 0);
    let request = case.opening(flow.frontend);
    let there = request.to(flow.backend);
    case.translates("the SYN", Hook::Ingress, (&request, &there), flow.entries());
    let changed = Frontend {
        generation: GENERATION + 1,
        ..frontend(HOSTNAMES, 2)
    };
    case.kernel
        .put_frontend(case.vip(HOSTNAMES), case.proto, changed);
    case.translates(
        "the SYN again",
        Hook::Ingress,
        (&request, &there),
        flow.entries(),
    );
}

fn connection_to_a_removed_backend_goes_on(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1]);
    let flow = case.establish(HOSTNAMES, 0);
    remove_first_backend(case);
    let request = Segment::new(Proto::Tcp, flow.client, flow.frontend)
        .flags(ACK)
        .payload(b"more");
    case.translates(
        "data to the removed backend",
        Hook::Ingress,
        (&request, &request.to(flow.backend)),
        flow.entries(),
    );
    let reply = Segment::new(Proto::Tcp, flow.backend, flow.client)
        .flags(ACK)
        .payload(b"and more");
    case.translates(
        "data from the removed backend",
        Hook::Egress,
        (&reply, &reply.from(flow.frontend)),
        flow.entries(),
    );
}

fn opening_again_after_the_backend_is_gone_chooses_another(case: &mut Case) {
    case.serve(HOSTNAMES, &[0, 1]);
    let flow = case.flow(HOSTNAMES, 0);
    let request = case.opening(flow.frontend);
    let there = request.to(flow.backend);
    case.translates("the SYN", Hook::Ingress, (&request, &there), flow.entries());
    remove_first_backend(case);
    // Nobody answered, so the client sends its SYN again.
    reselects(case, &case.flow(HOSTNAMES, 1), vec![]);
}

fn frontend_that_is_gone_is_left_to_the_stack(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.flow(HOSTNAMES, 0);
    let request = case.opening(flow.frontend);
    case.kernel.run(Hook::Ingress, &request.frame());
    case.kernel.remove_frontend(flow.frontend, case.proto);
    let datagram_or_new = match case.proto {
        Proto::Udp => request,
        Proto::Tcp | Proto::Sctp => request.from((case.client().ip(), 40_001).into()),
    };
    case.leaves_alone("no frontend", Hook::Ingress, &datagram_or_new.frame());
}

fn reply_after_the_frontend_is_gone_still_comes_from_it(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    case.kernel.remove_frontend(flow.frontend, case.proto);
    case.kernel.remove_backend(flow.backend_id, flow.backend);
    let reply = case.answer(flow.backend, flow.client);
    assert_eq!(flow.reply_seen, ConnState::REPLIED);
    case.translates(
        "a late answer",
        Hook::Egress,
        (&reply, &reply.from(flow.frontend)),
        entries(&[flow]),
    );
}

fn opening_again_after_the_frontend_is_gone_forgets_the_flow(case: &mut Case) {
    case.serve(HOSTNAMES, &[0]);
    let flow = case.establish(HOSTNAMES, 0);
    case.kernel.remove_frontend(flow.frontend, case.proto);
    let request = case.opening(flow.frontend);
    case.translates(
        "the SYN as it is",
        Hook::Ingress,
        (&request, &request),
        vec![],
    );
}
