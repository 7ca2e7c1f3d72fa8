// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this kernel and its mounts offer, found out by trying, what an agent has put in place, and what
//! others have.
//!
//! **Invariant:** nothing is changed: what is tried on goes away with the call.

use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::is_program_supported;
use serde::Serialize;

use super::drain::is_draining;
use super::look::NodeLook;
use super::netfilter::Rules;
use super::owner::owner;
use super::pins::Pins;
use super::{rights, sockets};
use crate::error_chain;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Fine,
    /// Something works less well; the detail says what.
    Less,
    /// Something is missing; the detail says what does not work, and what to do.
    Lacking,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it is.
    pub what: &'static str,
    /// How it is.
    pub health: Health,
    /// What was found, for a person.
    pub detail: String,
}

impl Finding {
    pub(super) fn new(what: &'static str, health: Health, detail: impl Into<String>) -> Self {
        Self {
            what,
            health,
            detail: detail.into(),
        }
    }
}

/// Looks at everything that serving packets and sockets takes.
pub fn probe(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Finding> {
    let mut found = vec![programs(), pins(bpffs)];
    found.extend(sockets::probe(cgroup));
    found.push(sockets::attached(bpffs, cgroup));
    found.extend(Rules::look().findings());
    found
}

/// What disturbs on this node, and what an agent has put in place.
pub fn disturbances(bpffs: &Path, cgroup: Option<&Path>, node: &NodeLook) -> Vec<Finding> {
    const WHAT: &str = "devices";
    let devices = if node.lacking.is_empty() {
        let detail = format!("programs are at all {} that need them", node.served.len());
        Finding::new(WHAT, Health::Fine, detail)
    } else {
        let lacking: Vec<&str> = node.lacking.iter().map(String::as_str).collect();
        let detail = format!(
            "no program at {}: what comes in or goes out there is not served; is the agent running, with \
             the same --include-interfaces and --exclude-interfaces?",
            lacking.join(", ")
        );
        Finding::new(WHAT, Health::Lacking, detail)
    };
    let mut found = vec![devices, sockets::attached(bpffs, cgroup)];
    found.extend(Rules::look().findings());
    found
}

fn programs() -> Finding {
    const WHAT: &str = "programs at devices";
    if let Err(error) = rights::check() {
        return Finding::new(WHAT, Health::Lacking, error_chain(&error));
    }
    match is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => Finding::new(WHAT, Health::Fine, "the kernel loads programs for tc"),
        Ok(false) => {
            let detail = "the kernel has none (CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT): nothing is \
                          served";
            Finding::new(WHAT, Health::Lacking, detail)
        }
        Err(error) => {
            let detail = format!(
                "run as root, or with CAP_BPF and more: {}",
                error_chain(&error)
            );
            Finding::new(WHAT, Health::Lacking, detail)
        }
    }
}

fn pins(bpffs: &Path) -> Finding {
    const WHAT: &str = "pins";
    const DRAINING: &str = "no new flows begin, a drain was not brought to its end; `lb-agent run` \
                            serves again, `lb-agent cleanup` takes the rest away";
    match Pins::open(bpffs) {
        Ok(pins) => {
            let (health, state) = match owner(bpffs) {
                Some(holder) => (
                    Health::Fine,
                    format!("{} owns them", holder.trim_end_matches(',')),
                ),
                None if is_draining(&pins) => (Health::Less, DRAINING.to_owned()),
                None => (
                    Health::Fine,
                    "no agent runs, what is there goes on".to_owned(),
                ),
            };
            let detail = format!("an agent's, {}: {state}", bpffs.display());
            Finding::new(WHAT, health, detail)
        }
        Err(error) => Finding::new(WHAT, Health::Less, error_chain(&error)),
    }
}
