// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every scenario under every fault: as a change from the scenario before, and as a first list.
//!
//! The cases of a group run side by side, because nearly all of their time is waiting.
//! **Invariant:** a fault that is not seen to happen is a failed test.

use std::thread;
use std::time::Duration;

use lb_lab::apiserver::FaultId;
use lb_lab::{ApiServer, Fault};

use crate::agent::{Agent, Start, server};
use crate::cases::{self, Case, Kick, each};
use crate::world::{Reference, Step, View, World, anchor, scenarios};

/// How long a fault that does not end by itself goes on.
const HOLD: Duration = Duration::from_millis(120);

/// How many agents share the legs of a journey.
const PARTS: usize = 6;

/// One leg of a journey.
struct Leg {
    name: String,
    before: World,
    world: World,
    steps: Vec<Step>,
    /// What every state on the way has.
    common: View,
    wanted: Reference,
}

fn legs() -> Vec<Leg> {
    let mut before = anchor();
    let leg = |(name, world): (String, World)| {
        let steps = before.steps_to(&world);
        let common = before.common(&steps);
        Leg {
            name,
            before: std::mem::replace(&mut before, world.clone()),
            steps,
            common,
            wanted: world.reference(),
            world,
        }
    };
    let legs: Vec<Leg> = scenarios().into_iter().map(leg).collect();
    let anchored = |leg: &Leg| leg.common.is_superset(&constant());
    assert!(legs.iter().all(anchored), "the anchor is everywhere");
    legs
}

/// What every world has.
pub(crate) fn constant() -> View {
    let has = |entry: &String| !entry.ends_with("-> 10.244.98.2:8080");
    anchor().reference().view.into_iter().filter(has).collect()
}

fn all(cases: &[Case], run: fn(&Case, &[Leg])) {
    let legs = legs();
    let parts = legs.chunks(legs.len().div_ceil(PARTS));
    thread::scope(|scope| {
        for (case, part) in cases
            .iter()
            .flat_map(|case| parts.clone().map(move |part| (case, part)))
        {
            thread::Builder::new()
                .name(case.name.to_owned())
                .spawn_scoped(scope, move || run(case, part))
                .unwrap();
        }
    });
}

/// Switches the faults of a case on. All watches must be open.
pub(crate) fn switch_on(server: &ApiServer, case: &Case) -> Vec<FaultId> {
    let mut ids: Vec<_> = case.rules.iter().map(|rule| server.fault(*rule)).collect();
    if case.teaches {
        // It may be known already; then only the lists are waited for.
        ids.clear();
    }
    let kick = match case.kick {
        Kick::None => return ids,
        Kick::End => Fault::EndWatch { after: 0 },
        Kick::Relist => Fault::GoneInStream { after: 0 },
    };
    ids.extend(each(kick).map(|rule| server.fault(rule)));
    ids
}

/// Waits until the faults have happened and lifts them.
pub(crate) fn let_happen(agent: &mut Agent, server: &ApiServer, case: &Case, ids: &[FaultId]) {
    for id in ids {
        agent.until_fired(server, *id, 1);
    }
    agent.go_on(HOLD);
    server.lift_all();
    if case.pages {
        server.fault(Fault::RefuseWatchList);
    }
}

/// From scenario to scenario, the fault on during each change.
fn journey(case: &Case, legs: &[Leg]) {
    let server = server();
    if case.pages {
        server.fault(Fault::RefuseWatchList);
    }
    let Some(first) = legs.first() else {
        return;
    };
    first.before.serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &first.before);
    for leg in legs {
        let what = format!("{}: {}", case.name, leg.name);
        let loses = case.loses_objects;
        agent.keep = if loses {
            constant()
        } else {
            leg.common.clone()
        };
        agent.until_watched(&server);
        let ids = switch_on(&server, case);
        for step in &leg.steps {
            step.carry_out(&server);
        }
        let_happen(&mut agent, &server, case, &ids);
        if case.loses_objects {
            leg.world.serve(&server);
        }
        agent.settle(&what, &leg.wanted);
    }
}

/// Each scenario as a first list, on empty tables and on those of the scenario before.
fn starts(case: &Case, legs: &[Leg]) {
    let mut before: Option<Agent> = None;
    for (number, leg) in legs.iter().enumerate() {
        let what = format!("{}: {}", case.name, leg.name);
        let server = server();
        if case.pages {
            server.fault(Fault::RefuseWatchList);
        }
        leg.world.serve(&server);
        let ids: Vec<_> = case.rules.iter().map(|rule| server.fault(*rule)).collect();
        let left = before.take().filter(|_| number % 2 == 1);
        let content = left.map(|agent| agent.tables.content().clone());
        let start = Start {
            content: content.unwrap_or_default(),
            ..Start::default()
        };
        let was = crate::world::view(&start.content);
        let mut agent = Agent::with(&server.url(), start);
        agent.keep = was.intersection(&leg.wanted.view).cloned().collect();
        for id in &ids {
            agent.until("the fault or the list", |agent| {
                server.fired(*id) > 0 || agent.is_listed()
            });
        }
        if !agent.is_listed() {
            assert_eq!(
                agent.writes, 0,
                "{what}: nothing is written before the list"
            );
        }
        agent.up_to(HOLD, Agent::is_listed);
        server.lift_all();
        agent.until("the first list", Agent::is_listed);
        if case.loses_objects {
            leg.world.serve(&server);
        } else {
            assert_eq!(agent.text(), leg.wanted.text, "{what}: at once");
        }
        agent.settle(&what, &leg.wanted);
        before = Some(agent);
    }
}

#[test]
fn every_scenario_is_reached_while_requests_are_refused() {
    all(&cases::refusals(), journey);
}

#[test]
fn every_scenario_is_reached_while_watches_end() {
    all(&cases::ends(), journey);
}

#[test]
fn every_scenario_is_reached_while_lists_break() {
    all(&cases::lists(), journey);
}

#[test]
fn every_scenario_is_reached_while_events_are_held_repeated_or_broken() {
    all(&cases::events(), journey);
}

#[test]
fn every_scenario_is_reached_from_a_first_list_that_is_refused_or_breaks() {
    let mut cases = cases::refusals();
    cases.extend(cases::lists());
    all(&cases, starts);
}

#[test]
fn every_scenario_is_reached_from_a_first_stream_that_is_broken() {
    let mut cases = cases::ends();
    cases.extend(cases::events());
    all(&cases, starts);
}
