// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every prefix of the ordered writes is a working data plane, also for a lookup that runs while
//! they are carried out.
//!
//! A lookup reads the frontend, a slot below its count, and the backend in that slot; a slot or
//! backend that is missing or belongs to another service makes it start over, once. Writes may
//! happen between any two of these reads. For any sequence of snapshots, with writes failing here
//! and there, a frontend that has backends throughout must lead to a backend of its own Service in
//! the old or in the new snapshot, and never to nothing. The same is asked of the packet path itself,
//! for new flows, in `path.rs`.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_agent::model::service::{Protocol, ServiceKey};
use lb_agent::model::snapshot::{Change, Object, Update};
use lb_agent::model::tables::{FamilyTables, Op, TableContent};
use lb_common::abi::{Frontend, FrontendKey, List, Scope, SlotKey};
use lb_common::{V4, V6};
use lb_ebpf::path::Work;
use proptest::prelude::*;

use crate::support::{Bench, port, service, slice};
use crate::{partial, path};

const VIPS: [&str; 3] = ["10.0.0.10", "10.0.0.11", "fd00:1::a"];
/// Behind none of the Services.
const CLIENTS: [&str; 2] = ["10.244.9.9", "fd00:9::9"];
const SERVICES: [&str; 3] = ["a", "b", "c"];
const ENDPOINTS: u8 = 6;

/// What an endpoint may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Ready,
    NotReady,
    Terminating,
}

#[derive(Clone, Debug)]
struct ServiceSpec {
    present: bool,
    vip: usize,
    port_name: &'static str,
    target: u16,
    endpoints: Vec<State>,
}

type World = Vec<ServiceSpec>;

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        3 => Just(State::Absent),
        4 => Just(State::Ready),
        1 => Just(State::NotReady),
        1 => Just(State::Terminating),
    ]
}

fn service_spec() -> impl Strategy<Value = ServiceSpec> {
    (
        prop::bool::weighted(0.85),
        0..VIPS.len(),
        prop_oneof![4 => Just(""), 1 => Just("renamed")],
        prop_oneof![4 => Just(8080), 1 => Just(8081)],
        prop::collection::vec(state(), usize::from(ENDPOINTS)),
    )
        .prop_map(|(present, vip, port_name, target, endpoints)| ServiceSpec {
            present,
            vip,
            port_name,
            target,
            endpoints,
        })
}

fn world() -> impl Strategy<Value = World> {
    prop::collection::vec(service_spec(), SERVICES.len())
}

/// One step: what the world becomes, whether it is told as a whole, and a write that fails.
type Step = (World, bool, Option<usize>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fault = prop_oneof![3 => Just(None), 1 => (0..40usize).prop_map(Some)];
    prop::collection::vec((world(), any::<bool>(), fault), 2..7)
}

impl ServiceSpec {
    fn is_v6(&self) -> bool {
        VIPS[self.vip].contains(':')
    }

    /// Address of endpoint `number`; the same pods stand behind all Services.
    fn address(&self, number: u8) -> String {
        if self.is_v6() {
            format!("fd00:2::{number:x}")
        } else {
            format!("10.244.0.{number}")
        }
    }

    fn objects(&self, name: &str, protocol: Protocol) -> Vec<Object> {
        if !self.present {
            return Vec::new();
        }
        let mut spec = service(name, VIPS[self.vip]);
        spec.ports = vec![port(self.port_name, 80, protocol)];
        let mut slices = Vec::new();
        // Even and odd endpoints are in slices of their own, so that changes are split up.
        for half in 0..2u8 {
            let numbers: Vec<u8> = (1..=ENDPOINTS).filter(|n| n % 2 == half).collect();
            let mut slice = slice(name, &[]);
            slice.key.name = format!("{name}-{half}");
            self.port_name.clone_into(&mut slice.ports[0].name);
            slice.ports[0].port = self.target;
            slice.ports[0].protocol = protocol;
            for number in numbers {
                let state = self.endpoints[usize::from(number) - 1];
                if state == State::Absent {
                    continue;
                }
                let mut endpoint = crate::support::endpoint(&self.address(number));
                endpoint.ready = state == State::Ready;
                endpoint.terminating = state == State::Terminating;
                endpoint.serving = state != State::NotReady;
                slice.endpoints.push(endpoint);
            }
            if self.is_v6() {
                slice.family = lb_agent::model::service::IpFamily::V6;
            }
            slices.push(Object::EndpointSlice(slice));
        }
        slices.push(Object::Service(spec));
        slices
    }

    /// Where new flows may go.
    fn backends(&self) -> BTreeSet<(IpAddr, u16)> {
        let having = |wanted: State| -> BTreeSet<(IpAddr, u16)> {
            (1..=ENDPOINTS)
                .filter(|n| self.endpoints[usize::from(*n) - 1] == wanted)
                .map(|n| (self.address(n).parse().unwrap(), self.target))
                .collect()
        };
        let ready = having(State::Ready);
        if ready.is_empty() {
            having(State::Terminating)
        } else {
            ready
        }
    }
}

/// The Service that has each virtual address: of two claims the first by name.
fn owners(world: &World) -> BTreeMap<usize, usize> {
    let mut found = BTreeMap::new();
    for (at, spec) in world.iter().enumerate().filter(|(_, spec)| spec.present) {
        found.entry(spec.vip).or_insert(at);
    }
    found
}

/// Where lookups of `vip` may lead while the worlds follow each other: to a backend that a Service
/// which has it in one of them has in any of them. None if it is without a backend in some world.
fn allowed(worlds: &[World], vip: usize) -> Option<BTreeSet<(IpAddr, u16)>> {
    let mut services = BTreeSet::new();
    for world in worlds {
        let owner = *owners(world).get(&vip)?;
        if world[owner].backends().is_empty() {
            return None;
        }
        services.insert(owner);
    }
    let specs = worlds
        .iter()
        .flat_map(|world| services.iter().map(|at| &world[*at]));
    Some(
        specs
            .filter(|spec| spec.present)
            .flat_map(ServiceSpec::backends)
            .collect(),
    )
}

fn objects(world: &World, protocol: Protocol) -> Vec<Object> {
    let named = world.iter().zip(SERVICES);
    named
        .flat_map(|(spec, name)| spec.objects(name, protocol))
        .collect()
}

fn changes(before: &[Object], after: &[Object]) -> Vec<Change> {
    let kept: BTreeSet<_> = after.iter().map(Object::reference).collect();
    let gone = before
        .iter()
        .map(Object::reference)
        .filter(|r| !kept.contains(r));
    let mut all: Vec<_> = gone.map(Change::Delete).collect();
    all.extend(after.iter().cloned().map(Change::Apply));
    all
}

/// The tables after each prefix of the writes.
pub(crate) fn prefixes(before: &TableContent, ops: &[Op]) -> Vec<TableContent> {
    let mut states = vec![before.clone()];
    for op in ops {
        let mut next = states.last().unwrap().clone();
        next.apply(op);
        states.push(next);
    }
    states
}

/// The values that a read from state `from` on may bring, each with the first state that has it.
pub(crate) fn readable<'a, T: PartialEq>(
    states: &'a [TableContent],
    from: usize,
    read: impl Fn(&'a TableContent) -> T,
) -> Vec<(usize, T)> {
    let mut found: Vec<(usize, T)> = Vec::new();
    for (at, state) in states.iter().enumerate().skip(from) {
        let value = read(state);
        if found.last().is_none_or(|(_, last)| *last != value) {
            found.push((at, value));
        }
    }
    found
}

/// Everything one try of a lookup may come to.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    pub(crate) hits: BTreeSet<(IpAddr, u16)>,
    /// The first state at which a try may find out that it must start over.
    pub(crate) misses: BTreeSet<usize>,
    /// There was no frontend, or none of its slots is in use.
    pub(crate) nothing: bool,
}

/// The slots that a lookup in `list` may read: all of the list, and some of its lookup table, whose
/// slots are alike.
pub(crate) fn looked_up(frontend: &Frontend, list: u16) -> Vec<SlotKey> {
    let (service, count) = (frontend.service, frontend.count(list));
    let size = if count > 1 { frontend.table_size } else { 0 };
    let slots = (0..count).map(|slot| SlotKey::numbered(service, list, slot));
    let table = (0..size).step_by(97).chain(size.checked_sub(1));
    let table = table.map(|slot| SlotKey::numbered(service, list + List::TABLES, slot));
    slots.chain(table).collect()
}

/// One try that begins at state `from` or later, with writes between any two of its reads. What
/// can be read late can be read by a try that began early, so the first states suffice.
pub(crate) fn lookup<A: Ord + Copy + Into<IpAddr>>(
    states: &[TableContent],
    family: impl Fn(&TableContent) -> &FamilyTables<A>,
    (key, scope): (&FrontendKey<A>, Scope),
    from: usize,
) -> Tries {
    let mut tries = Tries::default();
    for (at, frontend) in readable(states, from, |s| family(s).frontends.get(key).copied()) {
        let list = frontend.map(|f| f.list(scope));
        let (Some(frontend), Some(list)) = (frontend, list) else {
            tries.nothing = true;
            continue;
        };
        tries.nothing |= frontend.count(list) == 0;
        for slot in looked_up(&frontend, list) {
            for (at, id) in readable(states, at, |s| s.slots.get(&slot).copied()) {
                let Some(id) = id else {
                    tries.misses.insert(at);
                    continue;
                };
                for (at, backend) in readable(states, at, |s| family(s).backends.get(&id).copied())
                {
                    match backend.filter(|b| b.service == frontend.service) {
                        Some(b) => {
                            tries.hits.insert((b.address.into(), b.port));
                        }
                        None => {
                            tries.misses.insert(at);
                        }
                    }
                }
            }
        }
    }
    tries
}

/// Checks every lookup of one virtual address over all prefixes.
fn check<A: Ord + Copy + Into<IpAddr>>(
    states: &[TableContent],
    family: impl Fn(&TableContent) -> &FamilyTables<A> + Copy,
    (address, protocol): (A, Protocol),
    allowed: &BTreeSet<(IpAddr, u16)>,
) -> Result<(), TestCaseError> {
    let key = FrontendKey::new(address, 80, protocol.number());
    let at = (&key, Scope::Pod);
    let first = lookup(states, family, at, 0);
    prop_assert!(
        !first.nothing,
        "the frontend is there throughout and never empty"
    );
    prop_assert!(
        first.hits.is_subset(allowed),
        "{:?} within {allowed:?}",
        first.hits
    );
    for miss in first.misses {
        let second = lookup(states, family, at, miss);
        prop_assert!(!second.nothing, "the frontend is there for the second try");
        prop_assert!(second.misses.is_empty(), "the second try finds a backend");
        prop_assert!(second.hits.is_subset(allowed));
    }
    Ok(())
}

/// Checks every lookup of one virtual address with the model.
fn check_model(
    (vip, protocol): (usize, Protocol),
    states: &[TableContent],
    allowed: &BTreeSet<(IpAddr, u16)>,
) -> Result<(), TestCaseError> {
    match VIPS[vip].parse().unwrap() {
        IpAddr::V4(ip) => check(states, |s| &s.v4, (ip.octets(), protocol), allowed),
        IpAddr::V6(ip) => check(states, |s| &s.v6, (ip.octets(), protocol), allowed),
    }
}

/// Checks every new flow to one virtual address with the packet path.
fn check_path(
    (vip, protocol): (usize, Protocol),
    states: &[TableContent],
    allowed: &BTreeSet<(IpAddr, u16)>,
) -> Result<(), TestCaseError> {
    let number = protocol.number();
    match (CLIENTS.map(str::parse), VIPS[vip].parse().unwrap()) {
        ([Ok(IpAddr::V4(client)), _], IpAddr::V4(ip)) => {
            let ends = (client.octets(), ip.octets(), number);
            path::check::<V4>(states, |s| &s.v4, Work::new(), ends, allowed)
        }
        ([_, Ok(IpAddr::V6(client))], IpAddr::V6(ip)) => {
            let ends = (client.octets(), ip.octets(), number);
            path::check::<V6>(states, |s| &s.v6, Work::new(), ends, allowed)
        }
        _ => unreachable!("there is a client of each family"),
    }
}

fn run(steps: Vec<Step>, protocol: Protocol) -> Result<(), TestCaseError> {
    let tries = steps.len();
    let mut bench = Bench::empty();
    let mut told: Vec<Object> = Vec::new();
    // Every world since the tables were last in full accord with one.
    let mut unsettled = vec![World::new()];
    for (world, whole, fault) in steps {
        let before = bench.tables.content().clone();
        bench.tables.take_log();
        let next = objects(&world, protocol);
        let update = if whole {
            Update::reset(next.clone())
        } else {
            Update::Changes(changes(&told, &next))
        };
        told = next;
        if let Some(write) = fault {
            bench.tables.fail_nth(write);
        }
        unsettled.push(world);
        let outcome = bench.take(update);
        let states = prefixes(&before, &bench.tables.take_log());
        for vip in 0..VIPS.len() {
            if let Some(allowed) = allowed(&unsettled, vip) {
                check_model((vip, protocol), &states, &allowed)?;
                check_path((vip, protocol), &states, &allowed)?;
            }
        }
        if outcome.pending == 0 {
            unsettled.drain(..unsettled.len() - 1);
            let mut fresh = Bench::empty();
            fresh.take(Update::reset(told.clone()));
            prop_assert_eq!(bench.text_without_ids(), fresh.text_without_ids());
            let mut restarted = Bench::on(bench.tables.content().clone(), 1_000);
            restarted.take(Update::reset(told.clone()));
            prop_assert_eq!(
                restarted.writes(),
                Vec::<String>::new(),
                "a restart writes nothing"
            );
            partial::check_restarts(bench.tables.content(), &told, &fresh.text_without_ids())?;
        }
    }
    bench.take(Update::reset(Vec::new()));
    // Faults that were not reached yet may hit now, one in each try.
    for _ in 0..tries {
        bench.take(Update::Changes(Vec::new()));
    }
    prop_assert!(bench.tables.content().is_empty(), "ends empty");
    prop_assert_eq!(
        bench
            .reconciler
            .ids()
            .owned_by(&ServiceKey::new("default", "a")),
        BTreeSet::new()
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_prefix_of_the_writes_is_a_working_data_plane(
        steps in steps(),
        protocol in prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)],
    ) {
        run(steps, protocol)?;
    }
}

#[test]
fn the_model_and_the_packet_path_see_a_backend_that_is_deleted_too_early() {
    let before = {
        let mut bench = Bench::empty();
        bench.apply(Object::Service(service("a", VIPS[0])));
        bench.apply(Object::EndpointSlice(slice(
            "a",
            &["10.244.0.1", "10.244.0.2"],
        )));
        bench.tables.content().clone()
    };
    let mut bench = Bench::on(before.clone(), 1);
    let after = [
        Object::Service(service("a", VIPS[0])),
        Object::EndpointSlice(slice("a", &["10.244.0.2"])),
    ];
    bench.take(Update::reset(after.to_vec()));
    let mut ops = bench.tables.take_log();
    let allowed: BTreeSet<(IpAddr, u16)> = ["10.244.0.1", "10.244.0.2"]
        .map(|ip| (ip.parse().unwrap(), 8080))
        .into();
    let vip = (0, Protocol::Tcp);
    let states = prefixes(&before, &ops);
    assert!(check_model(vip, &states, &allowed).is_ok());
    assert!(check_path(vip, &states, &allowed).is_ok());
    ops.reverse();
    let states = prefixes(&before, &ops);
    assert!(check_model(vip, &states, &allowed).is_err(), "{ops:?}");
    assert!(check_path(vip, &states, &allowed).is_err(), "{ops:?}");
}
