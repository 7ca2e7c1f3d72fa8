// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pod: a namespace joined to its node by a veth, as a port of the bridge or routed.
//!
//! **Invariant:** both ends of the veth are made inside namespaces; the pod's end is `eth0`,
//! the node's end carries the pod's name. Read next: `node`, `topology`.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use crate::error::LabError;
use crate::host::{Host, Kind};
use crate::node::{BRIDGE, Node};
use crate::run;
use crate::topology::{self, Topology, TxOffload};

/// The gateway that every routed pod sees; the node answers its ARP by proxy.
const ROUTED_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The hardware address of the node's end of every routed pod, as Calico sets it.
const ROUTED_MAC: &str = "ee:ee:ee:ee:ee:ee";
/// The link-local address that follows from it.
const ROUTED_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// Which address a pod gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodAddress {
    /// The next free one of the node, from .100 up.
    Next,
    /// This number in the node's ranges, 2..=254.
    Host(u8),
    /// Exactly these.
    Exact(Ipv4Addr, Ipv6Addr),
}

impl From<u8> for PodAddress {
    fn from(host: u8) -> Self {
        Self::Host(host)
    }
}

/// A pod of the cluster. Clones are the same pod.
#[derive(Clone)]
pub struct Pod {
    host: Host,
    node: Node,
    device: String,
}

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.fmt(f)
    }
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Pod {
    pub(crate) fn make(node: &Node, name: &str, address: PodAddress) -> Result<Self, LabError> {
        let (v4, v6) = match address {
            PodAddress::Next => topology::pod(node.number(), node.next_pod()),
            PodAddress::Host(host) => topology::pod(node.number(), host),
            PodAddress::Exact(v4, v6) => (v4, v6),
        };
        let mut state = node.lab.open()?;
        let cgroup = node.cgroup().join(format!("pod{name}"));
        let host = state.add_host(&node.lab, Kind::Pod, name, &cgroup, (v4, v6))?;
        let pod = Self {
            host,
            node: node.clone(),
            device: node.device_name(name),
        };
        match node.lab.topology {
            Topology::Bridge { .. } => pod.join_bridge()?,
            Topology::Routed => pod.join_routed()?,
        }
        pod.netns().settle(&["eth0"])?;
        node.netns().settle(&[match node.lab.topology {
            Topology::Bridge { .. } => BRIDGE,
            Topology::Routed => &pod.device,
        }])?;
        let offload = node.lab.settings.tx_offload;
        if offload != TxOffload::On {
            run::tx_offload_off(node.netns(), &pod.device)?;
        }
        if offload == TxOffload::Off {
            run::tx_offload_off(pod.netns(), "eth0")?;
        }
        Ok(pod)
    }

    /// The node the pod is on.
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// The node's end of the pod's veth.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Takes the pod's link down, as when a pod dies without a word.
    pub fn unplug(&self) -> Result<(), LabError> {
        run::ip(
            self.node.netns(),
            &format!("link set {} down\n", self.device),
        )
    }

    /// The first line of both kinds: a veth between the node and the pod.
    fn veth(&self) -> String {
        let (device, mtu, netns) = (&self.device, self.node.pod_mtu(), self.netns().name());
        format!("link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {netns}\n")
    }

    fn join_bridge(&self) -> Result<(), LabError> {
        let device = &self.device;
        let hairpin = if self.lab.settings.hairpin {
            "on"
        } else {
            "off"
        };
        let port = format!(
            "link set {device} master {BRIDGE}\n\
             link set {device} type bridge_slave hairpin {hairpin}\nlink set {device} up\n"
        );
        run::ip(self.node.netns(), &(self.veth() + &port))?;
        let (gateway_v4, gateway_v6) = self.node.gateway();
        run::ip(
            self.netns(),
            &format!(
                "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n\
                 route add default via {gateway_v4}\nroute add default via {gateway_v6}\n",
                self.v4(),
                self.v6()
            ),
        )
    }

    fn join_routed(&self) -> Result<(), LabError> {
        let (device, v4, v6) = (&self.device, self.v4(), self.v6());
        let up = format!("link set {device} address {ROUTED_MAC}\nlink set {device} up\n");
        run::ip(self.node.netns(), &(self.veth() + &up))?;
        self.node.netns().sysctl(&[
            (&format!("ipv4/conf/{device}/proxy_arp"), "1"),
            // Else the answer is held back for up to 0.8 seconds.
            (&format!("ipv4/neigh/{device}/proxy_delay"), "0"),
        ])?;
        run::ip(
            self.node.netns(),
            &format!("route add {v4}/32 dev {device}\nroute add {v6}/128 dev {device}\n"),
        )?;
        run::ip(
            self.netns(),
            &format!(
                "addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\nlink set eth0 up\n\
                 route add {ROUTED_GATEWAY_V4} dev eth0 scope link\n\
                 route add default via {ROUTED_GATEWAY_V4} dev eth0\n\
                 route add default via {ROUTED_GATEWAY_V6} dev eth0\n"
            ),
        )
    }
}
