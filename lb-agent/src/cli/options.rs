// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flags that `run` and `plan` share: how Services are planned.
//!
//! **Invariant:** what is told by `plan` is what `run` does, because both take these flags.

use clap::{Args, Parser, ValueEnum};

use super::AlgorithmName;
use crate::model::prefix::Prefix;
use crate::plan::node::{DetectLocal, LocalClusterIps, NodePortAddresses, PlanOptions};

/// How kube-proxy's own `--detect-local-mode` names its ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum DetectLocalMode {
    /// The source lies within --cluster-cidr.
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// The source lies within the pod ranges of the Node object.
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// The packet comes in by --pod-bridge-interface.
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// The packet comes in by a device whose name begins with --pod-interface-name-prefix.
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// Who answers at a cluster address that a device of this node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LocalClusterIpsName {
    /// The host: `NodeLocal DNSCache` puts the address of the cluster's DNS on a device of its own.
    #[default]
    Host,
    /// The Service's backends, as everywhere else.
    Serve,
}

/// A word for how close to stay to another proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Parity {
    /// kube-proxy, without any deviation.
    KubeProxy,
}

/// How Services are planned.
#[derive(Clone, Debug, Args)]
pub(super) struct PlanningArgs {
    /// The algorithm of Services without the annotation lb-agent/algorithm.
    #[arg(long, value_enum, default_value_t)]
    algorithm: AlgorithmName,
    /// Behave as kube-proxy where we deviate by default: it chooses at random and masquerades
    /// towards backends on this node too. Sets --algorithm random and --snat-local-backends.
    #[arg(long, value_enum, value_name = "PROXY")]
    parity: Option<Parity>,
    /// Masquerade what goes to node ports and external addresses also when the backend is on this
    /// node; without it that backend sees the client's address.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = false,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    snat_local_backends: bool,
    /// Masquerade everything that goes to cluster addresses too, also from pods, and towards backends
    /// on this node as --snat-local-backends does.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = false,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    masquerade_all: bool,
    /// Where node ports are served: address ranges, or the word primary for the Node's first
    /// address of each family [default: all addresses of the node but loopback].
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    nodeport_addresses: Vec<String>,
    /// Whether this node's own processes reach node ports at loopback addresses too. Ranges of
    /// --nodeport-addresses that leave loopback out say no.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
          alias = "iptables-localhost-nodeports")]
    localhost_nodeports: bool,
    /// Who answers at a cluster address that a device of this node has (other than kube-ipvs0).
    /// What is left to the host gets a warning on its Service.
    #[arg(long, value_enum, default_value_t)]
    local_cluster_ips: LocalClusterIpsName,
    /// How pods of this node are told from other sources [default: by the device that a packet
    /// comes in by, which is found out].
    #[arg(long, value_enum, value_name = "MODE", ignore_case = true)]
    detect_local_mode: Option<DetectLocalMode>,
    /// For --detect-local-mode `ClusterCIDR`, which it implies: the pod ranges of the cluster, one for
    /// each family.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    cluster_cidr: Vec<Prefix>,
    /// For --detect-local-mode `BridgeInterface`: the bridge.
    #[arg(long, value_name = "DEVICE")]
    pod_bridge_interface: Option<String>,
    /// For --detect-local-mode `InterfaceNamePrefix`: what the names begin with, such as veth.
    #[arg(long, value_name = "PREFIX")]
    pod_interface_name_prefix: Option<String>,
}

/// The flags alone, without a verb.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct PlanningFlags {
    #[command(flatten)]
    planning: PlanningArgs,
}

/// The options that these flags of `run` and `plan` choose, for who plans without the program.
pub fn planning_options(flags: &[&str]) -> Result<PlanOptions, String> {
    let parsed = PlanningFlags::try_parse_from(flags).map_err(|e| e.to_string())?;
    parsed.planning.options()
}

impl PlanningArgs {
    /// The options, or a sentence that says which flag to change.
    pub(super) fn options(&self) -> Result<PlanOptions, String> {
        let addresses = NodePortAddresses::from_words(&self.nodeport_addresses);
        let options = PlanOptions {
            algorithm: self.algorithm.into(),
            masquerade_all: self.masquerade_all,
            snat_local_backends: self.snat_local_backends,
            node_port_addresses: addresses.map_err(|e| format!("--nodeport-addresses {e}"))?,
            detect_local: self.detect_local()?,
            local_cluster_ips: match self.local_cluster_ips {
                LocalClusterIpsName::Host => LocalClusterIps::Host,
                LocalClusterIpsName::Serve => LocalClusterIps::Serve,
            },
            no_loopback_node_ports: !self.localhost_nodeports,
        };
        Ok(match self.parity {
            Some(Parity::KubeProxy) => options.kube_proxy_parity(),
            None => options,
        })
    }

    fn detect_local(&self) -> Result<DetectLocal, String> {
        let needs = |flag: &str, mode: &str| {
            format!("--detect-local-mode {mode} needs {flag}; give it, or leave the mode out")
        };
        let alone = |flag: &str, mode: &str| {
            format!("{flag} means nothing without --detect-local-mode {mode}; give both, or none")
        };
        Ok(match self.detect_local_mode {
            // kube-proxy's own default, and what the flag is for.
            None if !self.cluster_cidr.is_empty() => {
                DetectLocal::ClusterCidr(self.cluster_cidr.clone())
            }
            None if self.pod_bridge_interface.is_some() => {
                return Err(alone("--pod-bridge-interface", "BridgeInterface"));
            }
            None if self.pod_interface_name_prefix.is_some() => {
                return Err(alone("--pod-interface-name-prefix", "InterfaceNamePrefix"));
            }
            None => DetectLocal::Device,
            // kube-proxy starts without ranges too, and tells no pods apart then.
            Some(DetectLocalMode::ClusterCidr) => {
                DetectLocal::ClusterCidr(self.cluster_cidr.clone())
            }
            Some(DetectLocalMode::NodeCidr) => DetectLocal::NodeCidr,
            Some(DetectLocalMode::BridgeInterface) => {
                let name = self.pod_bridge_interface.clone();
                let flag = || needs("--pod-bridge-interface DEVICE", "BridgeInterface");
                DetectLocal::BridgeInterface(name.filter(|n| !n.is_empty()).ok_or_else(flag)?)
            }
            Some(DetectLocalMode::InterfaceNamePrefix) => {
                let prefix = self.pod_interface_name_prefix.clone();
                let flag = || needs("--pod-interface-name-prefix PREFIX", "InterfaceNamePrefix");
                let prefix = prefix.filter(|p| !p.is_empty()).ok_or_else(flag)?;
                DetectLocal::InterfaceNamePrefix(prefix)
            }
        })
    }
}
