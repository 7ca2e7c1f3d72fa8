// SPDX-License-Identifier: MIT OR Apache-2.0
//! This node, as far as planning depends on it: addresses, zone, and what the operator chose.
//!
//! **Invariant:** the same for all Services. A change here is rare and plans all of them again.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::Algorithm;

use crate::model::prefix::Prefix;
use crate::model::service::{IpFamily, Node};

/// Which of the node's addresses serve node ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All but loopback ones.
    #[default]
    All,
    /// The first internal address of each family.
    Primary,
    /// Those within these ranges; a family without a range has all.
    Within(Vec<Prefix>),
}

/// The values of `--nodeport-addresses` do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: give `primary` alone, or address ranges such as 192.0.2.0/24")]
pub struct NotNodePortAddresses(String);

impl NodePortAddresses {
    /// The choice that a list of words makes; none means all.
    pub fn from_words(words: &[String]) -> Result<Self, NotNodePortAddresses> {
        match words {
            [] => Ok(Self::All),
            [word] if word == "primary" => Ok(Self::Primary),
            words => {
                let refuse = |word: &String| NotNodePortAddresses(word.clone());
                let ranges = words.iter().map(|w| w.parse().map_err(|_| refuse(w)));
                ranges.collect::<Result<_, _>>().map(Self::Within)
            }
        }
    }
}

/// How pods of this node are told from other sources, as `kube-proxy --detect-local-mode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// By the device that a packet comes in by.
    #[default]
    Device,
    /// By its source, which lies within one of these ranges.
    ClusterCidr(Vec<Prefix>),
    /// By its source, which lies within the Node's own pod ranges.
    NodeCidr,
    /// By the device, which is this bridge.
    BridgeInterface(String),
    /// By the device, whose name begins so.
    InterfaceNamePrefix(String),
}

impl DetectLocal {
    /// True when pods of this node can be told apart in `family`. Where they cannot, kube-proxy
    /// masquerades nothing towards virtual addresses and knows no short way for pods.
    pub fn works(&self, family: IpFamily, node: Option<&Node>) -> bool {
        let any = |ranges: &[Prefix]| ranges.iter().any(|range| range.family() == family);
        match self {
            Self::Device | Self::BridgeInterface(_) | Self::InterfaceNamePrefix(_) => true,
            Self::ClusterCidr(ranges) => any(ranges),
            Self::NodeCidr => node.is_some_and(|node| any(&node.pod_cidrs)),
        }
    }
}

/// Whether pods of this node can be told from other sources, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TellsPods {
    v4: bool,
    v6: bool,
}

impl TellsPods {
    /// What `mode` makes of the Node object.
    pub fn new(mode: &DetectLocal, node: Option<&Node>) -> Self {
        Self {
            v4: mode.works(IpFamily::V4, node),
            v6: mode.works(IpFamily::V6, node),
        }
    }

    /// What a person should know when the operator chose `mode` and it fails for some family.
    pub fn warnings(self, mode: &DetectLocal) -> Vec<String> {
        let (mode, lacks) = match mode {
            DetectLocal::Device
            | DetectLocal::BridgeInterface(_)
            | DetectLocal::InterfaceNamePrefix(_) => return Vec::new(),
            DetectLocal::ClusterCidr(_) => ("ClusterCIDR", "--cluster-cidr has no range"),
            DetectLocal::NodeCidr => ("NodeCIDR", "the Node object has no pod range"),
        };
        let missing = [(IpFamily::V4, "IPv4"), (IpFamily::V6, "IPv6")].into_iter();
        let missing = missing.filter(|(family, _)| !self.of(*family));
        missing
            .map(|(_, name)| {
                format!(
                    "--detect-local-mode {mode}: {lacks} of {name}, so pods of this node are not \
                     told from other sources there"
                )
            })
            .collect()
    }

    /// The answer for one family.
    pub fn of(self, family: IpFamily) -> bool {
        match family {
            IpFamily::V4 => self.v4,
            IpFamily::V6 => self.v6,
        }
    }
}

/// What becomes of a cluster address that is also on a device of this node, other than the one of
/// an earlier proxy: `NodeLocal DNSCache` puts the one of the cluster's DNS there to answer itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalClusterIps {
    /// The host's own sockets answer.
    #[default]
    Host,
    /// It is served like any other.
    Serve,
}

/// What the operator chose for all Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanOptions {
    /// The algorithm of Services that name none.
    pub algorithm: Algorithm,
    /// Masquerade everything that goes to virtual addresses, as kube-proxy's `masqueradeAll`.
    pub masquerade_all: bool,
    /// Masquerade also towards backends on this node, as kube-proxy does.
    pub snat_local_backends: bool,
    /// Where node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// How pods of this node are told apart.
    pub detect_local: DetectLocal,
    /// Who answers at cluster addresses that devices of this node have.
    pub local_cluster_ips: LocalClusterIps,
    /// No node ports at loopback addresses, for the node's own processes.
    pub no_loopback_node_ports: bool,
}

impl PlanOptions {
    /// Those of the addresses with node ports that loopback stands for: all of a family in which
    /// loopback has node ports, unless ranges for them leave it out.
    pub fn loopback(&self, node_ports: &[IpAddr]) -> Vec<IpAddr> {
        let has = |family| match &self.node_port_addresses {
            _ if self.no_loopback_node_ports => false,
            NodePortAddresses::All => true,
            NodePortAddresses::Primary => false,
            NodePortAddresses::Within(ranges) => {
                let loopback = match family {
                    IpFamily::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    IpFamily::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
                };
                let mut of_family = ranges.iter().filter(|r| r.family() == family).peekable();
                of_family.peek().is_none() || of_family.any(|range| range.contains(loopback))
            }
        };
        let addresses = node_ports.iter().copied();
        addresses.filter(|ip| has(IpFamily::of(*ip))).collect()
    }

    /// The same without our deviations from kube-proxy.
    #[must_use]
    pub fn kube_proxy_parity(self) -> Self {
        Self {
            algorithm: Algorithm::Random,
            snat_local_backends: true,
            ..self
        }
    }
}

/// The node's own addresses, as planning uses them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Where node ports are served, in order.
    pub node_ports: Vec<IpAddr>,
    /// The primary address of each family.
    pub primary: Vec<IpAddr>,
}

impl NodeAddresses {
    /// Works out the addresses from what the kernel has (none: unknown, the Node object counts) and
    /// the Node object. An address that a Service owns is no node address unless the Node object
    /// says so: a load balancer's address on a loopback device must not open every node port.
    pub fn new(
        choice: &NodePortAddresses,
        kernel: Option<&BTreeSet<IpAddr>>,
        node: Option<&Node>,
        is_virtual: impl Fn(IpAddr) -> bool,
    ) -> Self {
        let registered = node.map(|node| node.addresses.as_slice());
        let registered = registered.unwrap_or_default();
        let own: BTreeSet<IpAddr> = match kernel {
            Some(kernel) => {
                let own = kernel.iter().copied();
                own.filter(|ip| registered.contains(ip) || !is_virtual(*ip))
                    .collect()
            }
            None => registered.iter().copied().collect(),
        };
        let own = own.into_iter().filter(|ip| is_dialled(*ip));
        let mut own: Vec<IpAddr> = own.collect();
        let primary: Vec<IpAddr> = [IpFamily::V4, IpFamily::V6]
            .into_iter()
            .filter_map(|family| {
                let of = |ip: &&IpAddr| IpFamily::of(**ip) == family;
                registered.iter().find(of).or_else(|| own.iter().find(of))
            })
            .copied()
            .collect();
        match choice {
            NodePortAddresses::All => {}
            NodePortAddresses::Primary => own.retain(|ip| primary.contains(ip)),
            NodePortAddresses::Within(ranges) => own.retain(|ip| {
                let family = IpFamily::of(*ip);
                let mut of_family = ranges.iter().filter(|r| r.family() == family).peekable();
                of_family.peek().is_none() || of_family.any(|range| range.contains(*ip))
            }),
        }
        Self {
            node_ports: own,
            primary,
        }
    }
}

/// Whether other hosts can dial it: link-local addresses are not unique on a node.
fn is_dialled(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
