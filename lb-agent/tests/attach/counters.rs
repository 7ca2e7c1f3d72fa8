// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters of Services that programs write, and what becomes of them when Services go.

use std::collections::BTreeSet;

use aya::maps::{Array, Map, MapData};
use lb_agent::datapath::{DatapathConfig, KernelTables, Pins, ServiceCounters};
use lb_agent::tables::Tables as _;
use lb_common::abi::{ServiceStats, names};

use crate::support::{Agent, on_a_node};

#[test]
fn counters_go_with_their_service_ids() {
    on_a_node(|bpffs| {
        Agent::start(DatapathConfig::new(bpffs)).stop();
        let map = MapData::from_pin(bpffs.join(names::SERVICE_STATS)).unwrap();
        let mut map = Array::<_, [u64; 2]>::try_from(Map::Array(map)).unwrap();
        for service in [3, 4, 5] {
            map.set(service, [u64::from(service), 1], 0).unwrap();
        }
        let counters = ServiceCounters::open(&Pins::open(bpffs).unwrap()).unwrap();
        let all = |opened| ServiceStats {
            opened,
            rejected: 1,
        };
        assert_eq!(counters.read(4).unwrap(), all(4));
        assert_eq!(counters.read(99).unwrap(), ServiceStats::default());
        let mut tables = KernelTables::open(bpffs).unwrap();
        tables.forget_services(&[4, 99]);
        assert_eq!(counters.read(4).unwrap(), ServiceStats::default());
        tables.keep_services(&BTreeSet::from([5, 6]));
        assert_eq!(counters.read(3).unwrap(), ServiceStats::default());
        assert_eq!(counters.read(5).unwrap(), all(5));
    });
}
