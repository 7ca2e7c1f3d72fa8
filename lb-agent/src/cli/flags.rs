// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flags of `lb-agent run`.
//!
//! **Invariant:** a value that cannot be is refused here, with what is allowed. Read next: `run.rs`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::kernel::KernelArgs;
use super::options::PlanningArgs;
use crate::config;
use crate::datapath::SocketLb;
use crate::telemetry::LogFormat;

/// The flags of `run`.
#[derive(Clone, Debug, Args)]
pub(super) struct RunArgs {
    /// Settings in YAML: each key is one of these flags in camelCase, as socketLb for --socket-lb.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Folder of Kubernetes manifests to serve and to watch (*.yaml, *.yml, *.json), instead of an
    /// API server.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_server"])]
    pub(super) manifests: Option<PathBuf>,
    /// How to reach and to log in to the API server [default: the files that KUBECONFIG names, else
    /// the service account of the pod].
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// The URL of the API server, instead of the one that the kubeconfig or the pod tells: an address
    /// that does not depend on what this agent programs.
    #[arg(long, value_name = "URL")]
    pub(super) api_server: Option<String>,
    /// Folder for what the API server told last: a node that comes back with empty tables serves by
    /// it until the server answers.
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
    /// The name of this node [default: the host name].
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
    /// Where to pin maps and programs, on a BPF file system.
    #[arg(long, value_name = "DIR", default_value = config::BPFFS_DEFAULT)]
    pub(super) bpffs: PathBuf,
    /// Whose sockets are translated when they connect or send: processes of this node send nothing
    /// through the devices of its pods, so without it they do not reach Services.
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub(super) socket_lb: SocketLbName,
    /// The cgroup v2 folder whose processes --socket-lb is about [default: the root of the hierarchy].
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup: Option<PathBuf>,
    #[command(flatten)]
    pub(super) planning: PlanningArgs,
    /// Devices to manage even if they are not found to need it; * and ? match any text.
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    pub(super) include_interfaces: Vec<String>,
    /// Devices to leave alone; wins over the former.
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    pub(super) exclude_interfaces: Vec<String>,
    #[command(flatten)]
    pub(super) kernel: KernelArgs,
    /// Seconds between two audits of the maps, which mend what others have changed; 0 for none.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub(super) audit_interval: u64,
    /// Where to answer /healthz and /livez, as load balancers and autoscalers ask kube-proxy; `[::]` is
    /// all addresses of both families, or of IPv4 alone where the node has no other; `none` for nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:10256",
          value_parser = parse_bind_address)]
    pub(super) healthz_bind_address: BindAddress,
    /// Where to answer /livez and /readyz about this agent itself, for the probes of its pod; `none`
    /// for nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10246",
          value_parser = parse_bind_address)]
    pub(super) probe_bind_address: BindAddress,
    /// Where to serve /metrics for Prometheus, /healthz and /proxyMode; `none` for nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249",
          value_parser = parse_bind_address)]
    pub(super) metrics_bind_address: BindAddress,
    /// Ports of Services that have counters of their own among the metrics, they and their backends;
    /// the first ones by name.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) metrics_services_max: usize,
    /// How to write the log.
    #[arg(long, value_enum, default_value_t)]
    pub(super) log_format: LogFormat,
}

/// Whose sockets are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum SocketLbName {
    /// Nobody's: this node's own processes do not reach Services.
    Off,
    /// Those of this node's processes and of its pods on the host network.
    #[default]
    Host,
    /// Those of all pods too, which saves them the work for each packet; meshes, virtual machines and
    /// NFS clients in pods may not bear it.
    All,
}

impl From<SocketLbName> for SocketLb {
    fn from(name: SocketLbName) -> Self {
        match name {
            SocketLbName::Off => Self::Off,
            SocketLbName::Host => Self::Host,
            SocketLbName::All => Self::All,
        }
    }
}

/// Where to listen, or nowhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct BindAddress(pub(super) Option<SocketAddr>);

fn parse_bind_address(text: &str) -> Result<BindAddress, String> {
    if text == "none" {
        return Ok(BindAddress(None));
    }
    match text.parse() {
        Ok(address) => Ok(BindAddress(Some(address))),
        Err(_) => Err("give an address and a port such as 127.0.0.1:10249, or none".to_owned()),
    }
}
