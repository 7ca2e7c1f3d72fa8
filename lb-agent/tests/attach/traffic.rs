// SPDX-License-Identifier: MIT OR Apache-2.0
//! What flow entries have counted, summed from the kernel's tables, when ids are given again.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use lb_agent::datapath::{Clock, DatapathConfig, KernelTables, Pins, Totals};
use lb_agent::model::tables::{Op, TableOp};
use lb_agent::tables::Tables as _;
use lb_common::abi::{Action, Backend, BackendState, Conn, ConnKey, Hook, names, proto};

use crate::filling::Node;
use crate::support::{Agent, on_a_node};

const SERVICE: u32 = 7;
const BACKEND: u32 = 3;
const ADDRESS: ([u8; 4], u16) = ([10, 244, 0, 6], 8080);

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: plain old data without padding.
unsafe impl<T: bytemuck::Pod> aya::Pod for Raw<T> {}

type Key = Raw<ConnKey<[u8; 4]>>;
type Entry = Raw<Conn<[u8; 4]>>;

/// The table of flows as the packet path writes it.
struct Flows {
    map: HashMap<MapData, Key, Entry>,
    clock: Clock,
}

impl Flows {
    fn open(bpffs: &Path) -> Self {
        let map = MapData::from_pin(bpffs.join(names::CONNS_V4)).unwrap();
        let map = HashMap::try_from(Map::HashMap(map)).unwrap();
        let clock = Clock::open(&Pins::open(bpffs).unwrap()).unwrap();
        Self { map, clock }
    }

    /// A flow to the backend with this epoch, whose client has sent 100 packets of 1000 bytes.
    fn open_flow(&mut self, port: u16, epoch: u32) {
        let now = self.clock.now().unwrap();
        let client = [10, 244, 0, 5];
        let key = ConnKey::new(
            (client, port),
            ([10, 96, 0, 1], 80),
            proto::TCP,
            Hook::Ingress,
        );
        let mut conn = Conn::new(Action::Dnat, ADDRESS, port, now);
        (conn.service, conn.backend, conn.epoch) = (SERVICE, BACKEND, epoch);
        (conn.packets, conn.bytes) = (100, [100_000, 0]);
        conn.reply_seen = lb_common::abi::ConnState::REPLIED;
        self.map.insert(Raw(key), Raw(conn), 0).unwrap();
    }

    /// As many packets once more on every flow.
    fn send(&mut self) {
        let now = self.clock.now().unwrap();
        let keys: Vec<_> = self.map.keys().map(Result::unwrap).collect();
        for key in keys {
            let Raw(mut conn) = self.map.get(&key, 0).unwrap();
            conn.packets += 100;
            conn.bytes[0] += 100_000;
            conn.last_seen = now;
            self.map.insert(key, Raw(conn), 0).unwrap();
        }
    }
}

fn put(epoch: u32) -> Op {
    let (address, port) = ADDRESS;
    let backend = Backend::new(SERVICE, epoch, address, port, BackendState::Active);
    Op::V4(TableOp::PutBackend(BACKEND, backend))
}

/// What so many hundreds of packets on so many flows come to.
fn hundreds(flows: u64, packets: u64) -> Totals {
    Totals {
        packets: [100 * packets, 0],
        bytes: [100_000 * packets, 0],
        established: flows,
    }
}

#[test]
fn who_gets_an_id_again_begins_at_zero_while_old_flows_go_on() {
    on_a_node(|bpffs| {
        let config = DatapathConfig::new(bpffs);
        Agent::start(config.clone()).stop();
        let mut flows = Flows::open(bpffs);
        // Of an earlier agent: what it has counted is not told again.
        flows.open_flow(4000, 1);
        let mut tables = KernelTables::open(bpffs).unwrap();
        tables.apply(&put(1)).unwrap();
        let mut node = Node::start(&config, tables.dump().unwrap());
        let traffic = node.datapath.traffic();
        let of_service = || traffic.read().remove(&SERVICE).unwrap_or_default();
        // A flow of the tick at which the agent started might be of the one before it.
        node.run_for(Duration::from_millis(50));
        flows.open_flow(4001, 1);
        node.run_until("the first pass", || of_service().all == hundreds(1, 1));
        flows.send();
        node.run_until("the second pass", || of_service().all == hundreds(1, 3));
        let backends = of_service().backends;
        let address = SocketAddr::from(ADDRESS);
        assert_eq!(backends.get(&address), Some(&hundreds(1, 3)));
        // The Service goes; its connections go on.
        node.write(&Op::V4(TableOp::DeleteBackend(BACKEND)))
            .unwrap();
        node.datapath.tables().forget_services(&[SERVICE]);
        assert_eq!(of_service().all, Totals::default());
        node.write(&put(2)).unwrap();
        flows.open_flow(4002, 2);
        flows.send();
        // One step of a pass reads all three.
        node.run_until("the third pass", || of_service().all == hundreds(1, 2));
        node.end();
    });
}
