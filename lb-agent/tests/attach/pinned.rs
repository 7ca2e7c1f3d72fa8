// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pinned maps: written, read back, kept over a restart, refused when they do not fit, swept.

use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData};
use lb_agent::datapath::{
    Clock, Datapath, DatapathConfig, DatapathError, Flows, KernelTables, Pins,
};
use lb_agent::model::tables::{Op, TableContent, TableOp};
use lb_agent::tables::{ApplyError, Tables as _};
use lb_common::abi::{
    Action, Algorithm, Backend, BackendState, Conn, ConnKey, ConnState, Cursor, Frontend,
    FrontendKey, Hook, LAYOUT_VERSION, SlotKey, limits, names, proto,
};

use crate::support::{Agent, on_a_node, wait_until};

fn start(config: &DatapathConfig) -> Result<(), DatapathError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(Datapath::start(config)).map(drop)
}

fn refusal(config: &DatapathConfig) -> String {
    start(config).unwrap_err().to_string()
}

fn writes() -> Vec<Op> {
    let frontend = Frontend {
        service: 3,
        generation: 1,
        cluster_count: 1,
        algorithm: Algorithm::Random as u8,
        ..Frontend::default()
    };
    let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    vec![
        Op::V4(TableOp::PutBackend(
            1,
            Backend::new(3, 7, [10, 244, 0, 5], 9376, BackendState::Active),
        )),
        Op::V6(TableOp::PutBackend(
            2,
            Backend::new(4, 7, v6, 53, BackendState::Terminating),
        )),
        Op::PutSlot(SlotKey::cluster(3, 0), 1),
        Op::V4(TableOp::PutFrontend(
            FrontendKey::new([10, 0, 1, 175], 80, proto::TCP),
            frontend,
        )),
        Op::V6(TableOp::PutFrontend(
            FrontendKey::new(v6, 53, proto::UDP),
            frontend,
        )),
    ]
}

fn cursors(bpffs: &Path) -> Array<MapData, Cursor> {
    let map = Map::Array(MapData::from_pin(bpffs.join(names::CURSORS)).unwrap());
    Array::try_from(map).unwrap()
}

#[test]
fn what_is_written_is_read_back_also_after_a_restart_and_without_an_agent() {
    on_a_node(|bpffs| {
        assert!(matches!(
            KernelTables::open(bpffs),
            Err(DatapathError::NothingPinned { .. })
        ));
        let config = DatapathConfig::new(bpffs);
        start(&config).unwrap();
        let mut tables = KernelTables::open(bpffs).unwrap();
        let mut wanted = TableContent::default();
        for op in writes() {
            tables.apply(&op).unwrap();
            wanted.apply(&op);
        }
        assert_eq!(tables.dump().unwrap(), wanted);
        start(&config).unwrap();
        let mut tables = KernelTables::open(bpffs).unwrap();
        assert_eq!(tables.dump().unwrap(), wanted);
        let deletes = [
            Op::V4(TableOp::DeleteFrontend(FrontendKey::new(
                [10, 0, 1, 175],
                80,
                proto::TCP,
            ))),
            Op::DeleteSlot(SlotKey::cluster(3, 0)),
            Op::DeleteSlot(SlotKey::cluster(3, 0)),
            Op::V6(TableOp::DeleteBackend(2)),
        ];
        for op in deletes {
            tables.apply(&op).unwrap();
            wanted.apply(&op);
        }
        assert_eq!(tables.dump().unwrap(), wanted);
        assert!(
            tables
                .reasons()
                .unwrap()
                .iter()
                .all(|(_, count)| *count == 0)
        );
    });
}

#[test]
fn a_full_map_is_reported_with_its_name_and_limit() {
    on_a_node(|bpffs| {
        start(&DatapathConfig::new(bpffs)).unwrap();
        let mut tables = KernelTables::open(bpffs).unwrap();
        let put = |n: u32| {
            let key = FrontendKey::new(n.to_be_bytes(), 80, proto::TCP);
            Op::V4(TableOp::PutFrontend(key, Frontend::default()))
        };
        for n in 0..limits::FRONTENDS {
            tables.apply(&put(n)).unwrap();
        }
        match tables.apply(&put(limits::FRONTENDS)).unwrap_err() {
            ApplyError::Full { map, limit, .. } => {
                assert_eq!((map, limit), (names::FRONTENDS_V4, limits::FRONTENDS));
            }
            other @ ApplyError::Io { .. } => panic!("{other}"),
        }
    });
}

#[test]
fn cursors_are_seeded_once() {
    on_a_node(|bpffs| {
        let config = DatapathConfig::new(bpffs);
        start(&config).unwrap();
        let read = || {
            (0..64)
                .map(|n| cursors(bpffs).get(&n, 0).unwrap())
                .collect::<Vec<_>>()
        };
        let seeded = read();
        assert!(
            seeded.iter().any(|cursor| *cursor != seeded[0]),
            "{seeded:?}"
        );
        start(&config).unwrap();
        assert_eq!(read(), seeded);
        // There is one for every id, and those that are used last are seeded last.
        wait_until("the last cursors", || {
            (limits::SERVICES - 64..limits::SERVICES)
                .any(|n| cursors(bpffs).get(&n, 0).unwrap() != 0)
        });
    });
}

#[test]
fn maps_of_another_size_or_layout_are_refused_with_what_to_do() {
    on_a_node(|bpffs| {
        let config = DatapathConfig::new(bpffs);
        start(&config).unwrap();
        let mut larger = config.clone();
        larger.connections_max *= 2;
        let sentence = refusal(&larger);
        assert!(
            sentence.contains("made for 262144 entries, wanted are 524288"),
            "{sentence}"
        );
        assert!(sentence.contains("remove"), "{sentence}");
        let layout = format!("layout-{LAYOUT_VERSION}");
        std::fs::remove_dir(bpffs.join(&layout)).unwrap();
        let sentence = refusal(&config);
        let wanted = format!("layout unknown, this version needs layout {LAYOUT_VERSION}");
        assert!(sentence.contains(&wanted), "{sentence}");
        std::fs::create_dir(bpffs.join("layout-99")).unwrap();
        assert!(refusal(&config).contains("layout 99"));
        assert!(matches!(
            KernelTables::open(bpffs),
            Err(DatapathError::Layout { .. })
        ));
        for name in names::ALL {
            std::fs::remove_file(bpffs.join(name)).unwrap();
        }
        start(&config).unwrap();
    });
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: only used with the types of the ABI, which have no padding.
unsafe impl<T: Copy + 'static> aya::Pod for Raw<T> {}

#[test]
fn flows_that_have_ended_are_removed_in_pairs_and_others_stay() {
    on_a_node(|bpffs| {
        let agent = Agent::start(DatapathConfig::new(bpffs));
        let pins = Pins::open(bpffs).unwrap();
        let clock = Clock::open(&pins).unwrap();
        let now = clock.now().unwrap();
        let map = Map::HashMap(MapData::from_pin(bpffs.join(names::CONNS_V4)).unwrap());
        let mut conns =
            HashMap::<_, Raw<ConnKey<[u8; 4]>>, Raw<Conn<[u8; 4]>>>::try_from(map).unwrap();
        let mut put = |port: u16, protocol, seen, request_age: u32, reply_age: u32| {
            let (client, frontend, backend) = ([10, 244, 0, 9], [10, 0, 1, 175], [10, 244, 0, 5]);
            let key = ConnKey::new((client, port), (frontend, 80), protocol, Hook::Ingress);
            let mut conn = Conn::new(
                Action::Dnat,
                (backend, 9376),
                port,
                now.wrapping_sub(request_age * clock.hz),
            );
            conn.reply_seen = seen;
            let pair = conn.pair_key(&key);
            conns.insert(Raw(key), Raw(conn), 0).unwrap();
            let mut conn = Conn::new(
                Action::UndoDnat,
                (frontend, 80),
                port,
                now.wrapping_sub(reply_age * clock.hz),
            );
            conn.reply_seen = seen;
            conns.insert(Raw(pair), Raw(conn), 0).unwrap();
        };
        let over = ConnState::REPLIED | ConnState::CLOSED;
        put(1, proto::TCP, over, 30, 30);
        put(2, proto::TCP, ConnState::REPLIED, 30, 30);
        put(3, proto::UDP, ConnState::REPLIED, 500, 500);
        put(4, proto::UDP, ConnState::REPLIED, 500, 5);
        put(5, proto::TCP, 0, 100, 100);
        let left = || {
            let flows = Flows::open_v4(&pins).unwrap();
            let mut ports: Vec<_> = flows
                .iter()
                .map(|entry| entry.unwrap().1.client_port)
                .collect();
            ports.sort_unstable();
            ports
        };
        wait_until("the sweep", || left() == [2, 2, 4, 4]);
        assert_eq!(agent.stop().swept, 3);
    });
}
