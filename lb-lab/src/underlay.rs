// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network between nodes: the router with its two bridges, routes and vxlan.
//!
//! The router's namespace holds `lan` (192.168.50.0/24, all nodes) and `wan` (203.0.113.0/24)
//! and forwards between them. **Invariant:** the router filters and translates nothing.
//! Read next: `node`, which adds the node's own side, and `pod`.

use std::fmt::Write as _;

use crate::bridged;
use crate::error::LabError;
use crate::host::Host;
use crate::lab::Place;
use crate::node::Node;
use crate::run;
use crate::topology::{
    ROUTER_V4, ROUTER_V6, RpFilter, TxOffload, UNDERLAY_MTU, Underlay, VXLAN_MTU, WAN_V4, WAN_V6,
};

/// The VXLAN device of a node.
pub(crate) const VXLAN_DEVICE: &str = "flannel.1";

/// Text that is appended to a `String`, which cannot fail.
macro_rules! line {
    ($text:expr, $($arg:tt)*) => {
        // Writing to a String has no error case.
        writeln!($text, $($arg)*).unwrap_or_default()
    };
}
pub(crate) use line;

/// Gives the router its bridges, addresses and forwarding.
pub(crate) fn set_up_router(router: &Host) -> Result<(), LabError> {
    let netns = router.netns();
    run::ip(
        netns,
        &format!(
            "link add lan address 02:00:c0:a8:32:01 type bridge\n\
             link add wan address 02:00:cb:00:71:01 type bridge\n\
             addr add {ROUTER_V4}/24 dev lan\naddr add {ROUTER_V6}/64 dev lan nodad\n\
             addr add {WAN_V4}/24 dev wan\naddr add {WAN_V6}/64 dev wan nodad\n\
             link set lan up\nlink set wan up\n"
        ),
    )?;
    netns.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", RpFilter::Off.value()),
    ])?;
    // A switch does not look into packets.
    bridged::pass_netfilter(netns, false)
}

/// Joins a host to one of the router's bridges by a veth; the router's end gets `port` as name.
fn plug(router: &Host, host: &Host, bridge: &str, port: &str) -> Result<(), LabError> {
    let (v4, v6) = (host.v4(), host.v6());
    let (gateway_v4, gateway_v6) = if bridge == "lan" {
        (ROUTER_V4, ROUTER_V6)
    } else {
        (WAN_V4, WAN_V6)
    };
    let there = host.netns().name();
    run::ip(
        router.netns(),
        &format!(
            "link add {port} mtu {UNDERLAY_MTU} type veth peer name eth0 mtu {UNDERLAY_MTU} \
             netns {there}\nlink set {port} master {bridge}\nlink set {port} up\n"
        ),
    )?;
    run::ip(
        host.netns(),
        &format!(
            "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via {gateway_v4}\nroute add default via {gateway_v6}\n"
        ),
    )?;
    host.netns().settle(&["eth0"])?;
    router.netns().settle(&[bridge])
}

/// Joins a node to the underlay and gives it a default route by the router.
pub(crate) fn join_node(router: &Host, node: &Node) -> Result<(), LabError> {
    plug(router, node, "lan", &format!("node{}", node.number()))?;
    if node.lab.settings.tx_offload != TxOffload::On {
        run::tx_offload_off(node.netns(), "eth0")?;
    }
    Ok(())
}

/// Joins a client outside the cluster.
pub(crate) fn join_client(
    router: &Host,
    client: &Host,
    place: Place,
    number: usize,
) -> Result<(), LabError> {
    let bridge = match place {
        Place::Underlay => "lan",
        Place::BeyondRouter => "wan",
    };
    plug(router, client, bridge, &format!("client{number}"))?;
    if client.lab.settings.tx_offload == TxOffload::Off {
        run::tx_offload_off(client.netns(), "eth0")?;
    }
    Ok(())
}

/// Lets the router reach pods by their nodes, as a cloud's route table does.
pub(crate) fn route_pod_ranges(router: &Host, nodes: &[Node]) -> Result<(), LabError> {
    let mut lines = String::new();
    for node in nodes {
        line!(lines, "route add {} via {}", node.pod_cidr_v4(), node.v4());
        line!(lines, "route add {} via {}", node.pod_cidr_v6(), node.v6());
    }
    run::ip(router.netns(), &lines)
}

/// Lets a node reach the pod ranges of all others, by routes or by vxlan.
pub(crate) fn join_pod_ranges(node: &Node, nodes: &[Node]) -> Result<(), LabError> {
    let others: Vec<_> = nodes
        .iter()
        .filter(|other| other.number() != node.number())
        .collect();
    match node.lab.underlay {
        Underlay::Routes => {
            let mut lines = String::new();
            for other in others {
                line!(
                    lines,
                    "route add {} via {}",
                    other.pod_cidr_v4(),
                    other.v4()
                );
                line!(
                    lines,
                    "route add {} via {}",
                    other.pod_cidr_v6(),
                    other.v6()
                );
            }
            run::ip(node.netns(), &lines)
        }
        Underlay::Vxlan => make_vxlan(node, &others),
    }
}

/// The vxlan device as flannel makes it: nothing is learned, everything is written down.
fn make_vxlan(node: &Node, others: &[&Node]) -> Result<(), LabError> {
    let ((v4, v6), device) = (node.vxlan_addresses(), VXLAN_DEVICE);
    let (mac, local) = (vxlan_mac(node), node.v4());
    let mut lines = format!("link add {device} address {mac} mtu {VXLAN_MTU} ");
    line!(
        lines,
        "type vxlan id 1 local {local} dev eth0 dstport 8472 nolearning"
    );
    line!(
        lines,
        "addr add {v4}/32 dev {device}\naddr add {v6}/128 dev {device} nodad"
    );
    line!(lines, "link set {device} up");
    let mut forwarding = String::new();
    for other in others {
        let ((v4, v6), mac) = (other.vxlan_addresses(), vxlan_mac(other));
        line!(
            lines,
            "neigh add {v4} lladdr {mac} dev {device} nud permanent"
        );
        line!(
            lines,
            "neigh add {v6} lladdr {mac} dev {device} nud permanent"
        );
        line!(
            lines,
            "route add {} via {v4} dev {device} onlink",
            other.pod_cidr_v4()
        );
        line!(
            lines,
            "route add {} via {v6} dev {device} onlink",
            other.pod_cidr_v6()
        );
        line!(
            forwarding,
            "fdb append {mac} dev {device} dst {} self permanent",
            other.v4()
        );
    }
    run::ip(node.netns(), &lines)?;
    run::feed(
        node.netns().command("bridge")?.args(["-batch", "-"]),
        &forwarding,
    )?;
    if node.lab.settings.tx_offload != TxOffload::On {
        run::tx_offload_off(node.netns(), device)?;
    }
    node.netns().settle(&[device])
}

fn vxlan_mac(node: &Node) -> String {
    format!("02:00:0a:f4:{:02x}:00", node.number())
}
