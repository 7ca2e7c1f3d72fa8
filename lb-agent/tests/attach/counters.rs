// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters of Services that programs write, and what becomes of them when Services go.

use std::collections::BTreeSet;

use aya::maps::{Map, MapData, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use lb_agent::datapath::{DatapathConfig, KernelTables, Pins, ServiceCounters};
use lb_agent::tables::Tables as _;
use lb_common::abi::{ServiceStats, names};

use crate::support::{Agent, on_a_node};

#[test]
fn counters_are_summed_over_cpus_and_go_with_their_service_ids() {
    on_a_node(|bpffs| {
        Agent::start(DatapathConfig::new(bpffs)).stop();
        let map = MapData::from_pin(bpffs.join(names::SERVICE_STATS)).unwrap();
        let mut map = PerCpuHashMap::<_, u32, [u64; 2]>::try_from(Map::PerCpuHashMap(map)).unwrap();
        let cpus = nr_cpus().unwrap();
        for service in [3, 4, 5] {
            let counted = vec![[u64::from(service), 1]; cpus];
            let counted = PerCpuValues::try_from(counted).unwrap();
            map.insert(service, counted, 0).unwrap();
        }
        let counters = ServiceCounters::open(&Pins::open(bpffs).unwrap()).unwrap();
        let cpus = u64::try_from(cpus).unwrap();
        let all = |service: u64| ServiceStats {
            opened: service * cpus,
            rejected: cpus,
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
