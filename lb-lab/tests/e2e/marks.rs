// SPDX-License-Identifier: MIT OR Apache-2.0
//! Masquerading beside rules of others that read, clear or act on the mark, or masquerade as well.
//!
//! The rules are those of well-known neighbours in our own words, on the node that is dialled.
//! **Invariant:** the server sees the node's address and the client is answered at the first try;
//! who has translated is read from our own table, so no test passes by the other's work.
//! Read next: `external.rs`, the same without neighbours.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;

use lb_common::Reason;
use lb_common::abi::Action;
use lb_lab::topology::{CLUSTER_CIDR_V4, CLUSTER_CIDR_V6};
use lb_lab::{Builder, Host, Node, Place, Pod};

use crate::cluster::{Cluster, Vip, in_default_and_routed};
use crate::external::{assert_served, own_addresses, towards_other_nodes};
use crate::inspect;
use crate::load::{assert_no_failure, assert_no_retransmission, sequential};
use crate::nodeport::{ask, node_address};

const NODE_PORT: u16 = 30_060;
/// How many flows [`ask`] opens.
const ASKED: u64 = 4;
/// What kube-proxy leaves behind when it is ended and not cleaned up.
const KUBE_POSTROUTING: &str = "chain kube-postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }";

/// Two nodes, a client beyond the router, and a Service with a node port for a backend on each.
struct World {
    cluster: Cluster,
    outside: Host,
}

impl World {
    fn new(builder: Builder) -> Self {
        let mut cluster = Cluster::new(builder);
        let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
        for (node, name, port) in [(0, "near", NODE_PORT), (1, "far", NODE_PORT + 1)] {
            let mut vip = Vip::new(name, u8::try_from(node).unwrap() + 1);
            vip.service = vip.service.node_port(port);
            let pod = cluster.web(node, name);
            cluster.publish(&vip, &[&pod]);
        }
        Self { cluster, outside }
    }

    /// Node 0, by which everything is dialled.
    fn node(&self) -> &Node {
        self.cluster.node(0)
    }

    /// The node ports on node 0, of the near and of the far backend.
    fn node_ports(&self, family: usize) -> [SocketAddr; 2] {
        [NODE_PORT, NODE_PORT + 1].map(|port| node_address(&self.cluster, 0, family, port))
    }

    /// Asserts that the backend on the other node sees this node, over TCP and UDP.
    fn assert_masqueraded(&self, family: usize) {
        let [_, far] = self.node_ports(family);
        let node = towards_other_nodes(&self.cluster, 0, family);
        assert_served(&self.outside, far, "far", node);
    }

    /// Puts rules of someone else on a node; those of an earlier call go.
    fn install(&self, node: usize, chains: &str) {
        let table = "table inet others";
        let text = format!("{table} {{}}\ndelete {table}\n{table} {{\n  {chains}\n}}\n");
        let path = self.cluster.lab.dir().join("others.nft");
        fs::write(&path, text).unwrap();
        let command = format!("nft -f {}", path.display());
        self.cluster.node(node).output(&command).unwrap();
    }
}

/// How many flows we have given a masquerade address and port.
fn translated_by_us(node: &Node) -> usize {
    let action = format!("\"action\":{}", Action::UndoSnat as u8);
    let tables = ["CONNS_V4", "CONNS_V6", "HALF_OPEN_V4", "HALF_OPEN_V6"];
    let entries = tables.iter().flat_map(|map| inspect::entries(node, map));
    entries.filter(|entry| entry.contains(&action)).count()
}

#[test]
fn a_mark_that_others_clear_on_the_way_is_noticed_and_the_source_replaced() {
    in_default_and_routed(|builder| {
        let mut world = World::new(builder);
        world.cluster.start_agents();
        let lost = |world: &World| inspect::reason(world.node(), Reason::MarkLost);
        let capture = world.outside.capture("eth0").unwrap();
        for family in [0, 1] {
            world.assert_masqueraded(family);
        }
        assert_eq!(lost(&world), 0, "nobody has touched the mark yet");
        let mut expected = 0;
        for rule in [
            "hook forward priority mangle; meta mark set 0",
            "hook prerouting priority mangle; meta mark set ct mark",
        ] {
            world.install(
                0,
                &format!("chain clobber {{\n    type filter {rule}\n  }}"),
            );
            for family in [0, 1] {
                world.assert_masqueraded(family);
                expected += ASKED;
                assert_eq!(lost(&world), expected, "{rule}: one for each flow");
            }
        }
        assert_no_retransmission(&capture.stop().unwrap());
    });
}

#[test]
fn what_kube_proxy_leaves_in_postrouting_translates_once_and_to_the_same_source() {
    in_default_and_routed(|builder| {
        // As kube-proxy needs it: conntrack turns the replies back on the bridge itself.
        let mut world = World::new(builder.hairpin(true));
        let own = world.cluster.web(0, "own");
        let hairpin = Vip::new("own", 9);
        world.cluster.publish(&hairpin, &[&own]);
        world.cluster.start_agents();
        for family in [0, 1] {
            world.assert_masqueraded(family);
            assert_reaches_itself(&world, &own, hairpin.remotes()[family]);
        }
        let ours = translated_by_us(world.node());
        assert!(ours > 0, "without other rules it is ours to translate");
        world.install(0, KUBE_POSTROUTING);
        for family in [0, 1] {
            world.assert_masqueraded(family);
            assert_reaches_itself(&world, &own, hairpin.remotes()[family]);
        }
        let after = translated_by_us(world.node());
        // Fewer, where the agent has swept meanwhile.
        assert!(after <= ours, "{after} of {ours}: translated already");
        assert_eq!(inspect::reason(world.node(), Reason::MarkLost), 0);
    });
}

/// Asserts that a pod is led back to itself and sees its node.
fn assert_reaches_itself(world: &World, pod: &Pod, remote: SocketAddr) {
    let [web, udp, tcp_source, udp_source] = ask(pod, remote);
    assert_eq!((&*web, &*udp), ("own", "own"));
    let node = own_addresses(world.node());
    for source in [tcp_source, udp_source] {
        assert!(node.contains(&source.parse().unwrap()), "{source}");
    }
}

#[test]
fn masquerading_can_be_left_to_whoever_goes_by_the_mark() {
    in_default_and_routed(|builder| {
        let mut world = World::new(builder);
        world.cluster.start_agents_with(&["--masquerade=mark"]);
        world.install(0, KUBE_POSTROUTING);
        for family in [0, 1] {
            world.assert_masqueraded(family);
            let [near, _] = world.node_ports(family);
            let client = world.outside.addresses()[family];
            assert_served(&world.outside, near, "near", client);
        }
        assert_eq!(translated_by_us(world.node()), 0);
    });
}

/// The rules of flannel on a node; since 0.20 they leave alone what kube-proxy has marked.
fn flannel(node: &Node, spare_marked: bool) -> String {
    let mut text =
        "chain flannel {\n    type nat hook postrouting priority srcnat; policy accept;\n"
            .to_owned();
    if spare_marked {
        text += "    meta mark & 0x4000 == 0x4000 return\n";
    }
    let families = [
        ("ip", CLUSTER_CIDR_V4, node.pod_cidr_v4(), "224.0.0.0/4"),
        ("ip6", CLUSTER_CIDR_V6, node.pod_cidr_v6(), "ff00::/8"),
    ];
    for (ip, cluster, pods, multicast) in families {
        // Not the whole range for datagrams: of the numbers of UDP node ports see the README's limits.
        let ports = "to :1024-29999";
        for rule in [
            format!("{ip} saddr {pods} {ip} daddr {cluster} return"),
            format!("{ip} saddr {cluster} {ip} daddr {pods} return"),
            format!("{ip} saddr != {cluster} {ip} daddr {pods} return"),
            format!("{ip} saddr {cluster} {ip} daddr != {multicast} masquerade fully-random"),
            format!(
                "{ip} saddr != {cluster} {ip} daddr {cluster} meta l4proto udp masquerade {ports} fully-random"
            ),
            format!("{ip} saddr != {cluster} {ip} daddr {cluster} masquerade fully-random"),
        ] {
            writeln!(text, "    {rule}").unwrap();
        }
    }
    text + "  }"
}

#[test]
fn beside_the_rules_of_flannel_no_syn_and_no_datagram_is_lost() {
    for spare_marked in [true, false] {
        in_default_and_routed(|builder| {
            let mut world = World::new(builder.masquerade(false));
            for (number, node) in world.cluster.lab.nodes().iter().enumerate() {
                world.install(number, &flannel(node, spare_marked));
            }
            world.cluster.start_agents();
            many_from_outside(&world);
            let ours = translated_by_us(world.node());
            assert_eq!(ours > 0, spare_marked, "{ours} translated by us");
        });
    }
}

/// 100 connections and 100 datagrams of each family from outside to the far backend, each from a
/// port of its own, and a few to the near one.
fn many_from_outside(world: &World) {
    let (client, node) = (&world.outside, world.node());
    let capture = client.capture("eth0").unwrap();
    for family in [0, 1] {
        world.assert_masqueraded(family);
        let [near, far] = world.node_ports(family);
        assert_served(client, near, "near", client.addresses()[family]);
        let requests = sequential(client, far, 100);
        assert_no_failure(&requests);
        assert!(requests.iter().all(|request| request.is_by("far")));
        for _ in 0..100 {
            assert_eq!(client.udp_ask(far, "hostname").unwrap(), "far");
        }
    }
    assert_no_retransmission(&capture.stop().unwrap());
    assert_eq!(inspect::reason(node, Reason::MarkLost), 0);
}
