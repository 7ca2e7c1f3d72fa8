// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices that come, go and change, and programs that someone takes off.

use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use aya::programs::TcAttachType;
use lb_agent::datapath::{DatapathConfig, PodSource};
use lb_common::abi::{Iface, IfaceFlags, names};

use crate::support::{Agent, Pod, filters, index_of, ip, on_a_node, run, tcx, wait_until};

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw(Iface);

// SAFETY: plain integers without padding.
unsafe impl aya::Pod for Raw {}

/// What the packet path would read of a device.
fn iface(bpffs: &std::path::Path, index: u32) -> Option<Iface> {
    let map = Map::HashMap(MapData::from_pin(bpffs.join(names::IFACES)).unwrap());
    let map = HashMap::<_, u32, Raw>::try_from(map).unwrap();
    map.get(&index, 0).ok().map(|Raw(iface)| iface)
}

fn attached(device: &str) -> bool {
    tcx(device, TcAttachType::Ingress) == ["lb_tc_ingress"]
        && tcx(device, TcAttachType::Egress) == ["lb_tc_egress"]
}

#[test]
fn each_device_of_a_node_gets_its_role_and_its_place_on_the_bridge() {
    on_a_node(|bpffs| {
        let outside = Pod::new();
        ip(&format!(
            "link add eth0 type veth peer name far netns {}",
            outside.pid()
        ));
        ip("addr add 192.0.2.10/24 dev eth0");
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
        let _routed = Pod::routed("cali1", "10.244.0.5", "169.254.1.1");
        ip("link add flannel.1 type vxlan id 1 dev eth0 dstport 8472");
        ip("link add inside0 type veth peer name inside1");
        ip("tuntap add tun0 mode tun");
        let agent = Agent::start(DatapathConfig::new(bpffs));
        assert_eq!(
            agent.roles(),
            [
                "cali1=pod",
                "eth0=uplink",
                "flannel.1=overlay",
                "tun0=overlay",
                "veth1=pod"
            ]
        );
        let veth1 = iface(bpffs, index_of("veth1")).unwrap();
        assert_eq!(veth1.bridge, index_of("cni0"));
        let pod = IfaceFlags::PEER_NETNS | IfaceFlags::POD;
        assert_eq!(veth1.flags, pod);
        let cali1 = iface(bpffs, index_of("cali1")).unwrap();
        assert_eq!((cali1.bridge, cali1.flags), (0, pod));
        let eth0 = iface(bpffs, index_of("eth0")).unwrap();
        assert_eq!(eth0.flags, IfaceFlags::PEER_NETNS);
        assert_ne!(cali1.peer_netns, veth1.peer_netns);
        assert_eq!(iface(bpffs, index_of("cni0")), None);
        assert_eq!(
            tcx("tun0", TcAttachType::Ingress),
            ["lb_tc_ingress_l"],
            "15 characters of it"
        );
        assert!(tcx("cni0", TcAttachType::Ingress).is_empty());
        assert!(tcx("lo", TcAttachType::Ingress).is_empty());
        agent.stop();
    });
}

#[test]
fn a_new_pod_is_attached_at_once_and_forgotten_when_it_goes() {
    on_a_node(|bpffs| {
        let agent = Agent::start(DatapathConfig::new(bpffs));
        let mut times = Vec::new();
        for round in 0..20 {
            let pod = Pod::new();
            let device = format!("veth{round}");
            if round % 2 == 0 {
                ip(&format!(
                    "link add {device} type veth peer name eth0 netns {}",
                    pod.pid()
                ));
            } else {
                ip(&format!("link add {device} type veth peer name tmp0"));
                ip(&format!("link set {device} up"));
                ip(&format!("link set tmp0 netns {}", pod.pid()));
            }
            let made = Instant::now();
            wait_until("the new device to be attached", || attached(&device));
            times.push(made.elapsed());
            let index = index_of(&device);
            assert!(iface(bpffs, index).is_some());
            let link = bpffs.join(format!("links/{index}-egress"));
            assert!(link.exists());
            ip(&format!("link del {device}"));
            wait_until("the device to be forgotten", || {
                !link.exists() && iface(bpffs, index).is_none()
            });
        }
        // KERNEL: each TCX attachment waits for an RCU grace period, 10 to 20 ms, so the second
        // program is there that much after the first. One slow round tells of a busy machine, a
        // slow median of a wrong design.
        times.sort();
        let median = times[times.len() / 2];
        assert!(median < Duration::from_millis(100), "took {times:?}");
        assert_eq!(agent.roles(), [""; 0]);
        assert_eq!(agent.stop().repairs, 0);
    });
}

#[test]
fn a_device_follows_its_bridge_its_name_and_its_addresses() {
    on_a_node(|bpffs| {
        let pod = Pod::new();
        ip("link add cni0 type bridge");
        ip(&format!(
            "link add veth1 type veth peer name eth0 netns {}",
            pod.pid()
        ));
        ip("link add up0 type veth peer name up1");
        let agent = Agent::start(DatapathConfig::new(bpffs));
        assert_eq!(agent.roles(), ["veth1=pod"]);
        let index = index_of("veth1");
        assert_eq!(iface(bpffs, index).unwrap().bridge, 0);
        ip("link set veth1 master cni0");
        wait_until("the bridge", || {
            iface(bpffs, index).unwrap().bridge == index_of("cni0")
        });
        ip("link set veth1 nomaster");
        wait_until("no bridge", || iface(bpffs, index).unwrap().bridge == 0);
        ip("link set veth1 name lxc1");
        wait_until("the new name", || agent.roles() == ["lxc1=pod"]);
        ip("addr add 192.0.2.10/24 dev up0");
        wait_until("an address", || agent.roles() == ["lxc1=pod", "up0=uplink"]);
        ip("addr del 192.0.2.10/24 dev up0");
        wait_until("no address", || agent.roles() == ["lxc1=pod"]);
        wait_until("the end of the link", || {
            tcx("up0", TcAttachType::Egress).is_empty()
        });
        ip("link set up0 up");
        ip("route add default dev up0");
        wait_until("a default route", || {
            agent.roles() == ["lxc1=pod", "up0=uplink"]
        });
        ip("route del default dev up0");
        wait_until("no default route", || agent.roles() == ["lxc1=pod"]);
        assert_eq!(agent.stop().repairs, 0);
    });
}

#[test]
fn pods_are_told_by_the_bridge_or_the_name_or_the_source_if_that_is_chosen() {
    on_a_node(|bpffs| {
        let pod = Pod::new();
        ip("link add cbr0 type bridge");
        ip(&format!(
            "link add veth1 type veth peer name eth0 netns {}",
            pod.pid()
        ));
        ip("link add up0 type veth peer name up1");
        ip("addr add 192.0.2.10/24 dev up0");
        let flags = |device: &str| {
            let entry = iface(bpffs, index_of(device)).unwrap();
            entry.flags & !IfaceFlags::PEER_NETNS
        };
        let start = |pods: PodSource| {
            let mut config = DatapathConfig::new(bpffs);
            config.pods = pods;
            Agent::start(config)
        };
        let agent = start(PodSource::Device("cbr0".to_owned()));
        assert_eq!((flags("veth1"), flags("up0")), (0, 0));
        ip("link set veth1 master cbr0");
        wait_until("the port", || flags("veth1") == IfaceFlags::POD);
        ip("link set cbr0 name other");
        wait_until("the bridge's new name", || flags("veth1") == 0);
        agent.stop();
        start(PodSource::NamePrefix("up".to_owned())).stop();
        assert_eq!((flags("veth1"), flags("up0")), (0, IfaceFlags::POD));
        start(PodSource::Ranges(None)).stop();
        let by_address = IfaceFlags::POD_BY_ADDRESS;
        assert_eq!((flags("veth1"), flags("up0")), (by_address, by_address));
        start(PodSource::Role).stop();
        assert_eq!((flags("veth1"), flags("up0")), (IfaceFlags::POD, 0));
    });
}

#[test]
fn a_program_that_someone_detached_is_put_back_and_counted() {
    on_a_node(|bpffs| {
        let _pod = Pod::routed("pod0", "10.244.0.5", "10.244.0.1");
        let mut config = DatapathConfig::new(bpffs);
        config.audit = Duration::from_millis(100);
        let agent = Agent::start(config);
        let link = bpffs.join(format!("links/{}-ingress", index_of("pod0")));
        std::fs::remove_file(&link).unwrap();
        wait_until("the program to be put back", || {
            link.exists() && attached("pod0")
        });
        assert_eq!(agent.stop().repairs, 1);
    });
}

#[test]
fn filters_that_someone_removed_are_put_back_at_once() {
    on_a_node(|bpffs| {
        let _pod = Pod::routed("pod0", "10.244.0.5", "10.244.0.1");
        let mut config = DatapathConfig::new(bpffs);
        config.clsact_only = true;
        let agent = Agent::start(config);
        let there = |hook| filters("pod0", hook).contains("lb_tc_");
        assert!(there("ingress") && there("egress"));
        run("tc", "qdisc del dev pod0 clsact");
        wait_until("the filters to be put back", || {
            there("ingress") && there("egress")
        });
        assert_eq!(agent.stop().repairs, 2);
    });
}
