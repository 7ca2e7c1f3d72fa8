// SPDX-License-Identifier: MIT OR Apache-2.0
//! Full maps that grow under traffic, as far as they may.
//!
//! **Invariant:** growth is asked for as a pass of the reconciler does. Next: `halted.rs`, for
//! growth that is stopped half way.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lb_agent::datapath::{DatapathConfig, Sizes};
use lb_agent::model::endpoint::{Endpoint, EndpointPort, EndpointSlice, SliceKey};
use lb_agent::model::service::{IpFamily, Protocol, Service, ServiceKey, ServicePort};
use lb_agent::model::snapshot::{Object, Update};
use lb_agent::model::tables::TableContent;
use lb_agent::plan::ids::IdLimits;
use lb_agent::plan::node::PlanOptions;
use lb_agent::reconcile::{Reconciler, Settings};
use lb_agent::tables::{ApplyError, Growth, Tables as _};
use lb_common::abi::names;
use lb_lab::bound;

use crate::filling::{Node, Traffic, pinned, pods, programs_of, small, uses, writes};
use crate::support::{Pod, filters, on_a_node};

const GROWING: [&str; 6] = [
    names::FRONTENDS_V4,
    names::FRONTENDS_V6,
    names::SLOTS,
    names::BACKENDS_V4,
    names::BACKENDS_V6,
    names::SRC_RANGES_V4,
];

/// Whether bounds are longer here than usual.
fn is_slow() -> bool {
    bound(Duration::from_secs(1)) > Duration::from_secs(1)
}

fn grow_under_traffic(config: &DatapathConfig, (client, backend): &(Pod, Pod)) {
    let mut node = Node::start(config, TableContent::default());
    node.publish(1);
    let traffic = Traffic::start(&[client], backend);
    for n in 2..=200 {
        node.publish(n);
        traffic.services.store(n, Ordering::Relaxed);
    }
    node.run_for(Duration::from_millis(200));
    traffic.end();
    node.check();
    for name in GROWING {
        assert_eq!(pinned(&config.bpffs, name).1, 256, "{name}");
    }
    let times = *node.datapath.grown().borrow();
    // On an emulated processor a map may ask when the others' growth has begun.
    let most = if is_slow() { 2 * GROWING.len() } else { 2 };
    let all_at_once = 2..=u64::try_from(most).unwrap();
    assert!(all_at_once.contains(&times), "{times} times");
    assert!(!config.bpffs.join("next").exists());
    assert_eq!(node.datapath.repairs(), 0);
    // The sizes stay, whatever a new agent would have begun with.
    let wanted = node.end();
    let node = Node::start(config, wanted);
    assert_eq!(pinned(&config.bpffs, names::SLOTS).1, 256);
    let wanted = node.end();
    let mut larger = config.clone();
    larger.sizes = Sizes::default();
    let node = Node::start(&larger, wanted);
    assert_eq!(pinned(&config.bpffs, names::SLOTS).1, 256);
    node.end();
}

#[test]
fn maps_grow_again_and_again_under_traffic_and_nothing_is_lost() {
    on_a_node(|bpffs| {
        // To the end: devices go with their pods.
        let pods = pods();
        grow_under_traffic(&small(bpffs), &pods);
        for name in [names::FRONTENDS_V4, names::BACKENDS_V4, names::SLOTS] {
            assert!(uses("pod0", pinned(bpffs, name).0), "{name}");
        }
    });
}

#[test]
fn maps_grow_under_traffic_with_clsact() {
    on_a_node(|bpffs| {
        let mut config = small(bpffs);
        config.clsact_only = true;
        let pods = pods();
        grow_under_traffic(&config, &pods);
        for hook in ["ingress", "egress"] {
            let shown = filters("pod0", hook);
            assert_eq!(shown.matches("handle 0x6c62").count(), 1, "{shown}");
        }
    });
}

#[test]
fn all_maps_that_are_full_grow_with_one_new_load_of_the_programs() {
    on_a_node(|bpffs| {
        let _pods = pods();
        let mut config = small(bpffs);
        config.sizes.slots.first = 32;
        let mut node = Node::start(&config, TableContent::default());
        let (n, error) = node.fill(1);
        assert_eq!(error.full_map(), Some(names::SLOTS));
        // A pass goes on with other Services, whose frontends find no room either.
        let [.., frontend_v4, _] = &writes(n)[..] else {
            unreachable!();
        };
        assert!(node.write(frontend_v4).is_ok());
        for other in n + 1.. {
            let op = writes(other)[4];
            if let Err(error) = node.write(&op) {
                assert_eq!(error.full_map(), Some(names::FRONTENDS_V4));
                break;
            }
        }
        node.relieve(&error);
        node.wait_for_growth();
        let grown = node.datapath.grown();
        assert_eq!(*grown.borrow(), 1);
        assert_eq!(pinned(bpffs, names::SLOTS).1, 64);
        assert_eq!(pinned(bpffs, names::FRONTENDS_V4).1, 128);
        assert_eq!(pinned(bpffs, names::BACKENDS_V4).1, 64, "it was not full");
        node.check();
        node.end();
    });
}

#[test]
fn a_growth_that_fails_leaves_everything_as_it_was_and_is_tried_again_later() {
    on_a_node(|bpffs| {
        let _pods = pods();
        let mut node = Node::start(&small(bpffs), TableContent::default());
        let (n, error) = node.fill(1);
        assert!(
            error.to_string().contains("a larger one is being made"),
            "{error}"
        );
        let before = (
            programs_of("pod0"),
            GROWING.map(|name| pinned(bpffs, name).0),
        );
        // Something that is in the way of the new maps and cannot be removed.
        let obstacle = bpffs.join("next/obstacle");
        std::fs::create_dir_all(&obstacle).unwrap();
        node.relieve(&error);
        let op = writes(n)[0];
        node.run_for(Duration::from_millis(300));
        match node.write(&op).unwrap_err() {
            ApplyError::Full {
                map,
                limit,
                growth: Growth::Failed(why),
                ..
            } => {
                assert_eq!((map, limit), (names::BACKENDS_V4, 64));
                assert!(why.contains("next/obstacle"), "{why}");
            }
            other @ (ApplyError::Full { .. } | ApplyError::Io { .. }) => panic!("{other}"),
        }
        let after = (
            programs_of("pod0"),
            GROWING.map(|name| pinned(bpffs, name).0),
        );
        assert_eq!(after, before);
        node.check();
        std::fs::remove_dir(obstacle).unwrap();
        // A call that comes too soon after the failure is not heard, a later one is.
        node.relieve(&error);
        node.run_for(Duration::from_millis(100));
        assert!(!node.has_grown());
        node.run_for(Duration::from_secs(1));
        node.publish(n);
        node.check();
        node.end();
    });
}

fn objects(n: u8) -> [Object; 2] {
    let key = ServiceKey::new("default", format!("s{n:02}"));
    let service = Service {
        key: key.clone(),
        cluster_ips: vec![[10, 96, 0, n].into()],
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Udp,
            port: 80,
            node_port: None,
        }],
        ..Service::default()
    };
    let slice = EndpointSlice {
        triggered_micros: None,
        key: SliceKey {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        },
        service: Some(key),
        family: IpFamily::V4,
        skipped: false,
        names: false,
        ports: vec![EndpointPort {
            name: String::new(),
            protocol: Protocol::Udp,
            port: 7777,
        }],
        endpoints: vec![Endpoint {
            address: [10, 244, 0, 6].into(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            pod: None,
            zone_hints: BTreeSet::new(),
            node_hints: BTreeSet::new(),
            weight: 1,
        }],
        rejected: Vec::new(),
        ignored: Vec::new(),
    };
    [Object::Service(service), Object::EndpointSlice(slice)]
}

#[test]
fn at_the_hard_limit_one_service_is_pending_with_the_reason_and_the_others_are_served() {
    on_a_node(|bpffs| {
        let mut config = small(bpffs);
        config.sizes.frontends.first = 4;
        config.sizes.frontends.most = 8;
        let mut node = Node::start(&config, TableContent::default());
        let settings = Settings {
            node_name: "node-a".to_owned(),
            options: PlanOptions::default(),
            id_limits: IdLimits::default(),
        };
        let mut reconciler = Reconciler::restore(settings, &TableContent::default(), 1);
        reconciler.receive(Update::reset((1..=9).flat_map(objects).collect()));
        let outcome = reconciler.sync(node.datapath.tables());
        assert_eq!((outcome.services, outcome.pending), (4, 5));
        node.wait_for_growth();
        let outcome = reconciler.sync(node.datapath.tables());
        assert_eq!((outcome.services, outcome.pending), (4, 1));
        let grown = *node.datapath.grown().borrow();
        for _ in 0..3 {
            let outcome = reconciler.sync(node.datapath.tables());
            assert_eq!((outcome.changes, outcome.pending), (0, 1));
            node.run_for(Duration::from_millis(50));
        }
        assert_eq!(*node.datapath.grown().borrow(), grown);
        let op = writes(99)[4];
        let sentence = node.write(&op).unwrap_err().to_string();
        assert!(
            sentence.contains("map FRONTENDS_V4 is full (8 entries, the most that it may have)"),
            "{sentence}"
        );
        let content = node.datapath.tables().dump().unwrap();
        assert_eq!(content, reconciler.content());
        assert_eq!(content.v4.frontends.len(), 8);
        node.end();
    });
}
