// SPDX-License-Identifier: MIT OR Apache-2.0
//! A cluster node: a namespace that forwards, with its pods' network, rules, cgroup and bpffs.
//!
//! **Invariant:** a node looks like a machine that a CNI plugin has set up before any
//! service proxy came: nothing here knows of Services. Read next: `pod`, `agent`.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use crate::agent::Agent;
use crate::error::LabError;
use crate::host::{Host, Kind};
use crate::lab::{Shared, State};
use crate::pod::{Pod, PodAddress};
use crate::topology::{self, Topology, TxOffload, Underlay};
use crate::{bridged, rules, run, underlay};

/// The bridge of [`Topology::Bridge`].
pub const BRIDGE: &str = "cni0";

/// A node of the cluster. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    host: Host,
    inner: Arc<Inner>,
}

struct Inner {
    number: u8,
    bpffs: PathBuf,
    next_pod: AtomicU8,
    devices: Mutex<Vec<String>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.fmt(f)
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Node {
    /// Makes the namespace, the cgroup, the bpffs directory and the bridge of a node.
    pub(crate) fn make(
        state: &mut State,
        lab: &Arc<Shared>,
        name: &str,
        number: u8,
    ) -> Result<Self, LabError> {
        let cgroup = lab.cgroup.join(format!("node-{name}"));
        let addresses = topology::underlay(10 + number);
        let host = state.add_host(lab, Kind::Node, name, &cgroup, addresses)?;
        let bpffs = lab.path("bpf").join(name);
        fs::create_dir(&bpffs).map_err(LabError::file("make", &bpffs))?;
        host.netns()
            .sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        let (next_pod, devices) = (AtomicU8::new(100), Mutex::default());
        let node = Self {
            host,
            inner: Arc::new(Inner {
                number,
                bpffs,
                next_pod,
                devices,
            }),
        };
        if let Topology::Bridge { br_netfilter } = lab.topology {
            node.make_bridge(br_netfilter)?;
        }
        Ok(node)
    }

    fn make_bridge(&self, br_netfilter: bool) -> Result<(), LabError> {
        let ((v4, v6), mtu) = (self.gateway(), self.pod_mtu());
        run::ip(
            self.netns(),
            &format!(
                "link add {BRIDGE} address 02:00:0a:f4:{:02x}:01 mtu {mtu} type bridge\n\
                 addr add {v4}/24 dev {BRIDGE}\naddr add {v6}/64 dev {BRIDGE} nodad\n\
                 link set {BRIDGE} up\n",
                self.number()
            ),
        )?;
        if self.lab.settings.tx_offload != TxOffload::On {
            run::tx_offload_off(self.netns(), BRIDGE)?;
        }
        bridged::pass_netfilter(self.netns(), br_netfilter)
    }

    /// Puts the last parts in place, once the node can reach the others.
    pub(crate) fn finish(&self) -> Result<(), LabError> {
        if self.lab.topology == Topology::Routed {
            // As Calico does: what is no pod's address does not leave by the default route.
            let (v4, v6) = (self.pod_cidr_v4(), self.pod_cidr_v6());
            run::ip(
                self.netns(),
                &format!("route add blackhole {v4}\nroute add blackhole {v6} dev lo\n"),
            )?;
        }
        rules::install(self)
    }

    /// The node's number: 0 for the first.
    pub fn number(&self) -> u8 {
        self.inner.number
    }

    /// The node's directory in the lab's bpffs, for pinned maps.
    pub fn bpffs(&self) -> &Path {
        &self.inner.bpffs
    }

    /// The node's pod range, IPv4: 10.244.N.0/24.
    pub fn pod_cidr_v4(&self) -> String {
        format!("{}/24", topology::pod(self.number(), 0).0)
    }

    /// The node's pod range, IPv6: `fd00:10:244:N::/64`.
    pub fn pod_cidr_v6(&self) -> String {
        format!("{}/64", topology::pod(self.number(), 0).1)
    }

    /// The bridge's addresses, `.1` and `::1` of the pod range.
    pub fn gateway(&self) -> (Ipv4Addr, Ipv6Addr) {
        topology::pod(self.number(), 1)
    }

    /// The addresses of the node's vxlan device, `.0` and `::` of the pod range.
    pub fn vxlan_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        topology::pod(self.number(), 0)
    }

    /// The MTU of pods on this node.
    pub fn pod_mtu(&self) -> u16 {
        self.lab
            .settings
            .pod_mtu
            .unwrap_or(match self.lab.underlay {
                Underlay::Routes => topology::UNDERLAY_MTU,
                Underlay::Vxlan => topology::VXLAN_MTU,
            })
    }

    /// Makes a pod on this node.
    ///
    /// The address is chosen by [`PodAddress`]: `5` gives 10.244.N.5 and `fd00:10:244:N::5`.
    pub fn pod(&self, name: &str, address: impl Into<PodAddress>) -> Result<Pod, LabError> {
        Pod::make(self, name, address.into())
    }

    /// Makes a pod with `hostNetwork: true`: the node's namespace and addresses, and a cgroup of its
    /// own below the node's, to which its sockets belong.
    pub fn host_network_pod(&self, name: &str) -> Result<Host, LabError> {
        let mut state = self.lab.open()?;
        let (netns, addresses) = (self.netns().clone(), (self.v4(), self.v6()));
        let cgroup = self.cgroup().join(format!("pod{name}"));
        let who = (Kind::Pod, name);
        let host = state.add_host_in(&self.lab, who, netns, &cgroup, addresses)?;
        Ok(host.process())
    }

    /// Starts `lb-agent run` on this node and waits until the first state is programmed.
    pub fn start_agent(
        &self,
        binary: &Path,
        manifests: &Path,
        extra_args: &[&str],
    ) -> Result<Agent, LabError> {
        Agent::start(self, binary, manifests, extra_args)
    }

    /// The next pod address that nobody asked for by number.
    pub(crate) fn next_pod(&self) -> u8 {
        self.inner.next_pod.fetch_add(1, Ordering::Relaxed)
    }

    /// A device name for a pod's veth: readable, unique on the node, at most 15 bytes.
    pub(crate) fn device_name(&self, pod: &str) -> String {
        // The end of a name tells pods of one workload apart. Names are ASCII.
        let tail = pod[pod.len().saturating_sub(13)..].trim_start_matches(['-', '.']);
        let mut devices = self
            .inner
            .devices
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut name = format!("v-{tail}");
        for number in 0.. {
            if !devices.contains(&name) {
                break;
            }
            let suffix = format!("~{number}");
            name = format!("v-{}{suffix}", &tail[..tail.len().min(13 - suffix.len())]);
        }
        devices.push(name.clone());
        name
    }

    /// A path for the node's files in the lab's directory.
    pub(crate) fn file(&self, suffix: &str) -> PathBuf {
        self.lab.path(format!("{}{suffix}", self.name()))
    }

    /// The devices that lead away from the node: `eth0`, and the vxlan device if there is one.
    pub fn uplinks(&self) -> &'static [&'static str] {
        match self.lab.underlay {
            Underlay::Routes => &["eth0"],
            Underlay::Vxlan => &["eth0", underlay::VXLAN_DEVICE],
        }
    }
}
