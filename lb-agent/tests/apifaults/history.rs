// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random histories of changes under random faults, of the API server and of the tables at once.
//!
//! Every number comes from the seed, which a failure names. `LB_SOAK=N` runs N times as many.
//! **Invariant:** each round ends in the tables of its world; within a round nothing goes that every
//! state of that round has.

use std::thread;

use lb_lab::Resource;
use serde_json::json;

use crate::agent::{Agent, server};
use crate::cases::{self, Case};
use crate::journeys::{constant, let_happen, switch_on};
use crate::world::{Step, World, anchor, node, service, slice};

/// Histories without `LB_SOAK`.
const HISTORIES: u64 = 8;
/// Rounds of each.
const ROUNDS: usize = 6;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(number).unwrap() % limit
    }
}

/// A change that an API server could tell of; none if there is nothing to delete.
fn change(random: &mut Random, world: &World) -> Option<Step> {
    let name = format!("random-{}", random.below(4));
    let delete = |resource, name: String| {
        let id = (resource, "default".to_owned(), name);
        world.get(&id).is_some().then_some(Step::Delete(id))
    };
    match random.below(10) {
        0 => delete(Resource::Service, name),
        1 => delete(Resource::EndpointSlice, format!("{name}-1")),
        2 => Some(Step::Apply(node(&format!("zone-{}", random.below(2))))),
        3..=6 => {
            // Few addresses, so that Services contend for them.
            let mut value = service(&name, &format!("10.0.97.{}", 1 + random.below(5)));
            value["spec"]["ports"][0]["port"] = (80 + random.below(2)).into();
            match random.below(6) {
                0 => {
                    let label = "service.kubernetes.io/service-proxy-name";
                    value["metadata"]["labels"] = json!({label: "mesh"});
                }
                1 => value["spec"]["internalTrafficPolicy"] = "Local".into(),
                _ => {}
            }
            Some(Step::Apply(value))
        }
        _ => {
            let addresses: Vec<String> = (1..=4)
                .filter(|_| random.below(2) == 0)
                .map(|n| format!("10.244.96.{n}"))
                .collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let mut value = slice(&name, &addresses);
            if let Some(first) = value["endpoints"].get_mut(0) {
                first["nodeName"] = "node-a".into();
            }
            Some(Step::Apply(value))
        }
    }
}

fn history(seed: u64, cases: &[Case]) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let server = server();
    let mut world = anchor();
    world.serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &world);
    for round in 0..ROUNDS {
        let case = &cases[random.below(cases.len())];
        let what = format!("seed {seed}, round {round}, {}", case.name);
        let mut after = world.clone();
        let mut steps = Vec::new();
        for _ in 0..=random.below(4) {
            if let Some(step) = change(&mut random, &after) {
                after.take(&step);
                steps.push(step);
            }
        }
        agent.keep = if case.loses_objects {
            constant()
        } else {
            world.common(&steps)
        };
        agent.until_watched(&server);
        let ids = switch_on(&server, case);
        for _ in 0..random.below(3) {
            agent.tables.fail_nth(random.below(8));
        }
        for step in &steps {
            step.carry_out(&server);
        }
        if case.loses_objects || steps.is_empty() {
            // Something must happen for the fault to happen to.
            after.serve(&server);
        }
        let_happen(&mut agent, &server, case, &ids);
        if case.loses_objects {
            after.serve(&server);
        }
        agent.settle(&what, &after.reference());
        world = after;
    }
}

#[test]
fn random_histories_under_random_faults_end_in_the_tables_of_one_list() {
    let soak = std::env::var("LB_SOAK").ok();
    let factor = soak.map_or(1, |text| text.parse::<u64>().unwrap_or(10).max(2));
    let mut cases = cases::refusals();
    cases.extend(cases::ends());
    cases.extend(cases::lists());
    cases.extend(cases::events());
    // A server either streams lists or does not.
    cases.retain(|case| !case.pages);
    for first in (0..HISTORIES * factor).step_by(8) {
        thread::scope(|scope| {
            for seed in first..first + 8 {
                let cases = &cases;
                scope.spawn(move || history(seed, cases));
            }
        });
    }
}
