// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Calls of sockets: what they are told, what they are shown, and for how long.
//!
//! **Invariant:** whatever a socket is told, it is shown what it asked for.

use lb_common::abi::proto::{TCP, UDP};
use lb_common::abi::{
    BackendFlags, FrontendFlags, FrontendKey, Kind, Policy, PrefixTable, ServiceStats, SlotKey,
    SocketKey, SocketPeer,
};
use lb_common::{Reason, V4, V6};

use super::world::{BACKENDS, CLIENTS, End, FRONTENDS, Made, PORT, TARGET, World};
use crate::packet::tcp::SYN;
use crate::path::{Call, Verdict, connect, send, shown};
use crate::tables::{Caller, InsertError, Sockets};

both! {
    a_socket_is_told_a_backend_and_shown_its_frontend
    datagrams_of_a_socket_stay_with_a_backend_while_it_is_right
    a_silent_socket_is_balanced_again
    datagrams_leave_a_backend_that_is_gone
    each_frontend_of_a_socket_leads_back_by_its_backend
    of_two_frontends_of_one_backend_the_one_asked_last_is_shown
    a_way_back_that_gave_way_is_written_again
    who_is_refused_is_told_by_the_reason
    affinity_is_shared_with_packets_of_the_node_s_address
    a_bound_source_counts_for_ranges
    node_ports_answer_at_loopback_for_the_node_alone
    a_pod_s_socket_is_left_to_its_packets_where_these_are_masqueraded_or_judged_by_source
    pods_keep_their_backends_by_their_namespace
    what_is_no_frontend_passes
    a_frontend_that_drains_keeps_what_it_has
}

const NODE: u8 = 5;
const SECOND: u32 = 250;

impl<F: Made> Sockets<F> for World<F> {
    fn cookie(&self) -> u64 {
        self.cookie
    }
    fn bound(&self) -> F::Addr {
        self.bound
    }
    fn peer(&self, key: &SocketKey<F::Addr>) -> Option<&SocketPeer<F::Addr>> {
        self.peers.get(key)
    }
    fn keep_peer(
        &mut self,
        key: &SocketKey<F::Addr>,
        peer: &SocketPeer<F::Addr>,
    ) -> Result<(), InsertError> {
        self.peers.insert(*key, *peer);
        Ok(())
    }
    fn touch_peer(&mut self, key: &SocketKey<F::Addr>, now: u32, version: u32) {
        if let Some(peer) = self.peers.get_mut(key) {
            (peer.last_used, peer.validated) = (now, version);
        }
    }
    fn idle_secs(&self) -> u32 {
        180
    }
}

/// What makes a backend one that is gone.
type Loss<F> = fn(&mut World<F>, End<F>);

/// How a call ends: where it goes.
type Told<F> = Result<Option<End<F>>, Reason>;

fn call<F: Made>(
    world: &mut World<F>,
    step: fn(&mut World<F>, &mut Call<F::Addr>, Caller) -> Verdict,
    caller: Caller,
    (to, proto): (End<F>, u8),
) -> Told<F> {
    let mut call = Call::new(to.0, to.1, proto);
    match step(world, &mut call, caller) {
        Verdict::Pass => Ok(None),
        Verdict::Changed => Ok(Some((call.peer.address, call.peer.port))),
        Verdict::Refused(reason) => Err(reason),
    }
}

fn connects<F: Made>(world: &mut World<F>, to: End<F>, proto: u8) -> Told<F> {
    call(world, connect::<F, World<F>>, Caller::Node, (to, proto))
}

fn sends<F: Made>(world: &mut World<F>, to: End<F>) -> Told<F> {
    call(world, send::<F, World<F>>, Caller::Node, (to, UDP))
}

/// What the socket is shown in the place of a peer; none: the peer itself.
fn shows<F: Made>(world: &mut World<F>, from: End<F>, proto: u8) -> Option<End<F>> {
    let step = |world: &mut World<F>, call: &mut Call<F::Addr>, _| shown(world, call);
    call(world, step, Caller::Node, (from, proto)).unwrap()
}

fn backend<F: Made>(pod: u8) -> End<F> {
    (F::address(BACKENDS, pod), TARGET)
}

fn frontend<F: Made>(world: &mut World<F>, at: End<F>, proto: u8) -> &mut lb_common::abi::Frontend {
    let key = FrontendKey::new(at.0, at.1, proto);
    world.frontends.get_mut(&key).unwrap()
}

/// The address that loopback is in a family.
fn loopback<F: Made>() -> F::Addr {
    let mut words = [0; 4];
    words[if F::IS_V6 { 3 } else { 0 }] = if F::IS_V6 { 1_u32 } else { 0x7f00_0001 }.to_be();
    lb_common::Address::from_words(words)
}

mod case {
    use super::*;

    pub(super) fn a_socket_is_told_a_backend_and_shown_its_frontend<F: Made>() {
        for proto in [TCP, UDP] {
            let mut world = World::<F>::new();
            let vip = world.service(1, proto, &[1, 2]);
            for (cookie, pod) in [(1, 1), (2, 2), (3, 1)] {
                world.cookie = cookie;
                assert_eq!(
                    connects(&mut world, vip, proto),
                    Ok(Some(backend::<F>(pod)))
                );
                assert_eq!(shows(&mut world, backend::<F>(pod), proto), Some(vip));
            }
            // What another socket was told is nothing to this one.
            world.cookie = 4;
            assert_eq!(shows(&mut world, backend::<F>(1), proto), None);
            let opened = ServiceStats {
                opened: 3,
                rejected: 0,
            };
            assert_eq!(world.stats[&1], opened);
            assert!(world.half_open.is_empty(), "no packet, no flow");
        }
    }

    pub(super) fn datagrams_of_a_socket_stay_with_a_backend_while_it_is_right<F: Made>() {
        for version in [0, 7] {
            let mut world = World::<F>::new();
            world.version = version;
            let vip = world.service(1, UDP, &[1, 2, 3]);
            let first = sends(&mut world, vip).unwrap().unwrap();
            for _ in 0..5 {
                world.now += 10 * SECOND;
                assert_eq!(sends(&mut world, vip), Ok(Some(first)));
                assert_eq!(shows(&mut world, first, UDP), Some(vip));
            }
            // Something of the service changes, but not this backend.
            world.version += 1;
            assert_eq!(sends(&mut world, vip), Ok(Some(first)));
            world.cookie = 2;
            assert_ne!(sends(&mut world, vip), Ok(Some(first)), "another socket");
            assert_eq!(world.stats[&1].opened, 2);
            assert_eq!(world.count(Reason::Reselected), 0);
        }
    }

    pub(super) fn a_silent_socket_is_balanced_again<F: Made>() {
        for version in [0, 7] {
            let mut world = World::<F>::new();
            world.version = version;
            let vip = world.service(1, UDP, &[1, 2]);
            assert_eq!(sends(&mut world, vip), Ok(Some(backend::<F>(1))));
            world.now += 179 * SECOND;
            assert_eq!(sends(&mut world, vip), Ok(Some(backend::<F>(1))));
            world.now += 180 * SECOND;
            assert_eq!(sends(&mut world, vip), Ok(Some(backend::<F>(2))));
            assert!(world.counts.is_empty(), "nothing was wrong with the first");
        }
    }

    pub(super) fn datagrams_leave_a_backend_that_is_gone<F: Made>() {
        let ends: [Loss<F>; 4] = [
            // Its entry is gone, or another's, or its frontend says that all must choose again.
            |world, _| _ = world.backends.remove(&101),
            |world, _| world.backends.get_mut(&101).unwrap().epoch = 9,
            |world, _| world.backends.get_mut(&101).unwrap().service = 9,
            |world, vip| frontend(world, vip, UDP).generation = 2,
        ];
        for end in ends {
            let mut world = World::<F>::new();
            world.version = 1;
            let vip = world.service(1, UDP, &[1, 2]);
            assert_eq!(sends(&mut world, vip), Ok(Some(backend::<F>(1))));
            end(&mut world, vip);
            world.version = 2;
            assert_eq!(sends(&mut world, vip), Ok(Some(backend::<F>(2))));
            assert_eq!(world.count(Reason::Reselected), 1);
            // A late answer of the first one is still shown as the frontend's.
            assert_eq!(shows(&mut world, backend::<F>(1), UDP), Some(vip));
        }
    }

    pub(super) fn each_frontend_of_a_socket_leads_back_by_its_backend<F: Made>() {
        let mut world = World::<F>::new();
        let [first, second] = [1, 2].map(|n| world.service(n, UDP, &[n]));
        for _ in 0..2 {
            assert_eq!(sends(&mut world, first), Ok(Some(backend::<F>(1))));
            assert_eq!(sends(&mut world, second), Ok(Some(backend::<F>(2))));
            assert_eq!(shows(&mut world, backend::<F>(1), UDP), Some(first));
            assert_eq!(shows(&mut world, backend::<F>(2), UDP), Some(second));
        }
        // Of the same number over TCP nothing is known.
        assert_eq!(shows(&mut world, backend::<F>(1), TCP), None);
    }

    pub(super) fn of_two_frontends_of_one_backend_the_one_asked_last_is_shown<F: Made>() {
        for version in [0, 1] {
            let mut world = World::<F>::new();
            world.version = version;
            let frontends = [1, 2].map(|n| world.service(n, UDP, &[9]));
            for frontend in [frontends; 3].concat() {
                assert_eq!(sends(&mut world, frontend), Ok(Some(backend::<F>(9))));
                assert_eq!(shows(&mut world, backend::<F>(9), UDP), Some(frontend));
            }
        }
    }

    pub(super) fn a_way_back_that_gave_way_is_written_again<F: Made>() {
        let mut world = World::<F>::new();
        world.version = 1;
        let vip = world.service(1, UDP, &[1]);
        sends(&mut world, vip).unwrap();
        world.peers.retain(|key, _| key.address == vip.0);
        assert_eq!(shows(&mut world, backend::<F>(1), UDP), None);
        sends(&mut world, vip).unwrap();
        assert_eq!(shows(&mut world, backend::<F>(1), UDP), Some(vip));
    }

    pub(super) fn who_is_refused_is_told_by_the_reason<F: Made>() {
        let mut world = World::<F>::new();
        let vip = world.service(1, UDP, &[]);
        assert_eq!(connects(&mut world, vip, UDP), Err(Reason::NoBackend));
        assert_eq!(sends(&mut world, vip), Err(Reason::NoBackend));
        frontend(&mut world, vip, UDP).node_policy = Policy::DROP_IF_EMPTY;
        assert_eq!(connects(&mut world, vip, UDP), Err(Reason::PolicyDrop));
        assert_eq!(world.stats[&1].rejected, 3);
        assert!(world.peers.is_empty());
    }

    pub(super) fn affinity_is_shared_with_packets_of_the_node_s_address<F: Made>() {
        let mut world = World::<F>::new();
        let vip = world.service(1, TCP, &[1, 2, 3]);
        frontend(&mut world, vip, TCP).affinity_secs = 10;
        let node = F::address(NODE, 1);
        world
            .prefixes
            .insert(PrefixTable::PRIMARY, [(None, node)].into());
        let (_, first) = world.request((node, 40_000), vip, TCP, SYN).unwrap();
        for cookie in 1..4 {
            world.cookie = cookie;
            world.now += 9 * SECOND;
            assert_eq!(connects(&mut world, vip, TCP), Ok(Some(first)));
        }
        world.bound = F::address(NODE, 2);
        assert_ne!(connects(&mut world, vip, TCP), Ok(Some(first)));
        world.bound = node;
        world.now += 10 * SECOND;
        assert_ne!(connects(&mut world, vip, TCP), Ok(Some(first)));
    }

    pub(super) fn a_bound_source_counts_for_ranges<F: Made>() {
        let mut world = World::<F>::new();
        let vip = world.service(1, TCP, &[1]);
        frontend(&mut world, vip, TCP).flags = FrontendFlags::SOURCE_RANGES;
        let [primary, other] = [1, 2].map(|n| F::address(NODE, n));
        world
            .prefixes
            .insert(PrefixTable::PRIMARY, [(None, primary)].into());
        world.admitted.insert((1, other));
        assert_eq!(connects(&mut world, vip, TCP), Err(Reason::SourceRange));
        world.bound = other;
        assert_eq!(connects(&mut world, vip, TCP), Ok(Some(backend::<F>(1))));
        world.admitted.insert((1, primary));
        world.bound = loopback::<F>();
        assert_eq!(connects(&mut world, vip, TCP), Ok(Some(backend::<F>(1))));
    }

    pub(super) fn node_ports_answer_at_loopback_for_the_node_alone<F: Made>() {
        let mut world = World::<F>::new();
        world.service(1, TCP, &[1]);
        let key = FrontendKey::new(F::address(FRONTENDS, 1), PORT, TCP);
        let mut entry = world.frontends.remove(&key).unwrap();
        entry.kind = Kind::NodePort as u8;
        let node = F::address(NODE, 1);
        let at = |address| (address, 30_080);
        world
            .frontends
            .insert(FrontendKey::new(node, 30_080, TCP), entry);
        let zero = <F::Addr as lb_common::Address>::ZERO;
        let places = [at(loopback::<F>()), at(zero)];
        for place in places {
            assert_eq!(
                connects(&mut world, place, TCP),
                Ok(None),
                "not served there"
            );
        }
        world
            .prefixes
            .insert(PrefixTable::LOOPBACK, [(None, node)].into());
        for place in places {
            assert_eq!(connects(&mut world, place, TCP), Ok(Some(backend::<F>(1))));
            assert_eq!(shows(&mut world, backend::<F>(1), TCP), Some(place));
            let pod = call(&mut world, connect, Caller::Pod(9), (place, TCP));
            assert_eq!(pod, Ok(None));
        }
        // An external address of the node with that port is none of loopback's.
        entry.kind = Kind::ExternalIp as u8;
        world
            .frontends
            .insert(FrontendKey::new(node, 30_080, TCP), entry);
        assert_eq!(connects(&mut world, places[0], TCP), Ok(None));
    }

    pub(super) fn a_pod_s_socket_is_left_to_its_packets_where_these_are_masqueraded_or_judged_by_source<
        F: Made,
    >() {
        let mut world = World::<F>::new();
        let vip = world.service(1, TCP, &[1]);
        let dial = |world: &mut World<F>| call(world, connect, Caller::Pod(9), (vip, TCP));
        frontend(&mut world, vip, TCP).pod_policy = Policy::SNAT_ALWAYS;
        assert_eq!(dial(&mut world), Ok(None));
        frontend(&mut world, vip, TCP).pod_policy = Policy::SNAT_REMOTE;
        assert_eq!(dial(&mut world), Ok(Some(backend::<F>(1))));
        frontend(&mut world, vip, TCP).flags = FrontendFlags::SOURCE_RANGES;
        assert_eq!(dial(&mut world), Ok(None));
    }

    pub(super) fn pods_keep_their_backends_by_their_namespace<F: Made>() {
        let mut world = World::<F>::new();
        let vip = world.service(1, TCP, &[1, 2]);
        // Only the first is on this node, and pods choose from this node's.
        world.backends.get_mut(&101).unwrap().flags |= BackendFlags::IN_LOCAL_LIST;
        world
            .slots
            .insert(SlotKey::new(1, lb_common::abi::List::Local, 0), 101);
        let entry = frontend(&mut world, vip, TCP);
        (entry.affinity_secs, entry.local_count) = (10, 1);
        let dial = |world: &mut World<F>, pod| {
            let told = call(world, connect, Caller::Pod(pod), (vip, TCP));
            told.unwrap().unwrap()
        };
        let first = dial(&mut world, 1);
        assert_eq!(dial(&mut world, 1), first);
        assert_ne!(dial(&mut world, 2), first);
        assert_eq!(world.affinities.len(), 2);
        frontend(&mut world, vip, TCP).pod_policy = Policy::LOCAL_LIST;
        for pod in [1, 2] {
            assert_eq!(dial(&mut world, pod), backend::<F>(1));
        }
    }

    pub(super) fn what_is_no_frontend_passes<F: Made>() {
        let mut world = World::<F>::new();
        world.service(1, TCP, &[1]);
        let elsewhere = (F::address(CLIENTS, 1), PORT);
        assert_eq!(connects(&mut world, elsewhere, TCP), Ok(None));
        assert_eq!(sends(&mut world, elsewhere), Ok(None));
        assert_eq!(shows(&mut world, elsewhere, TCP), None);
        assert!(world.peers.is_empty() && world.counts.is_empty());
    }

    pub(super) fn a_frontend_that_drains_keeps_what_it_has<F: Made>() {
        let mut world = World::<F>::new();
        let vip = world.service(1, UDP, &[1, 2, 3]);
        let first = sends(&mut world, vip).unwrap();
        frontend(&mut world, vip, UDP).flags = FrontendFlags::DRAINING;
        world.version += 1;
        assert_eq!(sends(&mut world, vip), Ok(first));
        assert_eq!(shows(&mut world, first.unwrap(), UDP), Some(vip));
        world.cookie = 2;
        assert_eq!(sends(&mut world, vip), Ok(None));
        assert_eq!(connects(&mut world, vip, UDP), Ok(None));
        assert_eq!(world.stats[&1].opened, 1);
    }
}
