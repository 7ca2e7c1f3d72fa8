// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The path against a plain model of what address translation is, for any sequence of packets and
//! of changes of the Services.
//!
//! **Invariant under test:** an answer arrives exactly as the answer to what was sent; no two living
//! flows look the same to a backend; TCP keeps its backend for life, UDP only while it is there; a
//! client keeps its backend where that is asked for; a deleted Service is nobody's business.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::proto::{TCP, UDP};
use lb_common::abi::{BackendFlags, Frontend, FrontendKey, Policy};
use lb_common::{V4, V6};
use proptest::prelude::*;

use super::nat::{back, node, set_policy, there, with_node};
use super::world::{BACKENDS, CLIENTS, End, Made, World};
use crate::packet::tcp::{ACK, RST, SYN};

/// Who dials what: client, port, service.
type Who = (u8, u16, u8);

#[derive(Clone, Debug)]
enum Step {
    /// The client sends, and is answered.
    Talk(Who),
    /// The client resets what it has.
    Reset(Who),
    /// The service has these pods from now on; it is made anew if it was deleted.
    Pods(u8, BTreeSet<u8>),
    /// The service is no more.
    Delete(u8),
    /// Clients of a service of TCP keep their backend for so many seconds; 0: they do not.
    Affinity(u8, u32),
    /// The policy of all frontends.
    Policy(u8),
    /// Time passes.
    Wait(u32),
}

fn who() -> impl Strategy<Value = Who> {
    // Two of the clients are pods that serve; services 1 and 2 are of TCP, the others of UDP.
    (1_u8..4, 20_000_u16..20_003, 1_u8..5)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => who().prop_map(Step::Talk),
        2 => who().prop_map(Step::Reset),
        1 => (1_u8..5, prop::collection::btree_set(1_u8..5, 1..4))
            .prop_map(|(service, pods)| Step::Pods(service, pods)),
        1 => (1_u8..5).prop_map(Step::Delete),
        1 => (1_u8..3, prop::sample::select(vec![0, 4, 60]))
            .prop_map(|(service, secs)| Step::Affinity(service, secs)),
        1 => prop::sample::select(vec![0, Policy::SNAT_REMOTE, Policy::SNAT_ALWAYS])
            .prop_map(Step::Policy),
        1 => (1_u32..2000).prop_map(Step::Wait),
    ]
}

const fn proto_of(service: u8) -> u8 {
    if service <= 2 { TCP } else { UDP }
}

fn client<F: Made>((client, port, _): Who) -> End<F> {
    // Pods 1 and 2 dial as well as serve.
    let group = if client <= 2 { BACKENDS } else { CLIENTS };
    (F::address(group, client), port)
}

struct Model<F: Made> {
    world: World<F>,
    frontends: BTreeMap<u8, End<F>>,
    pods: BTreeMap<u8, BTreeSet<u8>>,
    policy: u8,
    epoch: u32,
    /// What the backend sees of each living flow.
    seen: BTreeMap<Who, (End<F>, End<F>)>,
    deleted: BTreeSet<u8>,
    /// Seconds for which clients of a service keep their backend.
    affinity: BTreeMap<u8, u32>,
    /// By client and service: the backend, its epoch, and when the last flow began.
    kept: BTreeMap<(u8, u8), (End<F>, u32, u32)>,
}

impl<F: Made> Model<F> {
    fn new() -> Self {
        let mut model = Self {
            world: with_node(),
            frontends: BTreeMap::new(),
            pods: BTreeMap::new(),
            policy: 0,
            epoch: 0,
            seen: BTreeMap::new(),
            deleted: BTreeSet::new(),
            affinity: BTreeMap::new(),
            kept: BTreeMap::new(),
        };
        for service in 1..5 {
            model.serve(service, BTreeSet::from([1, 2, 3]));
        }
        model
    }

    /// Every backend anew: an id that is used again has another epoch.
    fn serve(&mut self, service: u8, pods: BTreeSet<u8>) {
        let before = self.pods.get(&service).cloned().unwrap_or_default();
        let ids = u32::from(service) * 100;
        self.epoch += 1;
        let kept: BTreeMap<_, _> = before
            .intersection(&pods)
            .filter_map(|pod| {
                let id = ids + u32::from(*pod);
                self.world.backends.get(&id).map(|backend| (id, *backend))
            })
            .collect();
        self.world
            .backends
            .retain(|_, backend| backend.service != u32::from(service));
        let list: Vec<u8> = pods.iter().copied().collect();
        let frontend = self.world.service(service, proto_of(service), &list);
        for (id, backend) in &mut self.world.backends {
            if backend.service != u32::from(service) {
                continue;
            }
            backend.epoch = self.epoch;
            // Odd pods run on this node.
            if id % 2 == 1 {
                backend.flags |= BackendFlags::ON_THIS_NODE;
            }
        }
        self.world.backends.extend(kept);
        self.world.version += 1;
        self.frontends.insert(service, frontend);
        self.pods.insert(service, pods);
        self.deleted.remove(&service);
        set_policy(&mut self.world, self.policy);
        self.set_affinity(service);
    }

    fn frontend(&mut self, service: u8) -> Option<&mut Frontend> {
        let (address, port) = self.frontends[&service];
        let key = FrontendKey::new(address, port, proto_of(service));
        self.world.frontends.get_mut(&key)
    }

    fn set_affinity(&mut self, service: u8) {
        let secs = self.affinity.get(&service).copied().unwrap_or_default();
        if let Some(frontend) = self.frontend(service) {
            frontend.affinity_secs = secs;
        }
    }

    /// As the agent does it: the frontend first, then what it leads to.
    fn delete(&mut self, service: u8) {
        let (address, port) = self.frontends[&service];
        let key = FrontendKey::new(address, port, proto_of(service));
        self.world.frontends.remove(&key);
        let id = u32::from(service);
        self.world.slots.retain(|slot, _| slot.service != id);
        self.world
            .backends
            .retain(|_, backend| backend.service != id);
        self.world.version += 1;
        self.pods.insert(service, BTreeSet::new());
        self.deleted.insert(service);
        if proto_of(service) == UDP {
            self.seen.retain(|who, _| who.2 != service);
        }
    }

    /// A flow began at this backend: it is the one that the client keeps, if it keeps one.
    fn keep(&mut self, who: Who, backend: End<F>) -> Result<(), TestCaseError> {
        let secs = self.affinity.get(&who.2).copied().unwrap_or_default();
        if secs == 0 || proto_of(who.2) == UDP {
            return Ok(());
        }
        let now = self.world.now;
        let of = u32::from(who.2);
        let mut all = self.world.backends.values();
        let found = all.find(|b| b.service == of && (b.address, b.port) == backend);
        let epoch = found.map_or(0, |found| found.epoch);
        let alive = |(kept, of_kept, since): &(End<F>, u32, u32)| {
            let mut all = self.world.backends.values();
            now - since < secs * 250
                && all
                    .any(|b| b.service == of && b.epoch == *of_kept && (b.address, b.port) == *kept)
        };
        if let Some(kept) = self.kept.get(&(who.0, who.2)).filter(|kept| alive(kept)) {
            prop_assert_eq!(kept.0, backend, "{:?} keeps its backend", who);
        }
        self.kept.insert((who.0, who.2), (backend, epoch, now));
        Ok(())
    }

    fn talk(&mut self, who: Who) -> Result<(), TestCaseError> {
        let service = who.2;
        let (proto, to) = (proto_of(service), self.frontends[&service]);
        let from = client::<F>(who);
        let known = self.seen.get(&who).copied();
        let flags = if proto == UDP || known.is_some() {
            ACK
        } else {
            SYN
        };
        let flags = if proto == UDP { 0 } else { flags };
        let seen = there(&mut self.world, from, to, (proto, flags));
        let Ok(seen) = seen else {
            return Err(TestCaseError::fail(format!("{who:?} is refused: {seen:?}")));
        };
        if known.is_none() && self.deleted.contains(&service) {
            prop_assert_eq!(seen, (from, to), "nobody's business: {:?}", who);
            return Ok(());
        }
        if known.is_none() {
            self.keep(who, seen.1)?;
        }
        if proto == TCP
            && let Some(known) = known
        {
            prop_assert_eq!(seen, known, "a connection keeps all it has: {:?}", who);
        }
        if known.is_none() || proto == UDP {
            self.check_choice(who, seen)?;
        }
        let shared = self
            .seen
            .iter()
            .find(|(other, ends)| **other != who && **ends == seen && proto_of(other.2) == proto);
        prop_assert!(shared.is_none(), "{who:?} and {shared:?} look the same");
        self.seen.insert(who, seen);
        let answer = if flags == SYN { SYN | ACK } else { flags };
        let arrived = back(&mut self.world, seen.1, seen.0, (proto, answer));
        prop_assert_eq!(arrived, Ok((to, from)), "the answer to {:?}", who);
        if flags == SYN {
            let again = there(&mut self.world, from, to, (proto, ACK));
            prop_assert_eq!(again, Ok(seen), "the handshake's end of {:?}", who);
        }
        Ok(())
    }

    /// The backend is one of the service's, and sees whom the policy says.
    fn check_choice(
        &self,
        who: Who,
        (source, backend): (End<F>, End<F>),
    ) -> Result<(), TestCaseError> {
        let pod = self.pods[&who.2]
            .iter()
            .copied()
            .find(|pod| F::address(BACKENDS, *pod) == backend.0);
        let Some(pod) = pod else {
            return Err(TestCaseError::fail(format!("{who:?} reaches {backend:?}")));
        };
        let from = client::<F>(who);
        // A flow of UDP keeps what it was told when it began.
        if proto_of(who.2) == TCP {
            let remote = pod % 2 == 0;
            let masqueraded = backend.0 == from.0
                || self.policy & Policy::SNAT_ALWAYS != 0
                || self.policy & Policy::SNAT_REMOTE != 0 && remote;
            let expected = if masqueraded { node::<F>() } else { from.0 };
            prop_assert_eq!(source.0, expected, "the source of {:?}", who);
        }
        Ok(())
    }

    fn reset(&mut self, who: Who) -> Result<(), TestCaseError> {
        if proto_of(who.2) == UDP {
            return Ok(());
        }
        let Some(seen) = self.seen.remove(&who) else {
            return Ok(());
        };
        let to = self.frontends[&who.2];
        let last = there(&mut self.world, client::<F>(who), to, (TCP, RST));
        prop_assert_eq!(last, Ok(seen));
        Ok(())
    }
}

fn run<F: Made>(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut model = Model::<F>::new();
    for step in steps {
        match step {
            Step::Talk(who) => model.talk(who)?,
            Step::Reset(who) => model.reset(who)?,
            Step::Pods(service, pods) => model.serve(service, pods),
            Step::Delete(service) => model.delete(service),
            Step::Affinity(service, secs) => {
                model.affinity.insert(service, secs);
                model.set_affinity(service);
            }
            Step::Policy(policy) => {
                model.policy = policy;
                set_policy(&mut model.world, policy);
            }
            Step::Wait(ticks) => model.world.now += ticks,
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_restores_what_was_sent_over_ipv4(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        run::<V4>(steps)?;
    }

    #[test]
    fn every_answer_restores_what_was_sent_over_ipv6(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        run::<V6>(steps)?;
    }
}
