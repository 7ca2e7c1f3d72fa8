// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every topology carries direct traffic under every rule of a real node, and the switches
//! do what they say.
//!
//! **Invariant:** each test makes its own lab, so they run at once. Read next: `tools.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{assert_direct, can_run};
use lb_lab::{
    Builder, HttpClient, Lab, LabError, Place, PodAddress, RpFilter, RuleTool, Topology, UdpClient,
    Underlay, topology,
};

fn carries_direct_traffic(builder: Builder) {
    let lab = builder.nodes(2).build().unwrap();
    let a = lab.node(0).pod("a", 5).unwrap();
    let b = lab.node(0).pod("b", 6).unwrap();
    let c = lab.node(1).pod("c", 5).unwrap();
    let _servers = [&a, &b, &c].map(|pod| pod.serve(9376).unwrap());
    for (from, to) in [(&a, &b), (&a, &c), (&c, &a)] {
        assert_direct(from, to, 9376);
    }
    let reply = lab
        .node(0)
        .http_get(SocketAddr::new(c.v4().into(), 9376), "/")
        .unwrap();
    assert_eq!(reply.text(), "c");
}

#[test]
fn pods_see_each_others_addresses_in_every_topology() {
    if !can_run() {
        return;
    }
    for (topology, underlay) in topology::EVERY {
        carries_direct_traffic(Lab::builder().topology(topology).underlay(underlay));
    }
}

#[test]
fn pods_see_each_others_addresses_under_iptables_rules() {
    if !can_run() {
        return;
    }
    for topology in [Topology::Bridge { br_netfilter: true }, Topology::Routed] {
        carries_direct_traffic(Lab::builder().topology(topology).rules(RuleTool::Iptables));
    }
}

#[test]
fn a_lab_of_two_nodes_and_three_pods_is_there_in_seconds() {
    if !can_run() {
        return;
    }
    let start = Instant::now();
    let lab = Lab::builder()
        .underlay(Underlay::Vxlan)
        .nodes(2)
        .build()
        .unwrap();
    for name in ["hostnames-0uton", "hostnames-yp2kp", "hostnames-bvc05"] {
        lab.node(0).pod(name, PodAddress::Next).unwrap();
    }
    // A fifth of a second on an idle machine; other tests make namespaces at the same time.
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn every_device_of_a_node_has_the_strict_reverse_path_filter() {
    if !can_run() {
        return;
    }
    for (topology, underlay) in topology::EVERY {
        let lab = Lab::builder()
            .topology(topology)
            .underlay(underlay)
            .build()
            .unwrap();
        let node = lab.node(0);
        let pod = node.pod("a-pod-with-a-long-name-0uton", 5).unwrap();
        assert!(pod.device().len() <= 15, "{}", pod.device());
        let bridge = matches!(topology, Topology::Bridge { .. }).then_some("cni0");
        let devices = ["all", "default", pod.device()];
        for device in devices
            .into_iter()
            .chain(bridge)
            .chain(node.uplinks().iter().copied())
        {
            let value = node
                .netns()
                .read_sysctl(&format!("ipv4/conf/{device}/rp_filter"));
            assert_eq!(value.unwrap(), "1", "{device}");
        }
        if let Topology::Bridge { br_netfilter } = topology {
            let value = node
                .netns()
                .read_sysctl("bridge/bridge-nf-call-iptables")
                .unwrap();
            assert_eq!(value == "1", br_netfilter);
        }
    }
}

#[test]
fn the_reverse_path_filter_refuses_a_source_that_is_routed_elsewhere() {
    if !can_run() {
        return;
    }
    for (rp_filter, passes) in [(RpFilter::Strict, false), (RpFilter::Off, true)] {
        let lab = Lab::builder()
            .topology(Topology::Routed)
            .rp_filter(rp_filter)
            .build()
            .unwrap();
        let (a, b) = (
            lab.node(0).pod("a", 5).unwrap(),
            lab.node(0).pod("b", 6).unwrap(),
        );
        let server = b.serve(9376).unwrap();
        // An address that the node does not route to this pod.
        a.output("ip addr add 10.244.0.99/32 dev eth0").unwrap();
        a.output("ip route replace default via 169.254.1.1 dev eth0 src 10.244.0.99")
            .unwrap();
        let remote = SocketAddr::new(b.v4().into(), 9376);
        let capture = b.capture("eth0").unwrap();
        let result = a.run(|| UdpClient::bind(remote, None).unwrap().exchange(b"x"));
        assert!(
            result.unwrap().is_err(),
            "the answer has no way back in either case"
        );
        assert_eq!(server.answers() > 0, passes);
        let seen = capture.stop().unwrap().count(|_, _, _, port| port == 9376);
        assert_eq!(seen > 0, passes, "{rp_filter:?}");
    }
}

#[test]
fn forward_policy_drop_stops_what_is_not_for_pods() {
    if !can_run() {
        return;
    }
    for tool in [RuleTool::Nftables, RuleTool::Iptables] {
        for (drop, passes) in [(true, false), (false, true)] {
            let lab = Lab::builder()
                .rules(tool)
                .forward_drop(drop)
                .build()
                .unwrap();
            let near = lab.client("near", Place::Underlay).unwrap();
            let far = lab.client("far", Place::BeyondRouter).unwrap();
            let _server = far.serve(80).unwrap();
            let remote = SocketAddr::new(far.v4().into(), 80);
            assert_eq!(near.http_get(remote, "/").unwrap().text(), "far");
            // By way of the node, which is no router for such traffic.
            near.output("ip route add 203.0.113.0/24 via 192.168.50.10")
                .unwrap();
            let client = HttpClient::new(remote).timeout(Duration::from_millis(600));
            let result = near.run(|| client.get("/")).unwrap();
            assert_eq!(result.is_ok(), passes, "{tool:?} {result:?}");
        }
    }
}

#[test]
fn masquerade_shows_the_nodes_address_outside_and_only_there() {
    if !can_run() {
        return;
    }
    for tool in [RuleTool::Nftables, RuleTool::Iptables] {
        for masquerade in [true, false] {
            let lab = Lab::builder()
                .rules(tool)
                .masquerade(masquerade)
                .build()
                .unwrap();
            let pod = lab.node(0).pod("a", 5).unwrap();
            for place in [Place::Underlay, Place::BeyondRouter] {
                let client = lab
                    .client(&format!("{place:?}").to_lowercase(), place)
                    .unwrap();
                let _server = client.serve(80).unwrap();
                let expected = if masquerade {
                    lab.node(0).addresses()
                } else {
                    pod.addresses()
                };
                for (address, expected) in client.addresses().into_iter().zip(expected) {
                    let remote = SocketAddr::new(address, 80);
                    let source = pod.http_get(remote, "/source").unwrap();
                    let source = source.text().split(' ').next().unwrap().to_owned();
                    assert_eq!(source, expected.to_string(), "{tool:?} {place:?}");
                }
            }
        }
    }
}

#[test]
fn a_name_is_given_once_and_must_be_a_name() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().node("one").build().unwrap();
    lab.node(0).pod("a", 5).unwrap();
    for name in ["a", "one", "router", "", "A", "../x", "-x"] {
        let error = lab.node(0).pod(name, 6).unwrap_err();
        assert!(
            matches!(error, LabError::Name { .. }),
            "{name:?}: {error:?}"
        );
    }
}
