// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is summed of entries that come, count, rest and go between walks.
//!
//! **Invariant:** entries count as the packet path does it: `last_seen` moves at most once a second.

use std::collections::BTreeMap;

use lb_common::abi::{Hook, proto};
use proptest::prelude::*;

use super::super::Traffic;
use super::*;

type Key = ConnKey<[u8; 4]>;
type Entry = Conn<[u8; 4]>;

const FRONTEND: [u8; 4] = [10, 0, 1, 1];
const HZ: u32 = 100;
const STARTED: u32 = 10_000;
const WEB: u32 = 7;

fn address(n: u8) -> [u8; 4] {
    [10, 0, 0, n]
}

fn socket(n: u8) -> SocketAddr {
    SocketAddr::new(address(n).into(), 8080)
}

/// The backend ids that the tables name: service id, epoch.
type Backends = Arc<Mutex<BTreeMap<u32, (u32, u32)>>>;

/// A meter, the entries that it reads, and the time.
struct Node {
    traffic: Traffic,
    meter: Meter,
    backends: Backends,
    entries: BTreeMap<Key, Entry>,
    now: u32,
}

impl Node {
    /// The backends 1 and 2 of the service [`WEB`] are known, with epoch 1.
    fn new() -> Self {
        let backends: Backends =
            Arc::new(Mutex::new(BTreeMap::from([(1, (WEB, 1)), (2, (WEB, 1))])));
        let traffic = Traffic::default();
        let asked = Arc::clone(&backends);
        let lookup = Box::new(move |id| asked.lock().unwrap().get(&id).copied());
        let mut meter = traffic.meter_v4(lookup);
        meter.start(STARTED, HZ);
        Self {
            traffic,
            meter,
            backends,
            entries: BTreeMap::new(),
            now: STARTED,
        }
    }

    fn set_backend(&self, id: u32, user: Option<(u32, u32)>) {
        let mut backends = self.backends.lock().unwrap();
        match user {
            Some(user) => backends.insert(id, user),
            None => backends.remove(&id),
        };
    }

    /// Opens a flow to a backend of [`WEB`]; gives its two keys, the request's first.
    fn open(&mut self, port: u16, id: u32, epoch: u32) -> [Key; 2] {
        let backend = (address(u8::try_from(id).unwrap()), 8080);
        let key = ConnKey::new(
            (address(99), port),
            (FRONTEND, 80),
            proto::TCP,
            Hook::Ingress,
        );
        let mut request = Conn::new(Action::Dnat, backend, port, self.now);
        (request.service, request.backend, request.epoch) = (WEB, id, epoch);
        let mut reply = Conn::new(Action::UndoDnat, (FRONTEND, 80), port, self.now);
        (reply.service, reply.backend, reply.epoch) = (WEB, id, epoch);
        let pair = request.pair_key(&key);
        self.entries.insert(key, request);
        self.entries.insert(pair, reply);
        [key, pair]
    }

    fn send(&mut self, key: &Key, packets: u32, bytes: u32) {
        let conn = self.entries.get_mut(key).unwrap();
        conn.packets = conn.packets.wrapping_add(packets);
        let sum = conn.byte_count() + u64::from(bytes);
        conn.bytes = [sum & 0xffff_ffff, sum >> 32].map(|half| u32::try_from(half).unwrap());
        if self.now.wrapping_sub(conn.last_seen) >= HZ {
            conn.last_seen = self.now;
        }
    }

    fn walk(&mut self) {
        self.meter.begin(self.now);
        let keys: Vec<Key> = self.entries.keys().copied().collect();
        let conns: Vec<Entry> = self.entries.values().copied().collect();
        for (keys, conns) in keys.chunks(3).zip(conns.chunks(3)) {
            self.meter.add(keys, conns);
        }
        self.meter.end();
    }

    fn pass(&mut self, seconds: u32) {
        self.now = self.now.wrapping_add(seconds * HZ);
    }

    /// The sweeper removes an entry.
    fn sweep(&mut self, key: &Key) {
        let conn = self.entries.remove(key).unwrap();
        self.meter.close(key, &conn);
        self.meter.forget(key, &conn);
    }

    fn web(&self) -> Totals {
        let read = self.traffic.read();
        read.get(&WEB)
            .map(|traffic| traffic.all)
            .unwrap_or_default()
    }

    /// Walks until one has looked at everything.
    fn check(&mut self) {
        for _ in 0..=CHECK_EVERY {
            self.pass(15);
            self.walk();
        }
    }
}

#[test]
fn both_directions_count_once_and_the_second_pair_of_a_masqueraded_flow_does_not() {
    let mut node = Node::new();
    node.pass(1);
    let [request, reply] = node.open(4000, 1, 1);
    node.send(&request, 3, 300);
    node.send(&reply, 2, 5000);
    for (action, service, hook) in [
        (Action::Snat, WEB, Hook::Egress),
        (Action::UndoSnat, WEB, Hook::Ingress),
        (Action::Dnat, 0, Hook::Ingress),
    ] {
        let key = ConnKey::new((address(99), 4001), (address(1), 8080), proto::TCP, hook);
        let mut other = node.entries[&request];
        (other.action, other.service) = (action as u8, service);
        node.entries.insert(key, other);
    }
    node.walk();
    node.walk();
    let expected = Totals {
        packets: [3, 2],
        bytes: [300, 5000],
        established: 1,
    };
    assert_eq!(node.web(), expected);
    let read = node.traffic.read();
    assert_eq!(read[&WEB].backends, BTreeMap::from([(socket(1), expected)]));
    assert_eq!(read.len(), 1, "a direct flow is of no Service");
}

#[test]
fn an_entry_that_rests_for_long_goes_on_where_it_stopped() {
    let mut node = Node::new();
    node.pass(1);
    let [request, _] = node.open(4000, 1, 1);
    let mut sent = 0;
    // Packets right before and right after a walk, within the second of `last_seen`.
    for rest in [0, 1, 2, 15, 400, 86_400, 30] {
        node.send(&request, 1, 1000);
        node.walk();
        node.send(&request, 1, 1000);
        sent += 2;
        node.pass(rest);
        node.walk();
        assert_eq!(node.web().packets, [sent, 0], "after {rest} s");
        assert_eq!(node.web().bytes, [sent * 1000, 0]);
    }
    node.check();
    node.send(&request, 1, 1000);
    node.walk();
    assert_eq!(node.web().packets, [sent + 1, 0]);
    assert_eq!(node.web().established, 1);
}

#[test]
fn what_an_entry_counted_last_is_in_the_sums_when_it_is_swept() {
    let mut node = Node::new();
    node.pass(1);
    for round in 1..=3 {
        // The same tuple each time.
        let [request, reply] = node.open(4000, 1, 1);
        node.send(&request, 2, 200);
        node.walk();
        node.send(&request, 1, 50);
        node.send(&reply, 1, 70);
        node.sweep(&request);
        node.sweep(&reply);
        assert_eq!(node.web().packets, [3 * round, round]);
        assert_eq!(node.web().bytes, [250 * round, 70 * round]);
        assert_eq!(node.web().established, round);
        assert_eq!(node.meter.bases.len(), 0);
        node.pass(15);
    }
}

#[test]
fn an_entry_that_the_packet_path_removes_loses_what_it_counted_since_the_last_walk() {
    let mut node = Node::new();
    node.pass(1);
    let [request, reply] = node.open(4000, 1, 1);
    node.send(&request, 1000, 1_000_000);
    node.walk();
    node.send(&request, 5, 500);
    node.pass(3);
    // The same tuple, reused: one flow in place of the other.
    let reused = node.open(4000, 1, 1);
    assert_eq!(reused, [request, reply]);
    node.send(&request, 1, 100);
    node.walk();
    assert_eq!(node.web().packets, [1001, 0]);
    assert_eq!(node.web().bytes, [1_000_100, 0]);
    assert_eq!(node.web().established, 2);
    // Also one that counts more than the one before it.
    node.pass(3);
    node.open(4000, 1, 1);
    node.send(&request, 5000, 5_000_000);
    node.walk();
    assert_eq!(node.web().packets, [6001, 0]);
}

#[test]
fn flows_of_an_earlier_agent_count_from_the_first_walk_on() {
    let mut node = Node::new();
    node.now = STARTED - 50;
    let [old, _] = node.open(4000, 1, 1);
    node.send(&old, 100, 10_000);
    node.now = STARTED;
    node.pass(1);
    let [young, _] = node.open(4001, 1, 1);
    node.send(&young, 7, 700);
    node.walk();
    assert_eq!(node.web().packets, [7, 0]);
    assert_eq!(node.web().established, 1);
    node.send(&old, 1, 10);
    node.pass(5);
    node.walk();
    assert_eq!(node.web().packets, [8, 0]);
    node.send(&old, 1, 10);
    node.walk();
    assert_eq!(node.web().packets, [9, 0]);
    assert_eq!(node.web().bytes, [720, 0]);
    // Half of the ticks' range later, when ticks of the start look as if they were to come.
    node.now = STARTED.wrapping_add(1 << 31).wrapping_add(500);
    node.walk();
    let [late, _] = node.open(4002, 1, 1);
    node.send(&late, 1, 10);
    node.walk();
    assert_eq!(node.web().packets, [10, 0]);
}

#[test]
fn the_next_user_of_a_service_id_or_a_backend_id_begins_at_zero() {
    let mut node = Node::new();
    node.pass(1);
    let [old, _] = node.open(4000, 1, 1);
    node.send(&old, 10, 1000);
    node.walk();
    // The Service goes, and its connection lives on.
    node.set_backend(1, None);
    node.traffic.forget(&[WEB]);
    assert_eq!(node.web(), Totals::default());
    node.send(&old, 10, 1000);
    node.pass(2);
    node.walk();
    assert_eq!(node.web(), Totals::default());
    // Another one gets both ids.
    node.set_backend(1, Some((WEB, 2)));
    let [new, _] = node.open(4001, 1, 2);
    node.send(&new, 1, 60);
    node.send(&old, 10, 1000);
    node.pass(2);
    for _ in 0..2 {
        node.walk();
        assert_eq!(node.web().packets, [1, 0]);
        assert_eq!(node.web().bytes, [60, 0]);
        node.check();
    }
    node.sweep(&old);
    assert_eq!(node.web().packets, [1, 0]);
}

#[test]
fn a_backend_that_is_gone_counts_while_it_has_flows_and_then_leaves_its_sums_behind() {
    let mut node = Node::new();
    node.pass(1);
    let [first, _] = node.open(4000, 1, 1);
    let [second, _] = node.open(4001, 2, 1);
    node.send(&first, 5, 500);
    node.send(&second, 6, 600);
    node.walk();
    for id in [1, 2] {
        node.set_backend(id, None);
    }
    node.check();
    node.send(&first, 5, 500);
    node.pass(2);
    node.walk();
    let backends = |node: &Node| {
        let backends = &node.traffic.read()[&WEB].backends;
        let packets = backends
            .iter()
            .map(|(address, totals)| (*address, totals.packets[0]));
        packets.collect::<Vec<_>>()
    };
    assert_eq!(backends(&node), [(socket(1), 10), (socket(2), 6)]);
    // The second address comes back under the same id with another epoch.
    node.set_backend(2, Some((WEB, 9)));
    let [again, _] = node.open(4002, 2, 9);
    node.send(&again, 1, 100);
    node.walk();
    assert_eq!(backends(&node), [(socket(1), 10), (socket(2), 7)]);
    node.entries.retain(|_, conn| conn.epoch == 9);
    node.check();
    assert_eq!(backends(&node), [(socket(2), 7)]);
    assert_eq!(node.web().packets, [17, 0]);
    assert_eq!(node.web().established, 3);
    assert_eq!(node.meter.bases.len(), 2, "of the flow that lives");
}

#[test]
fn a_walk_that_ends_early_loses_nothing() {
    let mut node = Node::new();
    node.pass(1);
    let flows: Vec<_> = (0..10).map(|n| node.open(4000 + n, 1, 1)).collect();
    for round in 1..=100 {
        for [request, _] in &flows {
            node.send(request, 1, 10);
        }
        node.pass(2);
        let keys: Vec<Key> = node.entries.keys().copied().collect();
        let conns: Vec<Entry> = node.entries.values().copied().collect();
        node.meter.begin(node.now);
        node.meter.add(&keys[..7], &conns[..7]);
        node.walk();
        assert_eq!(node.web().packets, [10 * round, 0]);
    }
    assert_eq!(node.web().established, 10);
}

#[test]
fn much_that_the_packet_path_removed_is_forgotten_at_the_next_walk() {
    let mut node = Node::new();
    node.pass(1);
    for n in 0..3000 {
        node.open(n, 1, 1);
    }
    node.walk();
    assert_eq!(node.meter.bases.len(), 6000);
    node.entries.clear();
    node.pass(15);
    node.walk();
    node.walk();
    assert_eq!(node.meter.bases.len(), 0);
    assert_eq!(node.web().established, 3000);
}

proptest! {
    /// Nothing is lost and nothing counts twice while only the sweeper removes entries.
    #[test]
    fn the_sums_are_what_the_entries_have_counted(
        steps in prop::collection::vec((0_u8..8, 0_usize..12, 0_u32..200_000), 1..150),
    ) {
        let mut node = Node::new();
        node.pass(1);
        let mut sent = Totals::default();
        let mut flows: Vec<[Key; 2]> = Vec::new();
        let mut before = Totals::default();
        for (step, which, amount) in steps {
            match step {
                0 => {
                    let free = (4000..4012).find(|port| !flows.iter().any(|f| f[0].source_port == *port));
                    if let Some(port) = free {
                        flows.push(node.open(port, 1 + u32::from(port % 2), 1));
                        sent.established += 1;
                    }
                }
                1..=4 if which < flows.len() => {
                    let by = usize::from(step % 2 == 1);
                    node.send(&flows[which][by], amount % 50, amount);
                    sent.packets[by] += u64::from(amount % 50);
                    sent.bytes[by] += u64::from(amount);
                }
                5 if which < flows.len() => {
                    for key in flows.remove(which) {
                        node.sweep(&key);
                    }
                }
                6 => node.now += amount % (40 * HZ),
                _ => node.walk(),
            }
            let now = node.web();
            prop_assert!(now.packets >= before.packets && now.bytes >= before.bytes);
            before = now;
        }
        for flow in flows {
            for key in flow {
                node.sweep(&key);
            }
        }
        prop_assert_eq!(node.web(), sent);
        prop_assert_eq!(node.meter.bases.len(), 0);
    }
}
