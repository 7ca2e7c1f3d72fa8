// SPDX-License-Identifier: MIT OR Apache-2.0
//! The choices a lab is made of, and its address plan.
//!
//! **Invariant:** addresses follow from indexes alone, so they repeat in every lab and can
//! be written down in manifests; IPv4 and IPv6 show the same digits. This file touches
//! nothing. Read next: `underlay` and `pod`, which put the addresses in place.

use std::net::{Ipv4Addr, Ipv6Addr};

/// How a node joins its own pods: what the CNI plugin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topology {
    /// A bridge `cni0` that holds the gateway address; pods are ports of it.
    Bridge {
        /// Whether bridged packets pass netfilter's IP hooks (`bridge-nf-call-iptables`).
        br_netfilter: bool,
    },
    /// A point-to-point veth per pod as Calico makes it: the pod has a /32 and a default
    /// route by 169.254.1.1 (proxy ARP), the node has one host route per pod.
    Routed,
}

/// How nodes reach the pods of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Underlay {
    /// Each node has a route to every other node's pod range by that node's own address.
    Routes,
    /// A `flannel.1` device per node, with static neighbours and forwarding entries.
    Vxlan,
}

/// Every combination of the two, for tests that must hold everywhere.
pub const EVERY: [(Topology, Underlay); 6] = [
    (Topology::Bridge { br_netfilter: true }, Underlay::Routes),
    (Topology::Bridge { br_netfilter: true }, Underlay::Vxlan),
    (
        Topology::Bridge {
            br_netfilter: false,
        },
        Underlay::Routes,
    ),
    (
        Topology::Bridge {
            br_netfilter: false,
        },
        Underlay::Vxlan,
    ),
    (Topology::Routed, Underlay::Routes),
    (Topology::Routed, Underlay::Vxlan),
];

/// The reverse-path filter of IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RpFilter {
    /// No check.
    Off,
    /// The source must be routed back by the device the packet came from.
    Strict,
    /// The source must be routed by any device.
    Loose,
}

impl RpFilter {
    /// The sysctl's value.
    pub(crate) const fn value(self) -> &'static str {
        match self {
            Self::Off => "0",
            Self::Strict => "1",
            Self::Loose => "2",
        }
    }
}

/// Who finishes the checksums of packets that leave by a veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TxOffload {
    /// Nobody: veths carry partial checksums, as they do by default.
    On,
    /// Every device of the nodes finishes them (`ethtool -K DEV tx off`); pods leave them partial.
    OffOnNodes,
    /// Pods, clients and nodes finish them: every frame in a capture has a full checksum.
    Off,
}

/// The program that writes the node's packet filter rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RuleTool {
    /// `nft -f`: one table `inet node`.
    Nftables,
    /// `iptables-restore` and `ip6tables-restore`, whichever variant the machine has.
    Iptables,
}

/// What real nodes have, each switchable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each one is a switch of its own"
)]
pub struct NodeSettings {
    /// Reverse-path filter of every device of nodes, pods and clients. Default strict.
    pub rp_filter: RpFilter,
    /// The CNI's rule: from the pod range to anywhere else than the cluster's pod ranges,
    /// the node's address becomes the source. Default on.
    pub masquerade: bool,
    /// FORWARD policy DROP, with accepts for related,established and the pod ranges. Default on.
    pub forward_drop: bool,
    /// Packets that conntrack calls INVALID are dropped in FORWARD first. Default on.
    pub invalid_drop: bool,
    /// Who writes the rules. Default nftables.
    pub rules: RuleTool,
    /// Transmit checksum offload. Default on.
    pub tx_offload: TxOffload,
    /// Whether bridge ports send a packet back to where it came from. Default off.
    pub hairpin: bool,
    /// MTU of pods and their veths; `None` is 1450 over vxlan and else 1500.
    pub pod_mtu: Option<u16>,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            rp_filter: RpFilter::Strict,
            masquerade: true,
            forward_drop: true,
            invalid_drop: true,
            rules: RuleTool::Nftables,
            tx_offload: TxOffload::On,
            hairpin: false,
            pod_mtu: None,
        }
    }
}

/// MTU of the underlay.
pub(crate) const UNDERLAY_MTU: u16 = 1500;
/// Outer IPv4, UDP, VXLAN and inner Ethernet headers take 50 bytes.
pub(crate) const VXLAN_MTU: u16 = UNDERLAY_MTU - 50;
/// The most nodes of a lab: their underlay addresses end in 10..=99.
pub const NODES_MAX: usize = 90;
/// The most clients at each place: their addresses end in 200..=249.
pub(crate) const CLIENTS_MAX: usize = 50;
/// All pods of the cluster, IPv4.
pub const CLUSTER_CIDR_V4: &str = "10.244.0.0/16";
/// All pods of the cluster, IPv6.
pub const CLUSTER_CIDR_V6: &str = "fd00:10:244::/48";
/// The router's address on the underlay, IPv4.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
/// The router's address on the underlay, IPv6.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x192, 0x168, 0x50, 0, 0, 0, 1);
/// The router's address on the far side, IPv4.
pub const WAN_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The router's address on the far side, IPv6.
pub const WAN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 1);

/// A number whose hexadecimal digits are `n`'s decimal digits: 12 gives 0x12.
///
/// So `10.244.0.12` and `fd00:10:244::12` look alike.
const fn same_digits(n: u8) -> u16 {
    let n = n as u16;
    ((n / 100) << 8) | ((n / 10 % 10) << 4) | (n % 10)
}

/// An underlay address, ending in `host` in both families.
pub(crate) const fn underlay(host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v4 = Ipv4Addr::new(192, 168, 50, host);
    (
        v4,
        Ipv6Addr::new(0xfd00, 0x192, 0x168, 0x50, 0, 0, 0, same_digits(host)),
    )
}

/// An address beyond the router, ending in `host` in both families.
pub(crate) const fn wan(host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v4 = Ipv4Addr::new(203, 0, 113, host);
    (
        v4,
        Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, same_digits(host)),
    )
}

/// A pod address on node number `node`: 10.244.`node`.`host` and `fd00:10:244:node::host`.
pub(crate) const fn pod(node: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v4 = Ipv4Addr::new(10, 244, node, host);
    let v6 = Ipv6Addr::new(
        0xfd00,
        0x10,
        0x244,
        same_digits(node),
        0,
        0,
        0,
        same_digits(host),
    );
    (v4, v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_show_the_same_digits() {
        assert_eq!(pod(0, 5).1.to_string(), "fd00:10:244::5");
        assert_eq!(pod(11, 250).1.to_string(), "fd00:10:244:11::250");
        assert_eq!(underlay(10).1.to_string(), "fd00:192:168:50::10");
        assert_eq!(wan(200).1.to_string(), "2001:db8:203::200");
    }
}
