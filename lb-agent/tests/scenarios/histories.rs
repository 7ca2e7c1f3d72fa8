// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever came before, and in whatever pieces: the tables are those of the last world, and no
//! identity is used twice.
//!
//! A history is told in any order, object by object or Service by Service, with restarts between
//! worlds and addresses of the node that come at any time.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_agent::model::service::ServiceKey;
use lb_agent::model::snapshot::{Change, Object, ObjectRef, Update};
use lb_agent::model::tables::{Op, TableContent, TableOp};
use lb_agent::reconcile::Settings;
use proptest::prelude::*;

use crate::support::Bench;
use crate::worlds::{World, any_settings, world};

/// How a world is told.
#[derive(Clone, Debug)]
enum Telling {
    Whole,
    /// One object after the other, in an order made from the number.
    Pieces(u64),
    /// One Service after the other with its slices.
    Services,
    /// To an agent that starts anew.
    Restarted,
}

fn telling() -> impl Strategy<Value = Telling> {
    prop_oneof![
        Just(Telling::Whole),
        any::<u64>().prop_map(Telling::Pieces),
        Just(Telling::Services),
        Just(Telling::Restarted),
    ]
}

/// The order of `all` that `seed` stands for.
fn shuffled<T>(all: Vec<T>, mut seed: u64) -> Vec<T> {
    let mut left = all;
    let mut found = Vec::new();
    while !left.is_empty() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = usize::try_from(seed >> 33).unwrap() % left.len();
        found.push(left.swap_remove(at));
    }
    found
}

/// The Service that a change is about, none for a Node.
fn concerns(change: &Change) -> Option<String> {
    let reference = match change {
        Change::Apply(object) => object.reference(),
        Change::Delete(reference) => reference.clone(),
        Change::Invalid(invalid) => invalid.object.clone(),
    };
    match reference {
        ObjectRef::Service(key) | ObjectRef::Endpoints(key) => Some(key.name),
        ObjectRef::EndpointSlice(key) => Some(key.name[..1].to_owned()),
        ObjectRef::Node(_) | ObjectRef::Pod(_) | ObjectRef::Namespace(_) => None,
    }
}

/// What a backend id stands for: the service id and the address. A port that is renamed while the
/// agent is down keeps its service id, because its frontend does.
type Identity = (u32, IpAddr, u16);

/// Every identity that an id and an epoch ever had.
#[derive(Default)]
struct Register {
    used: BTreeMap<(u32, u32), Identity>,
    holders: BTreeMap<u32, (u32, Identity)>,
}

impl Register {
    fn check(&mut self, bench: &mut Bench) -> Result<(), TestCaseError> {
        for op in bench.tables.take_log() {
            let (id, service, epoch, address, port) = match op {
                Op::V4(TableOp::PutBackend(id, b)) => {
                    (id, b.service, b.epoch, IpAddr::from(b.address), b.port)
                }
                Op::V6(TableOp::PutBackend(id, b)) => {
                    (id, b.service, b.epoch, IpAddr::from(b.address), b.port)
                }
                Op::V4(_) | Op::V6(_) | Op::PutSlot(..) | Op::DeleteSlot(_) => continue,
            };
            let identity = (service, address, port);
            if let Some(known) = self.used.insert((id, epoch), identity) {
                prop_assert_eq!(&known, &identity, "backend {} epoch {}", id, epoch);
            }
            if let Some((before, holder)) = self.holders.insert(id, (epoch, identity)) {
                prop_assert!(holder == identity || epoch > before, "an epoch went back");
            }
        }
        Ok(())
    }
}

fn tell(
    bench: &mut Bench,
    (before, world): (&[Object], &World),
    telling: &Telling,
    register: &mut Register,
) -> Result<(), TestCaseError> {
    let changes = world.changes_from(before);
    let addresses = || world.addresses.clone();
    match telling {
        Telling::Whole | Telling::Restarted => {
            bench.reconciler.receive_addresses(addresses());
            bench.take(Update::reset(world.objects.clone()));
        }
        Telling::Pieces(seed) => {
            let half = changes.len() / 2;
            for (at, change) in shuffled(changes, *seed).into_iter().enumerate() {
                if at == half {
                    bench.reconciler.receive_addresses(addresses());
                }
                bench.take(Update::Changes(vec![change]));
                register.check(bench)?;
            }
            bench.reconciler.receive_addresses(addresses());
            bench.sync();
        }
        Telling::Services => {
            let mut by_service: BTreeMap<Option<String>, Vec<Change>> = BTreeMap::new();
            for change in changes {
                by_service
                    .entry(concerns(&change))
                    .or_default()
                    .push(change);
            }
            for changes in by_service.into_values().rev() {
                bench.take(Update::Changes(changes));
                register.check(bench)?;
            }
            bench.reconciler.receive_addresses(addresses());
            bench.sync();
        }
    }
    register.check(bench)
}

fn run(settings: &Settings, history: &[(World, Telling)]) -> Result<(), TestCaseError> {
    let mut register = Register::default();
    let mut bench = Bench::with(settings.clone(), TableContent::default(), 1);
    bench.take(Update::reset(Vec::new()));
    let mut told: &[Object] = &[];
    for ((world, telling), stamp) in history.iter().zip((1_000..).step_by(1_000)) {
        if matches!(telling, Telling::Restarted) {
            bench = Bench::with(settings.clone(), bench.tables.content().clone(), stamp);
        }
        tell(&mut bench, (told, world), telling, &mut register)?;
        told = &world.objects;
        prop_assert!(!bench.reconciler.is_pending());
        let fresh = world.listed(settings);
        prop_assert_eq!(bench.text_without_ids(), fresh.text_without_ids());
        let warnings = |bench: &Bench| -> BTreeSet<(ServiceKey, String)> {
            let all = bench.reconciler.warnings();
            all.map(|(key, w)| (key.clone(), w.to_string())).collect()
        };
        prop_assert_eq!(warnings(&bench), warnings(&fresh));

        let content = bench.tables.content().clone();
        let mut restarted = Bench::with(settings.clone(), content, stamp + 500);
        restarted
            .reconciler
            .receive_addresses(world.addresses.clone());
        restarted.take(Update::reset(world.objects.clone()));
        prop_assert_eq!(restarted.writes(), Vec::<String>::new());
        prop_assert_eq!(restarted.text(), bench.text());
    }
    bench.take(Update::reset(Vec::new()));
    prop_assert!(bench.tables.content().is_empty(), "ends empty");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_leads_to_the_tables_of_its_last_world(
        settings in any_settings(),
        history in prop::collection::vec((world(), telling()), 1..5),
    ) {
        run(&settings, &history)?;
    }
}
