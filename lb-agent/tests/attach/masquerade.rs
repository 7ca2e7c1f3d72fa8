// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the packet path may ask about addresses, on nodes whose devices, addresses and routes
//! change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, Map, MapData};
use lb_agent::datapath::{DatapathConfig, PodSource, PortRange};
use lb_agent::model::cluster::ClusterFacts;
use lb_common::abi::{PrefixTable, names};

use crate::support::{Agent, Pod, index_of, ip, on_a_node, wait_until};

fn open_v4(bpffs: &Path) -> LpmTrie<MapData, [u8; 8], [u8; 4]> {
    let map = MapData::from_pin(bpffs.join(names::PREFIXES_V4)).unwrap();
    LpmTrie::try_from(Map::LpmTrie(map)).unwrap()
}

fn open_v6(bpffs: &Path) -> LpmTrie<MapData, [u8; 20], [u8; 16]> {
    let map = MapData::from_pin(bpffs.join(names::PREFIXES_V6)).unwrap();
    LpmTrie::try_from(Map::LpmTrie(map)).unwrap()
}

/// `PREFIX=ADDRESS` of every entry of a table, in order.
fn table(bpffs: &Path, table: u32) -> String {
    let mut found: Vec<(IpAddr, u32, IpAddr)> = Vec::new();
    for entry in &open_v4(bpffs) {
        let (key, value) = entry.unwrap();
        let data = key.data();
        let (number, address) = data.split_at(4);
        if number == table.to_ne_bytes() {
            let address = <[u8; 4]>::try_from(address).unwrap();
            found.push((address.into(), key.prefix_len() - 32, value.into()));
        }
    }
    for entry in &open_v6(bpffs) {
        let (key, value) = entry.unwrap();
        let data = key.data();
        let (number, address) = data.split_at(4);
        if number == table.to_ne_bytes() {
            let address = <[u8; 16]>::try_from(address).unwrap();
            found.push((address.into(), key.prefix_len() - 32, value.into()));
        }
    }
    found.sort();
    let found = found
        .iter()
        .map(|(prefix, bits, is)| format!("{prefix}/{bits}={is}"));
    found.collect::<Vec<_>>().join(" ")
}

fn device(bpffs: &Path, name: &str) -> String {
    table(bpffs, index_of(name))
}

/// What a packet that leaves by a device would get.
fn source(bpffs: &Path, name: &str, destination: &str) -> Option<IpAddr> {
    let number = index_of(name).to_ne_bytes();
    match destination.parse().unwrap() {
        IpAddr::V4(to) => {
            let key: [u8; 8] = [number, to.octets()].concat().try_into().unwrap();
            let found = open_v4(bpffs).get(&Key::new(64, key), 0).ok();
            found.map(|is| Ipv4Addr::from(is).into())
        }
        IpAddr::V6(to) => {
            let key: Vec<u8> = number.into_iter().chain(to.octets()).collect();
            let found = open_v6(bpffs)
                .get(&Key::new(160, key.try_into().unwrap()), 0)
                .ok();
            found.map(|is| Ipv6Addr::from(is).into())
        }
    }
}

/// An uplink with two addresses of each family, a tunnel, a bridge with a pod, and a pod without.
fn make_node() -> [Pod; 3] {
    let outside = Pod::new();
    ip(&format!(
        "link add eth0 type veth peer name far netns {}",
        outside.pid()
    ));
    ip("addr add 192.0.2.10/24 dev eth0");
    ip("addr add 198.51.100.10/24 dev eth0");
    ip("addr add 2001:db8::10/64 dev eth0 nodad");
    ip("link set eth0 up");
    outside.ip("link set far up");
    ip("route add default via 192.0.2.1 dev eth0");
    ip("link add cni0 type bridge");
    ip("addr add 10.244.1.1/24 dev cni0");
    ip("link set cni0 up");
    let bridged = Pod::new();
    ip(&format!(
        "link add veth1 type veth peer name eth0 netns {}",
        bridged.pid()
    ));
    ip("link set veth1 master cni0 up");
    let routed = Pod::new();
    ip(&format!(
        "link add cali1 type veth peer name eth0 netns {}",
        routed.pid()
    ));
    ip("link set cali1 up");
    ip("route add 10.244.9.9 dev cali1");
    ip("link add flannel.1 type vxlan id 1 dev eth0 dstport 8472");
    ip("addr add 10.244.1.0/32 dev flannel.1");
    ip("link set flannel.1 up");
    ip("route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink");
    [outside, bridged, routed]
}

#[test]
fn each_device_has_the_addresses_that_its_packets_are_masqueraded_with() {
    on_a_node(|bpffs| {
        let _pods = make_node();
        let agent = Agent::start(DatapathConfig::new(bpffs));
        assert_eq!(
            device(bpffs, "eth0"),
            "0.0.0.0/0=192.0.2.10 198.51.100.0/24=198.51.100.10 ::/0=2001:db8::10"
        );
        assert_eq!(
            device(bpffs, "flannel.1"),
            "0.0.0.0/0=10.244.1.0 ::/0=2001:db8::10"
        );
        assert_eq!(
            device(bpffs, "veth1"),
            "0.0.0.0/0=10.244.1.1 ::/0=2001:db8::10"
        );
        assert_eq!(
            device(bpffs, "cali1"),
            "0.0.0.0/0=192.0.2.10 ::/0=2001:db8::10"
        );
        assert_eq!(device(bpffs, "cni0"), "", "its ports are managed");
        let own = "10.244.1.0/32=10.244.1.0 10.244.1.1/32=10.244.1.1 192.0.2.10/32=192.0.2.10 \
            198.51.100.10/32=198.51.100.10 2001:db8::10/128=2001:db8::10";
        assert_eq!(table(bpffs, PrefixTable::OWN), own);
        assert_eq!(table(bpffs, PrefixTable::PODS), "");
        let is = |text: &str| Some(text.parse().unwrap());
        assert_eq!(source(bpffs, "eth0", "198.51.100.77"), is("198.51.100.10"));
        assert_eq!(source(bpffs, "eth0", "203.0.113.5"), is("192.0.2.10"));
        assert_eq!(source(bpffs, "flannel.1", "10.244.2.7"), is("10.244.1.0"));
        assert_eq!(source(bpffs, "veth1", "2001:db8:5::1"), is("2001:db8::10"));
        assert_eq!(source(bpffs, "cni0", "10.244.1.7"), None);
        agent.stop();
    });
}

#[test]
fn addresses_and_routes_are_followed_as_they_come_and_go() {
    on_a_node(|bpffs| {
        let _pods = make_node();
        let agent = Agent::start(DatapathConfig::new(bpffs));
        let eth0 = |wanted: &str| {
            let wanted = format!("{wanted} ::/0=2001:db8::10");
            wait_until(&wanted, || device(bpffs, "eth0") == wanted);
        };
        let two = "0.0.0.0/0=192.0.2.10 198.51.100.0/24=198.51.100.10";
        ip("route add 10.99.0.0/16 via 198.51.100.1 dev eth0");
        eth0(&format!(
            "0.0.0.0/0=192.0.2.10 10.99.0.0/16=198.51.100.10 {}",
            &two[21..]
        ));
        ip("route replace 10.99.0.0/16 via 192.0.2.1 dev eth0");
        eth0(two);
        ip("route replace default via 192.0.2.1 dev eth0 src 198.51.100.10");
        eth0("0.0.0.0/0=198.51.100.10 10.99.0.0/16=192.0.2.10 192.0.2.0/24=192.0.2.10");
        wait_until("the node's address", || {
            device(bpffs, "cali1").starts_with("0.0.0.0/0=198.51.100.10")
        });
        // Takes the default route along.
        ip("addr del 198.51.100.10/24 dev eth0");
        eth0("0.0.0.0/0=192.0.2.10");
        ip("addr add 192.0.2.9/32 dev cali1");
        wait_until("the pod's own near end", || {
            device(bpffs, "cali1").starts_with("0.0.0.0/0=192.0.2.9")
        });
        let cali1 = index_of("cali1");
        ip("link del cali1");
        wait_until("the end of its table", || table(bpffs, cali1).is_empty());
        ip("link set veth1 nomaster");
        wait_until("the end of the bridge's addresses", || {
            device(bpffs, "veth1").starts_with("0.0.0.0/0=192.0.2.10")
        });
        agent.stop();
    });
}

#[test]
fn addresses_of_services_are_never_the_nodes_own() {
    on_a_node(|bpffs| {
        let _pods = make_node();
        ip("addr add 203.0.113.7/32 dev lo");
        let agent = Agent::start(DatapathConfig::new(bpffs));
        let owns = |text: &str| table(bpffs, PrefixTable::OWN).contains(text);
        assert!(owns("203.0.113.7") && owns("192.0.2.10"));
        let services = ["203.0.113.7", "192.0.2.10"].map(|text| text.parse().unwrap());
        agent.learner.learn(ClusterFacts {
            service_addresses: services.into(),
            pod_ranges: None,
            ..ClusterFacts::default()
        });
        wait_until("the cluster's facts", || {
            !owns("203.0.113.7") && !owns("192.0.2.10")
        });
        wait_until("another address to masquerade with", || {
            device(bpffs, "eth0").starts_with("0.0.0.0/0=198.51.100.10 ::")
        });
        agent.learner.learn(ClusterFacts::default());
        wait_until("other facts", || owns("203.0.113.7") && owns("192.0.2.10"));
        agent.stop();
    });
}

#[test]
fn ranges_of_pods_are_written_when_they_are_known_and_outlive_the_agent() {
    on_a_node(|bpffs| {
        let _pods = make_node();
        let pods = || table(bpffs, PrefixTable::PODS);
        let start = |pods: PodSource| {
            let mut config = DatapathConfig::new(bpffs);
            config.pods = pods;
            Agent::start(config)
        };
        let known = Some(vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        ]);
        start(PodSource::Ranges(known)).stop();
        assert_eq!(pods(), "10.244.0.0/16=10.244.0.0 fd00::/48=fd00::");
        let agent = start(PodSource::Ranges(None));
        assert_eq!(
            pods(),
            "10.244.0.0/16=10.244.0.0 fd00::/48=fd00::",
            "nobody knows better"
        );
        let facts = |ranges: &[&str]| ClusterFacts {
            pod_ranges: Some(ranges.iter().map(|range| range.parse().unwrap()).collect()),
            ..ClusterFacts::default()
        };
        agent.learner.learn(facts(&["10.244.1.0/24"]));
        wait_until("the Node's range", || pods() == "10.244.1.0/24=10.244.1.0");
        agent.learner.learn(facts(&[]));
        wait_until("no range", || pods().is_empty());
        agent.learner.learn(facts(&["10.244.1.0/24"]));
        wait_until("the range again", || !pods().is_empty());
        agent.stop();
        start(PodSource::Role).stop();
        assert_eq!(pods(), "", "devices tell");
    });
}

#[test]
fn a_new_agent_removes_what_does_not_belong_and_keeps_the_rest() {
    on_a_node(|bpffs| {
        let _pods = make_node();
        Agent::start(DatapathConfig::new(bpffs)).stop();
        let eth0 = device(bpffs, "eth0");
        let entry = |table: u32, address: [u8; 4], bits: u32| {
            let data: [u8; 8] = [table.to_ne_bytes(), address].concat().try_into().unwrap();
            Key::new(32 + bits, data)
        };
        let mut map = open_v4(bpffs);
        for (table, address, bits) in [
            (77_777, [0; 4], 0),
            (index_of("eth0"), [10, 99, 0, 0], 16),
            (index_of("cni0"), [0; 4], 0),
            (PrefixTable::OWN, [10, 1, 2, 3], 32),
            (PrefixTable::PODS, [10, 244, 0, 0], 16),
        ] {
            map.insert(&entry(table, address, bits), [10, 0, 0, 1], 0)
                .unwrap();
        }
        Agent::start(DatapathConfig::new(bpffs)).stop();
        assert_eq!(device(bpffs, "eth0"), eth0);
        for number in [77_777, index_of("cni0"), PrefixTable::PODS] {
            assert_eq!(table(bpffs, number), "");
        }
        assert!(!table(bpffs, PrefixTable::OWN).contains("10.1.2.3"));
    });
}

#[test]
fn without_a_port_for_masqueraded_flows_the_start_says_which_flags_to_change() {
    on_a_node(|bpffs| {
        let mut config = DatapathConfig::new(bpffs);
        config.masquerade.ports = vec![PortRange::NODE_PORTS];
        let error = Agent::try_start(config).err().unwrap().to_string();
        for part in [
            "--snat-port-range",
            "--service-node-port-range",
            "ip_local_port_range",
        ] {
            assert!(error.contains(part), "{error}");
        }
        // The namespace's own setting counts.
        let local = "/proc/sys/net/ipv4/ip_local_port_range";
        std::fs::write(local, "40000 50000").unwrap();
        let mut config = DatapathConfig::new(bpffs);
        config.masquerade.ports = vec!["40000-50000".parse().unwrap()];
        let error = Agent::try_start(config).err().unwrap().to_string();
        assert!(error.contains("40000-50000"), "{error}");
    });
}
