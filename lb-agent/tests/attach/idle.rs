// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the removal of ended flows costs while no flow ends.

use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use lb_agent::datapath::{Clock, DatapathConfig, Pins};
use lb_common::abi::{Action, Backend, BackendState, Conn, ConnKey, Hook, names, proto};

use crate::support::{Agent, on_a_node, wait_until};

const FLOWS: u32 = 65_536;
/// All of one Service.
const BACKENDS: u32 = 1000;
const SERVICE: u32 = 1;
const EPOCH: u32 = 1;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: plain old data without padding.
unsafe impl<T: bytemuck::Pod> aya::Pod for Raw<T> {}

/// Processor time of a thread of this node's agent, in ticks of 10 ms, if it runs: those of other
/// tests may be in the same process, and are in other namespaces.
pub(crate) fn ticks_of(thread: &str) -> Option<u64> {
    let ours = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        if !std::fs::read_link(task.path().join("ns/net")).is_ok_and(|net| net == ours) {
            continue;
        }
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some((head, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        if head.ends_with(&format!("({thread}")) {
            let fields: Vec<u64> = rest.split(' ').filter_map(|f| f.parse().ok()).collect();
            // Behind the state: ten numbers, then user and system time.
            return Some(fields[10] + fields[11]);
        }
    }
    None
}

/// Lets the tables name the backends, so that their flows are summed.
fn put_backends(bpffs: &Path) {
    let map = MapData::from_pin(bpffs.join(names::BACKENDS_V4)).unwrap();
    let map = Map::HashMap(map);
    let mut map = HashMap::<_, u32, Raw<Backend<[u8; 4]>>>::try_from(map).unwrap();
    for id in 1..=BACKENDS {
        let address = [10, 0, 0, 5];
        let backend = Backend::new(SERVICE, EPOCH, address, 8080, BackendState::Active);
        map.insert(id, Raw(backend), 0).unwrap();
    }
}

#[test]
fn flows_that_are_idle_and_not_ended_stay_and_cost_little() {
    on_a_node(|bpffs| {
        Agent::start(DatapathConfig::new(bpffs)).stop();
        let now = Clock::open(&Pins::open(bpffs).unwrap())
            .unwrap()
            .now()
            .unwrap();
        put_backends(bpffs);
        let map = MapData::from_pin(bpffs.join(names::CONNS_V4)).unwrap();
        let map = Map::HashMap(map);
        let mut map =
            HashMap::<_, Raw<ConnKey<[u8; 4]>>, Raw<Conn<[u8; 4]>>>::try_from(map).unwrap();
        for flow in 0..FLOWS {
            let client = (flow | 0x0a00_0000).to_be_bytes();
            let key = ConnKey::new(
                (client, 4000),
                ([10, 0, 1, 1], 80),
                proto::TCP,
                Hook::Ingress,
            );
            let mut conn = Conn::new(Action::Dnat, ([10, 0, 0, 5], 8080), 4000, now);
            conn.reply_seen = lb_common::abi::ConnState::REPLIED;
            (conn.service, conn.epoch) = (SERVICE, EPOCH);
            conn.backend = 1 + flow % BACKENDS;
            let pair = conn.pair_key(&key);
            let mut reply = Conn::new(Action::UndoDnat, ([10, 0, 1, 1], 80), 4000, now);
            reply.reply_seen = conn.reply_seen;
            (reply.service, reply.epoch) = (SERVICE, EPOCH);
            reply.backend = conn.backend;
            map.insert(Raw(key), Raw(conn), 0).unwrap();
            map.insert(Raw(pair), Raw(reply), 0).unwrap();
        }
        let agent = Agent::start(DatapathConfig::new(bpffs));
        let begin = Instant::now();
        // The first pass begins after a second, the second one two seconds after that.
        wait_until("two passes", || begin.elapsed() > Duration::from_secs(6));
        let ticks = ticks_of("lb-sweep").unwrap();
        eprintln!("{FLOWS} idle flows: {} ms in two passes", ticks * 10);
        assert!(ticks < 60, "{ticks} ticks");
        assert_eq!(agent.stop().swept, 0);
        assert_eq!(map.keys().count(), 2 * usize::try_from(FLOWS).unwrap());
    });
}
