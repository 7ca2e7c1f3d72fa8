// SPDX-License-Identifier: MIT OR Apache-2.0
//! VLANs: nodes and a client outside reach each other by tagged frames only.
//!
//! The programs are on the VLAN device and on the device below it, so they see each packet twice:
//! as a tagged frame and without the tag. **Invariant:** it is translated once.
//! Read next: `../e2e/cluster.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_lab::{Builder, Host, Lab, Node, Place, Topology, TxOffload};

use crate::assert_nothing_odd;
use crate::cluster::{Cluster, Vip, get, pause};

const DEVICE: &str = "eth0.5";
const NODE_PORT: u16 = 30_005;
/// How long addresses may take to be complete.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// The number of the client outside in the VLAN.
const OUTSIDE: u8 = 200;

#[test]
fn tags_beside_the_frame_on_a_bridge() {
    by_tagged_frames(Lab::builder(), "");
}

#[test]
fn tags_in_the_frame_on_a_bridge() {
    // The VLAN device writes the tag itself, so the device below gets it in the frame.
    by_tagged_frames(Lab::builder(), "reorder_hdr off");
}

#[test]
fn tags_in_the_frame_with_full_checksums_by_routed_veths() {
    let lab = Lab::builder()
        .topology(Topology::Routed)
        .tx_offload(TxOffload::Off);
    by_tagged_frames(lab, "reorder_hdr off");
}

/// A host's addresses in the VLAN, by its number there.
fn in_vlan(number: u8) -> [String; 2] {
    [
        format!("192.168.5.{number}"),
        format!("fd00:192:168:5::{number}"),
    ]
}

fn node_number(node: &Node) -> u8 {
    10 + node.number()
}

/// Gives a host a VLAN device on its `eth0` and waits until its addresses are complete.
fn join_vlan(host: &Host, number: u8, options: &str) {
    let ip = |words: &str| host.output(&format!("ip {words}")).unwrap();
    let [v4, v6] = in_vlan(number);
    ip(&format!(
        "link add link eth0 name {DEVICE} type vlan id 5 {options}"
    ));
    ip(&format!("addr add {v4}/24 dev {DEVICE}"));
    ip(&format!("addr add {v6}/64 dev {DEVICE} nodad"));
    ip(&format!("link set {DEVICE} up"));
    let until = Instant::now() + SETTLE_MAX;
    loop {
        let text = ip(&format!("-6 addr show dev {DEVICE}"));
        if text.contains("fe80") && !text.contains("tentative") {
            return;
        }
        assert!(Instant::now() < until, "{text}");
        pause(Duration::from_millis(10));
    }
}

/// The numbers of frames that a device has received and sent.
fn frames(host: &Host, device: &str) -> [u64; 2] {
    let text = host
        .output(&format!("ip -j -s link show dev {device}"))
        .unwrap();
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    ["rx", "tx"].map(|way| links[0]["stats64"][way]["packets"].as_u64().unwrap())
}

/// Asks over TCP and UDP who serves, and checks that the server sees the client's own address and,
/// where that is not masqueraded, over TCP also its port.
fn ask(client: &Host, own: &str, remote: SocketAddr, server: &str, is_masqueraded: bool) {
    let what = format!("{client:?} to {remote}");
    assert_eq!(get(client, remote, "/").text(), server, "{what}");
    assert_eq!(
        client.udp_ask(remote, "hostname").unwrap(),
        server,
        "{what}"
    );
    let source = get(client, remote, "/source");
    let udp_source = client.udp_ask(remote, "source").unwrap();
    let udp_source = udp_source.split(' ').next().unwrap();
    if is_masqueraded {
        assert_ne!(udp_source, own, "{what}");
    } else {
        assert_eq!(
            source.text(),
            format!("{own} {}", source.local.port()),
            "{what}"
        );
        assert_eq!(udp_source, own, "{what}");
    }
}

/// A pod dials cluster addresses, a client in the VLAN cluster addresses and node ports.
fn by_tagged_frames(builder: Builder, options: &str) {
    let mut cluster = Cluster::new(builder);
    let outside = cluster.lab.client("outside", Place::Underlay).unwrap();
    for node in cluster.lab.nodes() {
        join_vlan(node, node_number(node), options);
    }
    join_vlan(&outside, OUTSIDE, options);
    let [a, b] = [0, 1].map(|node| cluster.node(node).clone());
    for (node, other) in [(&a, &b), (&b, &a)] {
        let [v4, v6] = in_vlan(node_number(other));
        let (pods_v4, pods_v6) = (other.pod_cidr_v4(), other.pod_cidr_v6());
        node.output(&format!("ip route replace {pods_v4} via {v4}"))
            .unwrap();
        node.output(&format!("ip route replace {pods_v6} via {v6}"))
            .unwrap();
    }
    let [v4, v6] = in_vlan(node_number(&a));
    outside
        .output(&format!("ip route add 10.0.1.0/24 via {v4}"))
        .unwrap();
    outside
        .output(&format!("ip route add fd00:10:0:1::/64 via {v6}"))
        .unwrap();
    let client = cluster.pod(0, "client");
    let pods = [cluster.web(0, "near"), cluster.web(1, "far")];
    let mut vips = [Vip::new("near", 1), Vip::new("far", 2)];
    for ((vip, pod), node_port) in vips.iter_mut().zip(&pods).zip(NODE_PORT..) {
        vip.service = vip.service.clone().node_port(node_port);
        cluster.publish(vip, &[pod]);
    }
    cluster.start_agents();
    for agent in &cluster.agents {
        let log = agent.log();
        assert!(
            log.contains("2 uplinks"),
            "programs on eth0 and {DEVICE}:\n{log}"
        );
    }
    let before = frames(&b, DEVICE);
    for (vip, (pod, node_port)) in vips.iter().zip(pods.iter().zip(NODE_PORT..)) {
        let is_near = pod.node().number() == 0;
        for (family, remote) in vip.remotes().into_iter().enumerate() {
            let own = client.addresses()[family].to_string();
            ask(&client, &own, remote, pod.name(), false);
            let own = &in_vlan(OUTSIDE)[family];
            ask(&outside, own, remote, pod.name(), !is_near);
            let node = in_vlan(node_number(&a))[family].parse().unwrap();
            let remote = SocketAddr::new(node, node_port);
            ask(&outside, own, remote, pod.name(), !is_near);
        }
    }
    let after = frames(&b, DEVICE);
    assert!(
        after[0] > before[0] + 10 && after[1] > before[1] + 10,
        "not by the VLAN"
    );
    for node in [&a, &b] {
        assert_nothing_odd(node);
    }
}
