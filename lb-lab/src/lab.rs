// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds a cluster of namespaces and removes it.
//!
//! **Invariant:** everything that a lab makes carries its id in its name (namespaces,
//! cgroups, directories), so `stale` can remove it knowing the id only; nothing is made
//! while the removal runs. Read next: `underlay` (network between nodes), `node`, `pod`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::builder::Builder;
use crate::error::LabError;
use crate::host::{Host, Kind};
use crate::netns::NetNs;
use crate::node::Node;
use crate::server::Stop;
use crate::topology::{CLIENTS_MAX, NodeSettings, Topology, Underlay};
use crate::{run, stale, topology, underlay};

/// Where a client outside the cluster stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// On the nodes' own network, 192.168.50.200 and up.
    Underlay,
    /// Behind the router, 203.0.113.200 and up.
    BeyondRouter,
}

/// What a lab's parts share.
pub(crate) struct Shared {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) topology: Topology,
    pub(crate) underlay: Underlay,
    pub(crate) settings: NodeSettings,
    pub(crate) state: Mutex<State>,
    // The lock says "alive" to other processes; it goes with the descriptor.
    pub(crate) _lock: File,
}

/// What changes while a lab lives. Holding it keeps the removal out.
#[derive(Default)]
pub(crate) struct State {
    closed: bool,
    names: BTreeSet<String>,
    clients: usize,
    servers: Vec<Weak<Stop>>,
}

impl Shared {
    /// Reserves the right to make things; fails once the lab is being removed.
    pub(crate) fn open(&self) -> Result<MutexGuard<'_, State>, LabError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(LabError::Closed {
                id: self.id.clone(),
            });
        }
        Ok(state)
    }

    /// Stops the servers and removes everything; the second call does nothing.
    pub(crate) fn remove(&self) -> Result<(), LabError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Ok(());
        }
        state.closed = true;
        for server in state.servers.drain(..).filter_map(|weak| weak.upgrade()) {
            server.now();
        }
        stale::remove_traces(&self.id)
    }

    /// Where the lab's files are.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }
}

impl State {
    /// Remembers a server so that it ends with the lab.
    pub(crate) fn add_server(&mut self, stop: &Arc<Stop>) {
        self.servers.retain(|weak| weak.strong_count() > 0);
        self.servers.push(Arc::downgrade(stop));
    }

    /// Makes a host: a namespace with its loopback up, a cgroup, and a note of both.
    pub(crate) fn add_host(
        &mut self,
        lab: &Arc<Shared>,
        kind: Kind,
        name: &str,
        cgroup: &Path,
        addresses: (Ipv4Addr, Ipv6Addr),
    ) -> Result<Host, LabError> {
        let netns = NetNs::named(format!("lb-{}-{name}", lab.id));
        let host = self.add_host_in(lab, (kind, name), netns, cgroup, addresses)?;
        let netns = host.netns();
        run::ip_netns(&format!("netns add {}\n", netns.name()))?;
        let rp_filter = lab.settings.rp_filter.value();
        netns.sysctl(&[
            ("ipv4/conf/all/rp_filter", rp_filter),
            ("ipv4/conf/default/rp_filter", rp_filter),
            // Duplicate address detection would hold every new address back for a second.
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
        ])?;
        run::ip(netns, "link set lo up\n")?;
        Ok(host)
    }

    /// Makes a host in a namespace that exists or is about to be made: a cgroup, and a note of both.
    pub(crate) fn add_host_in(
        &mut self,
        lab: &Arc<Shared>,
        (kind, name): (Kind, &str),
        netns: NetNs,
        cgroup: &Path,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
    ) -> Result<Host, LabError> {
        self.check_name(name)?;
        fs::create_dir_all(cgroup).map_err(LabError::file("make cgroup", cgroup))?;
        let note = format!("{kind} {v4} {v6} {} {}\n", netns.name(), cgroup.display());
        let path = lab.path("hosts").join(name);
        fs::write(&path, note).map_err(LabError::file("write", path))?;
        Ok(Host {
            lab: Arc::clone(lab),
            kind,
            name: name.to_owned(),
            netns,
            cgroup: cgroup.to_path_buf(),
            in_cgroup: false,
            v4,
            v6,
        })
    }

    fn check_name(&mut self, name: &str) -> Result<(), LabError> {
        let fail = |why| {
            Err(LabError::Name {
                name: name.to_owned(),
                why,
            })
        };
        let allowed =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || name.len() > 63 || !name.chars().all(allowed) {
            return fail("needs 1 to 63 of a-z, 0-9, '-' and '.'");
        }
        if name.starts_with(['-', '.']) {
            return fail("must start with a letter or a digit");
        }
        if !self.names.insert(name.to_owned()) {
            return fail("is taken in this lab");
        }
        Ok(())
    }
}

/// A cluster made of network namespaces; dropping it removes everything it made.
pub struct Lab {
    pub(crate) shared: Arc<Shared>,
    pub(crate) router: Host,
    pub(crate) nodes: Vec<Node>,
}

impl Lab {
    /// Starts describing a lab; the default is one node with a bridge and `br_netfilter`.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// The lab's id, a part of every name it uses.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The lab's directory: logs, captures, the bpffs mount. Removed with the lab.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// How nodes join their pods.
    pub fn topology(&self) -> Topology {
        self.shared.topology
    }

    /// How nodes join each other.
    pub fn underlay(&self) -> Underlay {
        self.shared.underlay
    }

    /// What the nodes were set to.
    pub fn settings(&self) -> &NodeSettings {
        &self.shared.settings
    }

    /// All nodes in the order of their numbers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with this number; panics like an index if there is none.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    /// The router: 192.168.50.1 on the underlay, 203.0.113.1 on the far side.
    pub const fn router(&self) -> &Host {
        &self.router
    }

    /// Makes a client outside the cluster.
    pub fn client(&self, name: &str, place: Place) -> Result<Host, LabError> {
        let mut state = self.shared.open()?;
        let number = state.clients;
        if number == CLIENTS_MAX {
            return Err(LabError::Name {
                name: name.to_owned(),
                why: "too many clients",
            });
        }
        state.clients += 1;
        let addresses = match place {
            Place::Underlay => topology::underlay(200 + number.to_le_bytes()[0]),
            Place::BeyondRouter => topology::wan(200 + number.to_le_bytes()[0]),
        };
        let cgroup = self.shared.cgroup.join(format!("client-{name}"));
        let host = state.add_host(&self.shared, Kind::Client, name, &cgroup, addresses)?;
        underlay::join_client(&self.router, &host, place, number)?;
        Ok(host)
    }

    /// Removes the lab now and says what could not be removed; dropping it does the same silently.
    pub fn remove(self) -> Result<(), LabError> {
        self.shared.remove()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.shared.remove() {
            stale::complain(&format!("remove lab {}: {error}", self.shared.id));
        }
        stale::forget(&self.shared);
    }
}
