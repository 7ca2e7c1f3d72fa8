// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who takes part: a node that only forwards, and nodes with a service proxy each.
//!
//! **Invariant:** the nodes are alike but for what makes them contestants: each has the same client
//! pod and the same server pods behind the same kind of veth, and the same Services.
//! Read next: `stage`, which puts them into one lab.

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::{Duration, Instant};

use super::load::Goal;
use super::services::{self, Service, TARGET_PORT};
use super::{iptables, nftables};
use crate::agent::Agent;
use crate::error::LabError;
use crate::node::Node;
use crate::pod::Pod;
use crate::topology::NodeSettings;
use crate::{rules, run};

/// How long the agent may take until everything is programmed, on a machine that is slow and busy.
const READY_WITHIN: Duration = Duration::from_mins(2);
/// Services up to which `iptables-nft-restore` is asked: for 10,000 it takes many minutes.
const IPTABLES_NFT_MOST: u32 = 1_000;

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contestant {
    /// A router, without netfilter: the floor.
    Clean,
    /// `lb-agent`, on a node without netfilter.
    Ours,
    /// `lb-agent`, beside the rules of a CNI plugin, which switch conntrack on.
    OursBesideCni,
    Nftables,
    /// The same beside the rules of a CNI plugin.
    NftablesBesideCni,
    IptablesLegacy,
    IptablesNft,
}

/// What is dialled from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From a pod to the server pods themselves.
    Pods,
    /// From a pod to the cluster address of the first Service, or of the last.
    First,
    Last,
    /// From a client outside to the node port of the last Service.
    NodePort,
    /// From a client outside to the server pods themselves.
    Outside,
}

impl Contestant {
    pub(super) const ALL: [Self; 7] = [
        Self::Clean,
        Self::Ours,
        Self::OursBesideCni,
        Self::Nftables,
        Self::NftablesBesideCni,
        Self::IptablesLegacy,
        Self::IptablesNft,
    ];

    /// The name, also of the contestant's node.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Ours => "ours",
            Self::OursBesideCni => "ours-cni",
            Self::Nftables => "nftables",
            Self::NftablesBesideCni => "nftables-cni",
            Self::IptablesLegacy => "iptables-legacy",
            Self::IptablesNft => "iptables-nft",
        }
    }

    /// Who of ours is compared with it, if it is a rule set of kube-proxy's shape: who has the same
    /// beside it.
    pub(super) const fn rival(self) -> Option<Self> {
        match self {
            Self::Clean | Self::Ours | Self::OursBesideCni => None,
            Self::Nftables | Self::IptablesLegacy | Self::IptablesNft => Some(Self::Ours),
            Self::NftablesBesideCni => Some(Self::OursBesideCni),
        }
    }

    pub(super) const fn ways(self) -> &'static [Way] {
        match self {
            Self::Clean => &[Way::Pods, Way::Outside],
            Self::Ours
            | Self::OursBesideCni
            | Self::Nftables
            | Self::NftablesBesideCni
            | Self::IptablesLegacy
            | Self::IptablesNft => &Way::ALL,
        }
    }

    /// Why it does not take part with so many Services, if it does not.
    pub(super) fn absent(self, services: u32) -> Option<String> {
        (self == Self::IptablesNft && services > IPTABLES_NFT_MOST).then(|| {
            format!("not asked for more than {IPTABLES_NFT_MOST} Services: loading takes minutes")
        })
    }
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Pods,
        Self::First,
        Self::Last,
        Self::NodePort,
        Self::Outside,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::First => "service-first",
            Self::Last => "service-last",
            Self::NodePort => "node-port",
            Self::Outside => "outside-pods",
        }
    }

    /// Whether the client stands outside the cluster.
    pub(super) const fn is_outside(self) -> bool {
        matches!(self, Self::NodePort | Self::Outside)
    }

    /// The same from the same client without a Service.
    pub(super) const fn direct(self) -> Self {
        if self.is_outside() {
            Self::Outside
        } else {
            Self::Pods
        }
    }
}

/// What a contestant has on its node; it ends with the value.
pub(super) struct Installed {
    pub(super) services: Vec<Service>,
    /// From the first byte given to it until everything was in force.
    pub(super) took: Duration,
    _agent: Option<Agent>,
}

/// Gives a node its Services, and waits until everything is in force.
pub(super) fn install(
    contestant: Contestant,
    node: &Node,
    pods: &[Pod],
    services: u32,
    agent: &Path,
) -> Result<Installed, LabError> {
    let addresses: Vec<_> = pods.iter().map(|pod| pod.v4()).collect();
    let services = services::generate(services, &addresses);
    let (start, mut running) = (Instant::now(), None);
    if matches!(
        contestant,
        Contestant::OursBesideCni | Contestant::NftablesBesideCni
    ) {
        rules::install_these(node, &NodeSettings::default())?;
    }
    match contestant {
        Contestant::Clean => {}
        Contestant::Ours | Contestant::OursBesideCni => {
            running = Some(start_agent(node, &services, agent)?);
        }
        Contestant::Nftables | Contestant::NftablesBesideCni => {
            let text = nftables::ruleset(&services, node);
            load(node, "nft", &["-f", "-"], &text)?;
        }
        Contestant::IptablesLegacy | Contestant::IptablesNft => {
            let tool = format!("{}-restore", contestant.name());
            load(node, &tool, &["-w", "30"], &iptables::tables(&services))?;
        }
    }
    Ok(Installed {
        services,
        took: start.elapsed(),
        _agent: running,
    })
}

fn start_agent(node: &Node, services: &[Service], binary: &Path) -> Result<Agent, LabError> {
    let folder = node.file(".manifests");
    fs::create_dir_all(&folder).map_err(LabError::file("make", &folder))?;
    let file = folder.join("cluster.json");
    fs::write(&file, services::manifest(services, node)).map_err(LabError::file("write", &file))?;
    let mut agent = Agent::spawn(node, binary, &folder, &[])?;
    agent.wait_ready(READY_WITHIN)?;
    Ok(agent)
}

/// Gives a program a rule set; an error shows what the program said, not the megabytes it was given.
fn load(node: &Node, tool: &str, words: &[&str], text: &str) -> Result<(), LabError> {
    let loaded = run::feed(node.command(tool)?.args(words), text);
    let Err(mut error) = loaded else {
        return Ok(());
    };
    if let LabError::Command { input, .. } = &mut error {
        *input = format!("{} lines of rules", text.lines().count());
    }
    Err(error)
}

/// Where a client goes on this way.
pub(super) fn goal(
    contestant: Contestant,
    way: Way,
    node: &Node,
    pods: &[Pod],
    services: &[Service],
) -> Option<Goal> {
    let direct = pods
        .iter()
        .map(|pod| SocketAddrV4::new(pod.v4(), TARGET_PORT));
    let remotes = match way {
        Way::Pods | Way::Outside => direct.collect(),
        Way::First => vec![services.first()?.cluster],
        Way::Last => vec![services.last()?.cluster],
        Way::NodePort => vec![SocketAddrV4::new(node.v4(), services.last()?.node_port?)],
    };
    let name = contestant.name().to_owned();
    Some(Goal { remotes, name })
}
