// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the demo plays on: the lab, the pods, their servers, the agent, the manifests.
//!
//! **Invariant:** everything that uses the lab is dropped before it (the order of the fields).
//! Read next: `story`, what happens on it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::ask;
use super::error::{DemoError, claim};
use super::manifest::HOSTNAMES;
use crate::agent::Agent;
use crate::error::LabError;
use crate::lab::Lab;
use crate::manifests::Manifests;
use crate::node::Node;
use crate::pod::Pod;
use crate::server::Server;

/// The Service's addresses, as in the manifest.
pub(super) const VIP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 175));
pub(super) const VIP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0, 1, 0, 0, 0, 0x175));
/// Where the pods listen.
pub(super) const TARGET: u16 = 9376;
/// The pods of the classic example with the last part of their addresses.
pub(super) const PODS: [(&str, u8); 3] = [
    ("hostnames-0uton", 5),
    ("hostnames-yp2kp", 6),
    ("hostnames-bvc05", 7),
];
/// The file that the demo changes.
pub(super) const FILE: &str = "hostnames.yaml";
/// How long a change of the file may take to be in force.
const APPLIED_MAX: Duration = Duration::from_secs(5);
/// Lines of the log that an error shows.
const LOG_LINES: usize = 20;

pub(super) struct Stage {
    pub(super) agent: Option<Agent>,
    servers: BTreeMap<String, (Pod, Server)>,
    pub(super) client: Pod,
    manifests: Manifests,
    /// The manifest as it was written last.
    pub(super) text: String,
    pub(super) lab: Lab,
}

impl Stage {
    /// Makes the lab with the client and the three pods, and writes the manifests.
    pub(super) fn build() -> Result<Self, LabError> {
        let lab = Lab::builder().nodes(2).build()?;
        let client = lab.node(0).pod("client", 2)?;
        let manifests = Manifests::at(lab.dir().join("manifests"))?;
        for node in lab.nodes() {
            manifests.node(node)?;
        }
        manifests.write(FILE, HOSTNAMES)?;
        let mut stage = Self {
            agent: None,
            servers: BTreeMap::new(),
            client,
            manifests,
            text: HOSTNAMES.to_owned(),
            lab,
        };
        for (name, host) in PODS {
            stage.serve(&stage.node().pod(name, host)?)?;
        }
        Ok(stage)
    }

    /// The node of the client, where the agent runs.
    pub(super) fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// The other one.
    pub(super) fn other_node(&self) -> &Node {
        self.lab.node(1)
    }

    /// Starts a pod's server.
    pub(super) fn serve(&mut self, pod: &Pod) -> Result<(), LabError> {
        let server = pod.serve(TARGET)?;
        self.servers
            .insert(pod.name().to_owned(), (pod.clone(), server));
        Ok(())
    }

    /// Ends a pod's server: whoever is sent there from now on is refused.
    pub(super) fn stop_server(&mut self, pod: &str) {
        if let Some((_, server)) = self.servers.remove(pod) {
            server.stop();
        }
    }

    /// The pods whose servers run.
    pub(super) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.servers.values().map(|(pod, _)| pod)
    }

    /// Where the manifests are.
    pub(super) fn manifests(&self) -> &Path {
        self.manifests.dir()
    }

    /// A pinned map of the node.
    pub(super) fn pinned(&self, map: &str) -> PathBuf {
        self.node().bpffs().join(map)
    }

    /// Starts the agent and waits until it is ready.
    pub(super) fn start_agent(&mut self, binary: &Path) -> Result<(), LabError> {
        let agent = self.node().start_agent(binary, self.manifests.dir(), &[])?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Writes the manifest anew and waits until the map says `count` backends.
    pub(super) fn rewrite(&mut self, text: String, count: usize) -> Result<(), DemoError> {
        let until = Instant::now() + APPLIED_MAX;
        let mut after = self.agent.as_mut().and_then(Agent::applied).unwrap_or(0);
        self.manifests.write(FILE, &text)?;
        self.text = text;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(agent) = self.agent.as_mut() else {
                break;
            };
            let applied = agent.wait_applied(after, left)?;
            let dump = self.dump("FRONTENDS_V4")?;
            if leads_to(&dump, count) {
                return Ok(());
            }
            let Some(applied) = applied else { break };
            after = applied;
        }
        let dump = self.dump("FRONTENDS_V4")?;
        claim(
            false,
            format!("the map follows the manifest: {count} backends"),
            || dump,
        )
    }

    /// The command line that shows a map.
    pub(super) fn dump_line(&self, map: &str) -> String {
        format!("bpftool map dump pinned {}", self.pinned(map).display())
    }

    /// What that command line answers.
    pub(super) fn dump(&self, map: &str) -> Result<String, DemoError> {
        let mut command = Command::new("bpftool");
        command
            .args(["map", "dump", "pinned"])
            .arg(self.pinned(map));
        let output = ask::output(&mut command)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        claim(output.status.success(), self.dump_line(map), || {
            text.clone() + &String::from_utf8_lossy(&output.stderr)
        })?;
        Ok(text)
    }

    /// The last lines of the agent's log.
    pub(super) fn log_end(&self) -> String {
        let log = self.agent.as_ref().map(Agent::log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Ends the servers and the agent, then removes the lab.
    pub(super) fn remove(self) -> Result<(), LabError> {
        let Self {
            agent,
            servers,
            lab,
            ..
        } = self;
        drop((agent, servers));
        lab.remove()
    }
}

/// Whether a dump of `FRONTENDS_V4` shows the Service's address and port with `count` slots.
pub(super) fn leads_to(dump: &str, count: usize) -> bool {
    let dense: String = dump.split_whitespace().collect();
    let entries = dense.split("\"key\":").skip(1);
    let mut ours = entries.filter(|entry| {
        entry.contains("\"address\":[10,0,1,175]") && entry.contains("\"port\":80,")
    });
    ours.next()
        .is_some_and(|entry| entry.contains(&format!("\"cluster_count\":{count},")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = r#"[{
        "key": {
            "address": [10,0,1,175
            ],
            "port": 80,
            "proto": 6
        },
        "value": {
            "service": 1,
            "cluster_count": 3,
            "algorithm": 0
        }
    }
]"#;

    #[test]
    fn a_dump_leads_to_as_many_backends_as_it_says() {
        assert!(leads_to(DUMP, 3));
        assert!(!leads_to(DUMP, 2) && !leads_to(DUMP, 30));
        assert!(!leads_to(&DUMP.replace("175", "176"), 3));
        assert!(!leads_to("[]", 0));
    }

    #[test]
    fn the_addresses_are_those_of_the_manifest() {
        for address in [VIP_V4, VIP_V6] {
            assert!(HOSTNAMES.contains(&address.to_string()), "{address}");
        }
        for (pod, host) in PODS {
            assert!(HOSTNAMES.contains(&format!("name: {pod}\n")), "{pod}");
            assert!(HOSTNAMES.contains(&format!("10.244.0.{host}\n")), "{host}");
        }
    }
}
