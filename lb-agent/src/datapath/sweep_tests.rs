// SPDX-License-Identifier: MIT OR Apache-2.0
//! When flows end, what is a pair, and what happens to flows that come back to life meanwhile.
//!
//! **Invariant:** the tables in memory answer like the kernel's, between two reads of which packets
//! may come.

use std::cell::{Cell, RefCell};

use lb_common::abi::Hook;

use super::*;

const REPLIED: u8 = ConnState::REPLIED;
const CLIENT: [u8; 4] = [10, 0, 0, 9];
const FRONTEND: [u8; 4] = [10, 0, 1, 1];
const OLD: [u8; 4] = [10, 0, 0, 5];
const NEW: [u8; 4] = [10, 0, 0, 6];

const TIMEOUTS: Timeouts = Timeouts {
    tcp_established: 86_400,
    tcp_close_wait: 3600,
    udp: 30,
    udp_stream: 180,
};

/// A moment of a kernel with one tick in a second.
fn at(now: u32) -> Moment {
    Moment {
        now,
        hz: 1,
        timeouts: TIMEOUTS,
        over_secs: TCP_OVER_SECS,
        port_secs: TIME_WAIT_SECS,
    }
}

type Key = ConnKey<[u8; 4]>;
type Entry = Conn<[u8; 4]>;

/// Entries in memory, one of which may be used at some read.
#[derive(Default)]
struct Memory {
    entries: RefCell<Vec<(Key, Entry)>>,
    reads: Cell<usize>,
    use_at: Option<(usize, Key, u32)>,
}

impl Memory {
    fn put(&mut self, (key, conn): (Key, Entry)) {
        self.entries.get_mut().push((key, conn));
    }

    fn has(&self, key: &Key) -> bool {
        self.entries.borrow().iter().any(|(k, _)| k == key)
    }
}

impl Entries<[u8; 4]> for Memory {
    fn lookup(&self, key: &Key) -> Result<Option<Entry>, DatapathError> {
        let mut entries = self.entries.borrow_mut();
        if let Some((read, used, now)) = self.use_at
            && read == self.reads.get()
        {
            for (_, conn) in entries.iter_mut().filter(|(k, _)| *k == used) {
                conn.last_seen = now;
            }
        }
        self.reads.set(self.reads.get() + 1);
        let found = entries.iter().find(|(k, _)| k == key);
        Ok(found.map(|(_, conn)| *conn))
    }

    fn remove(&mut self, key: &Key, _: &Entry) -> Result<(), DatapathError> {
        self.entries.get_mut().retain(|(k, _)| k != key);
        Ok(())
    }
}

/// The request entry of the client's flow to `backend`.
fn request(backend: [u8; 4], last_seen: u32) -> (Key, Entry) {
    let key = ConnKey::new((CLIENT, 4000), (FRONTEND, 53), proto::UDP, Hook::Ingress);
    let mut conn = Conn::new(Action::Dnat, (backend, 53), 4000, last_seen);
    conn.reply_seen = REPLIED;
    (key, conn)
}

/// Its reply entry.
fn reply(backend: [u8; 4], last_seen: u32) -> (Key, Entry) {
    let (key, conn) = request(backend, last_seen);
    let mut reply = Conn::new(Action::UndoDnat, (FRONTEND, 53), 4000, last_seen);
    reply.reply_seen = REPLIED;
    (conn.pair_key(&key), reply)
}

#[test]
fn each_state_has_its_own_timeout() {
    let over = REPLIED | ConnState::CLOSED;
    let timeouts = Timeouts {
        tcp_established: 1000,
        tcp_close_wait: 500,
        udp: 20,
        udp_stream: 40,
    };
    for (protocol, state, timeout_secs) in [
        (proto::TCP, 0, TCP_HALF_OPEN_SECS),
        (proto::TCP, ConnState::FIN_REQUEST, TCP_HALF_OPEN_SECS),
        (proto::TCP, REPLIED, 1000),
        (proto::TCP, REPLIED | ConnState::FIN_REQUEST, 500),
        (proto::TCP, REPLIED | ConnState::FIN_REPLY, 500),
        (proto::TCP, over, 30),
        (proto::TCP, over | ConnState::RESET, TCP_OVER_SECS),
        (proto::TCP, ConnState::RESET, TCP_OVER_SECS),
        (proto::UDP, 0, 20),
        (proto::UDP, REPLIED, 40),
    ] {
        assert!(!timeouts.has_expired(protocol, state, (10, 30), timeout_secs));
        assert!(timeouts.has_expired(protocol, state, (10, 30), timeout_secs + 1));
    }
}

#[test]
fn ages_are_right_across_the_end_of_the_counter_and_never_negative() {
    assert_eq!(age_secs(5_000, 2_000, 1_000), 3);
    assert_eq!(age_secs(1_000, u32::MAX - 999, 1_000), 2);
    assert_eq!(age_secs(1_000, 1_250, 250), 0);
    assert_eq!(age_secs(1_000, 0, 0), 1_000);
}

#[test]
fn the_younger_direction_keeps_a_flow_alive() {
    let key = ConnKey::new(
        ([10, 0, 0, 9], 1),
        ([10, 0, 1, 1], 53),
        proto::UDP,
        Hook::Ingress,
    );
    let seen = |last_seen| {
        let mut conn = Conn::new(Action::Dnat, ([10, 0, 0, 5], 53), 1, last_seen);
        conn.reply_seen = REPLIED;
        conn
    };
    let (old, young) = (seen(0), seen(TIMEOUTS.udp_stream));
    let now = TIMEOUTS.udp_stream + 2;
    assert!(is_done(&key, &old, Some(&old), at(now)));
    assert!(!is_done(&key, &old, Some(&young), at(now)));
    assert!(!is_done(&key, &young, Some(&old), at(now)));
    let alone = seen(now - UNPAIRED_SECS);
    assert!(!is_done(&key, &alone, None, at(now)));
    assert!(is_done(&key, &alone, None, at(now + 1)));
}

#[test]
fn the_old_reply_entry_goes_alone_while_its_flow_lives_with_another_backend() {
    let now = 10_000;
    let (stale, living) = (reply(OLD, 0), request(NEW, now));
    let mut flows = Memory::default();
    for entry in [stale, living, reply(NEW, now)] {
        flows.put(entry);
    }
    assert!(remove_done(&mut flows, &stale.0, at(now)).unwrap());
    assert!(!flows.has(&stale.0));
    assert!(flows.has(&living.0) && flows.has(&reply(NEW, now).0));
}

#[test]
fn a_request_entry_stays_when_a_stale_reply_entry_leads_to_it() {
    // Old enough to end with a reply entry, were it its pair, and too young to end alone.
    let now = 10_000;
    let (mut stale, mut living) = (reply(OLD, 0), request(NEW, now - TIMEOUTS.udp - 1));
    (stale.1.reply_seen, living.1.reply_seen) = (0, 0);
    let mut flows = Memory::default();
    flows.put(stale);
    flows.put(living);
    assert!(remove_done(&mut flows, &stale.0, at(now)).unwrap());
    assert!(flows.has(&living.0));
    assert!(!remove_done(&mut flows, &living.0, at(now)).unwrap());
}

#[test]
fn a_flow_that_is_used_while_it_is_being_removed_keeps_its_entries() {
    let now = 10_000;
    let (request, reply) = (request(OLD, 0), reply(OLD, 0));
    for first in [request.0, reply.0] {
        // Reads: the entry, its pair, the reply again, the request again.
        for read in 2..=3 {
            let used = [reply.0, request.0][read - 2];
            let mut flows = Memory {
                use_at: Some((read, used, now)),
                ..Memory::default()
            };
            flows.put(request);
            flows.put(reply);
            assert!(!remove_done(&mut flows, &first, at(now)).unwrap());
            assert!(flows.has(&request.0) && flows.has(&reply.0));
        }
        let mut flows = Memory::default();
        flows.put(request);
        flows.put(reply);
        assert!(remove_done(&mut flows, &first, at(now)).unwrap());
        assert!(!flows.has(&request.0) && !flows.has(&reply.0));
    }
}

#[test]
fn a_reply_entry_that_is_used_after_its_request_entry_has_gone_stays() {
    let now = 10_000;
    let (request, reply) = (request(OLD, 0), reply(OLD, 0));
    let mut flows = Memory {
        use_at: Some((4, reply.0, now)),
        ..Memory::default()
    };
    flows.put(request);
    flows.put(reply);
    assert!(remove_done(&mut flows, &request.0, at(now)).unwrap());
    assert!(flows.has(&reply.0));
}

/// The request entry of the masqueraded way to `backend`, at egress, and its reply entry.
fn masqueraded(backend: [u8; 4], last_seen: u32) -> [(Key, Entry); 2] {
    const NODE: [u8; 4] = [192, 0, 2, 1];
    let key = ConnKey::new((CLIENT, 4000), (backend, 53), proto::UDP, Hook::Egress);
    let mut conn = Conn::new(Action::Snat, (NODE, 61_000), 53, last_seen);
    let mut reply = Conn::new(Action::UndoSnat, (CLIENT, 4000), 53, last_seen);
    (conn.reply_seen, reply.reply_seen) = (REPLIED, REPLIED);
    [(key, conn), (conn.pair_key(&key), reply)]
}

#[test]
fn a_masqueraded_flow_has_two_pairs_that_go_each_for_itself() {
    let now = 10_000;
    for (old, young) in [(0, now), (now, 0)] {
        let pair = masqueraded(OLD, old);
        let other = [request(OLD, young), reply(OLD, young)];
        let mut flows = Memory::default();
        for entry in pair.iter().chain(&other) {
            flows.put(*entry);
        }
        // From each of its ends.
        for (key, _) in &pair {
            let removed = remove_done(&mut flows, key, at(now)).unwrap();
            assert_eq!(
                removed,
                old == 0 && *key == pair[0].0,
                "both go at the first"
            );
        }
        for (key, _) in &pair {
            assert_eq!(flows.has(key), old == now);
        }
        for (key, _) in &other {
            assert!(flows.has(key), "not asked for");
        }
    }
}

#[test]
fn a_masqueraded_pair_goes_request_first_and_stays_when_an_answer_comes() {
    let now = 10_000;
    let [request, reply] = masqueraded(OLD, 0);
    for first in [request.0, reply.0] {
        let mut flows = Memory {
            use_at: Some((2, reply.0, now)),
            ..Memory::default()
        };
        flows.put(request);
        flows.put(reply);
        assert!(!remove_done(&mut flows, &first, at(now)).unwrap());
        assert!(flows.has(&request.0) && flows.has(&reply.0));
        let mut flows = Memory {
            use_at: Some((4, reply.0, now)),
            ..Memory::default()
        };
        flows.put(request);
        flows.put(reply);
        assert!(remove_done(&mut flows, &first, at(now)).unwrap());
        assert!(!flows.has(&request.0) && flows.has(&reply.0));
    }
}

#[test]
fn a_masquerade_port_is_kept_for_as_long_as_a_backend_waits_after_the_end() {
    let with = |seen, (mut key, mut conn): (Key, Entry)| {
        key.proto = proto::TCP;
        (conn.request_seen, conn.reply_seen) = (REPLIED | seen, REPLIED | seen);
        (key, conn)
    };
    for (seen, translated_secs, masqueraded_secs) in [
        (ConnState::CLOSED, TCP_OVER_SECS, TIME_WAIT_SECS),
        (ConnState::RESET, TCP_OVER_SECS, TCP_OVER_SECS),
    ] {
        let pairs = [
            (translated_secs, [request(OLD, 0), reply(OLD, 0)]),
            (masqueraded_secs, masqueraded(OLD, 0)),
        ];
        for (secs, pair) in pairs {
            let pair = pair.map(|entry| with(seen, entry));
            let mut flows = Memory::default();
            for entry in pair {
                flows.put(entry);
            }
            for (key, _) in &pair {
                assert!(!remove_done(&mut flows, key, at(secs)).unwrap());
            }
            assert!(remove_done(&mut flows, &pair[1].0, at(secs + 1)).unwrap());
        }
    }
}

#[test]
fn a_table_that_fills_up_keeps_ports_for_less_long() {
    for (entries, secs) in [(0, 60), (500, 60), (625, 35), (750, 10), (1000, 10)] {
        assert_eq!(port_secs_for(entries, 1000), secs, "{entries} of 1000");
    }
}
