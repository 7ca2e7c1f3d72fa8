// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets of this node, and of its pods where that is asked for: the hooks of a cgroup.
//!
//! **Invariant:** sockets that cannot be served are no reason not to serve packets: what is missing is
//! told, and everything else goes on. Read next: `hooks.rs`, `netns.rs`.

mod diag;
mod hooks;
mod namespaces;
mod netns;
mod peers;
mod pods;
mod probe;
mod query;
mod stale;
mod trigger;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::DatapathConfig;
use super::error::DatapathError;
use super::kernel::{Feature, has};
use super::loader::SocketSettings;
use super::maps::KernelTables;
use super::pins::Pins;
use crate::error_chain;
use namespaces::Namespaces;
use stale::Stale;

pub(super) use diag::local_addresses;
pub(super) use hooks::{PROGRAMS, SocketHooks, fresh_pin};
pub(super) use namespaces::PodLearner;
pub(super) use probe::{attached, can_end, probe};
pub(super) use query::ours_on;
pub(super) use trigger::Trigger;

pub use netns::{learn_netns_cookie, netns_cookie};

/// Whose sockets are served at the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketLb {
    /// Nobody's.
    Off,
    /// Those of the node's own network namespace: its processes, and pods on the host network.
    #[default]
    Host,
    /// Those of pods as well, but for pods that are left out.
    All,
}

impl SocketLb {
    /// The word of the flag.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Host => "host",
            Self::All => "all",
        }
    }
}

/// What can be chosen about sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketConfig {
    /// Whose sockets are served.
    pub mode: SocketLb,
    /// The cgroup v2 folder whose processes are; none: there is no such hierarchy.
    pub cgroup: Option<PathBuf>,
}

/// The threads that look after sockets; they end with it.
pub(super) struct Keepers {
    /// Who ends sockets; nobody where none are served.
    stale: Option<Stale>,
    /// Who finds pods; nobody where their sockets are not served.
    namespaces: Option<Namespaces>,
}

impl Keepers {
    pub(super) fn start(
        pins: &Pins,
        tables: &mut KernelTables,
        config: &DatapathConfig,
    ) -> Result<Self, DatapathError> {
        let mode = config.sockets.mode;
        let namespaces = match &config.sockets.cgroup {
            Some(cgroup) if mode == SocketLb::All => {
                let unknown = config.serve_unknown_pods;
                Some(Namespaces::start(pins, cgroup, unknown, config.audit)?)
            }
            _ => None,
        };
        let stale = match mode {
            SocketLb::Off => None,
            SocketLb::Host | SocketLb::All => Some(Stale::start(
                pins,
                tables,
                namespaces.as_ref(),
                config.audit,
            )?),
        };
        Ok(Self { stale, namespaces })
    }

    /// Where to tell which pods are served.
    pub(super) fn learner(&self) -> Option<PodLearner> {
        self.namespaces.as_ref().map(Namespaces::learner)
    }

    /// How many sockets were ended.
    pub(super) fn destroyed(&self) -> Arc<AtomicU64> {
        let stale = self.stale.as_ref();
        stale.map(Stale::destroyed).unwrap_or_default()
    }
}

/// How sockets are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SocketState {
    /// Nobody asked for it.
    #[default]
    Off,
    /// As asked for.
    Serving(SocketLb),
    /// They are not: why, in words for a person.
    Lacking(String),
}

impl fmt::Display for SocketState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("sockets are not served, as asked for by --socket-lb=off"),
            Self::Serving(mode) => write!(f, "sockets are served (--socket-lb={})", mode.name()),
            Self::Lacking(why) => write!(
                f,
                "processes of this node are NOT served: {why}; they cannot reach Services by \
                 their virtual addresses, pods can"
            ),
        }
    }
}

/// What the programs at sockets are told, and what is missing for them, if anything is.
pub(super) fn prepare(config: &SocketConfig) -> (SocketSettings, Option<String>) {
    let mut settings = SocketSettings::default();
    if config.mode == SocketLb::Off {
        return (settings, None);
    }
    let Some(cgroup) = &config.cgroup else {
        let why = "no cgroup v2 hierarchy is mounted; mount one (`mount -t cgroup2 none DIR`), or \
                   let --cgroup name one";
        return (settings, Some(why.to_owned()));
    };
    let cookie = match netns_cookie() {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            learn_netns_cookie(cgroup).map_err(|e| error_chain(&e))
        }
        other => other.map_err(|e| format!("find out the agent's network namespace: {e}")),
    };
    match cookie {
        Ok(cookie) if cookie != 0 => settings.node_netns = cookie,
        Ok(_) => {
            let why = format!(
                "the agent could not find out its own network namespace: it is not in the cgroup \
                 {} or below; let --cgroup name one that it is in",
                cgroup.display()
            );
            return (settings, Some(why));
        }
        Err(why) => return (settings, Some(why)),
    }
    settings.of_pods = config.mode == SocketLb::All;
    if !has(Feature::SetRetval) {
        tracing::info!(
            "this kernel lets no program choose the error of connect(): where a Service has no \
             endpoints, processes of this node get EPERM instead of ECONNREFUSED"
        );
    }
    (settings, None)
}
