// SPDX-License-Identifier: MIT OR Apache-2.0
//! One lab with a node for each contestant, and everything that they have in common.
//!
//! **Invariant:** a contestant that cannot be set up is left out with the reason; only the clean
//! router is needed. A way that does not lead anywhere is a case with the reason and no numbers.
//! Read next: `rounds`.

use std::error::Error as _;
use std::fmt::Write as _;

use super::Options;
use super::contestant::{self, Contestant, Installed, Way};
use super::load::{self, Goal, LineServer};
use super::report::Setup;
use super::services::PODS;
use crate::bench::numbers::rounded;
use crate::bench::progress::Progress;
use crate::error::LabError;
use crate::host::Host;
use crate::lab::{Lab, Place};
use crate::node::Node;
use crate::pod::Pod;
use crate::run;
use crate::topology::Topology;
use crate::underlay::line;

/// Connections of a probe, enough to meet every server even where the choice is random.
const PROBES: usize = 100;
/// The first pod's address on its node; the client has the one before.
const FIRST_POD: u8 = 5;

/// Everything that one number of Services is measured in.
pub(super) struct Stage {
    pub(super) cases: Vec<Case>,
    stalls: Vec<Stall>,
    // Goes last.
    lab: Lab,
}

/// A contestant's node with what is on it.
struct Stall {
    contestant: Contestant,
    node: Node,
    client: Pod,
    pods: Vec<Pod>,
    _servers: Vec<LineServer>,
    installed: Result<Installed, String>,
}

/// One way through one contestant.
pub(super) struct Case {
    pub(super) contestant: Contestant,
    pub(super) way: Way,
    pub(super) client: Host,
    /// Where it leads, or why nothing is measured.
    pub(super) goal: Result<Goal, String>,
}

impl Stage {
    /// Makes the lab, gives every contestant its Services, and looks which ways lead somewhere.
    pub(super) fn set_up(
        options: &Options,
        services: u32,
        progress: &Progress,
    ) -> Result<Self, LabError> {
        let mut builder = Lab::builder()
            .topology(Topology::Routed)
            .masquerade(false)
            .forward_drop(false)
            .invalid_drop(false);
        for contestant in Contestant::ALL {
            builder = builder.node(contestant.name());
        }
        let lab = builder.build()?;
        let of = format!("lab {}, {services} Services", lab.id());
        let outside = lab.client("outside", Place::Underlay)?;
        route_to_pods(&outside, lab.nodes())?;
        let mut stalls = Vec::new();
        for (contestant, node) in Contestant::ALL.into_iter().zip(lab.nodes()) {
            progress.step(&of, &format!("setting up {}", contestant.name()));
            stalls.push(Stall::set_up(contestant, node, options, services)?);
        }
        progress.step(&of, "looking who answers");
        let mut cases = Vec::new();
        for stall in &stalls {
            for &way in stall.contestant.ways() {
                cases.push(stall.case(way, &outside, options.cpu)?);
            }
        }
        Ok(Self { cases, stalls, lab })
    }

    /// The lab's id.
    pub(super) fn id(&self) -> &str {
        self.lab.id()
    }

    /// What each contestant took to be set up, and what conntrack holds of its connections.
    pub(super) fn setups(&self, services: u32) -> Result<Vec<Setup>, LabError> {
        let setups = self.stalls.iter().map(|stall| {
            let took = stall.installed.as_ref().map(|installed| installed.took);
            let entries = stall
                .node
                .netns()
                .read_sysctl("netfilter/nf_conntrack_count");
            // A kernel may have no conntrack.
            let entries = entries.ok().and_then(|count| count.parse().ok());
            if stall.contestant == Contestant::Clean && entries.is_some_and(|count: u64| count > 0)
            {
                return Err(LabError::Malformed {
                    what: "the clean router's conntrack".to_owned(),
                    why: format!("it has {entries:?} entries, so it is no clean router"),
                });
            }
            Ok(Setup {
                services,
                contestant: stall.contestant,
                millis: took.ok().map(|took| rounded(took.as_secs_f64() * 1e3, 1)),
                conntrack_entries: entries,
                error: stall.installed.as_ref().err().cloned(),
            })
        });
        setups.collect()
    }
}

impl Stall {
    fn set_up(
        contestant: Contestant,
        node: &Node,
        options: &Options,
        services: u32,
    ) -> Result<Self, LabError> {
        let name = contestant.name();
        let client = node.pod(&format!("{name}-client"), FIRST_POD - 1)?;
        let (mut pods, mut servers) = (Vec::new(), Vec::new());
        for (number, host) in (FIRST_POD..).take(PODS).enumerate() {
            let pod = node.pod(&format!("{name}-web-{number}"), host)?;
            servers.push(LineServer::start(&pod, name, number, options.cpu)?);
            pods.push(pod);
        }
        let installed = if let Some(reason) = contestant.absent(services) {
            Err(reason)
        } else {
            match contestant::install(contestant, node, &pods, services, &options.agent) {
                // Without us there is nothing to measure; a peer may not be had everywhere.
                Err(error) if contestant.rival().is_none() => return Err(error),
                installed => installed.map_err(|error| with_causes(&error)),
            }
        };
        Ok(Self {
            contestant,
            node: node.clone(),
            client,
            pods,
            _servers: servers,
            installed,
        })
    }

    /// A way through this contestant, tried once.
    fn case(&self, way: Way, outside: &Host, cpu: usize) -> Result<Case, LabError> {
        let client = if way.is_outside() {
            outside.clone()
        } else {
            Host::clone(&self.client)
        };
        let goal = match &self.installed {
            Err(reason) => Err(reason.clone()),
            Ok(installed) => {
                let goal = contestant::goal(
                    self.contestant,
                    way,
                    &self.node,
                    &self.pods,
                    &installed.services,
                );
                try_out(&client, goal, cpu)?
            }
        };
        Ok(Case {
            contestant: self.contestant,
            way,
            client,
            goal,
        })
    }
}

/// Connects some times: every server must answer, and nothing else.
fn try_out(
    client: &Host,
    goal: Option<Goal>,
    cpu: usize,
) -> Result<Result<Goal, String>, LabError> {
    let Some(goal) = goal else {
        return Ok(Err("there is no such address".to_owned()));
    };
    let turn = load::probe(client, &goal, PROBES, cpu)?;
    if let Some(error) = turn.error {
        return Ok(Err(format!("not served: {error}")));
    }
    let answered = turn.servers.count_ones() as usize;
    if answered < PODS {
        return Ok(Err(format!(
            "not served: {answered} of {PODS} servers answered"
        )));
    }
    Ok(Ok(goal))
}

/// The way to the pods leads by their nodes at once, and not by the router, as that to a node port does.
fn route_to_pods(outside: &Host, nodes: &[Node]) -> Result<(), LabError> {
    let mut lines = String::new();
    for node in nodes {
        line!(lines, "route add {} via {}", node.pod_cidr_v4(), node.v4());
    }
    run::ip(outside.netns(), &lines)
}

/// An error with what caused it, in one line.
fn with_causes(error: &LabError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.replace('\n', "; ")
}
