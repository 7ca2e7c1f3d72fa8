// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every machine of a lab has: a name, a namespace, a cgroup, two addresses.
//!
//! Nodes, pods, clients and the router dereference to [`Host`].
//! **Invariant:** processes started through a host are in its namespace and in its cgroup,
//! so the lab's removal finds them. Read next: `client` and `server`, what runs on hosts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::capture::Capture;
use crate::cgroup::Visit;
use crate::client::{HttpClient, HttpReply, UdpClient};
use crate::error::LabError;
use crate::lab::Shared;
use crate::netns::NetNs;
use crate::server::{Server, ServerOptions};

/// What a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A cluster node.
    Node,
    /// A pod on a node.
    Pod,
    /// A machine outside the cluster.
    Client,
    /// The router that the nodes' network hangs on.
    Router,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Pod => "pod",
            Self::Client => "client",
            Self::Router => "router",
        })
    }
}

/// One machine of a lab.
#[derive(Clone)]
pub struct Host {
    pub(crate) lab: Arc<Shared>,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) netns: NetNs,
    pub(crate) cgroup: PathBuf,
    /// Whether the sockets of [`Host::run`] are in the cgroup too.
    pub(crate) in_cgroup: bool,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process = if self.in_cgroup { "process of " } else { "" };
        let Self { kind, name, .. } = self;
        write!(f, "{process}{kind} {name} ({}, {})", self.v4, self.v6)
    }
}

impl Host {
    /// The host's name, unique in its lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the host is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Its network namespace.
    pub const fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its cgroup v2 directory. A pod's lies below its node's.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its IPv4 address (a node's on the underlay).
    pub const fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub const fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// Both addresses, IPv4 first.
    pub const fn addresses(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }

    /// The same host as a process of its own is on it: the sockets that [`Host::run`] makes belong to
    /// the host's cgroup as well, so programs on it see what they do.
    ///
    /// For the time of each run the whole test process is in that cgroup, and other such runs wait,
    /// but for those within it on the thread that it runs on. A socket stays in its cgroup for good
    /// and may be used afterwards.
    #[must_use]
    pub fn process(&self) -> Self {
        Self {
            in_cgroup: true,
            ..self.clone()
        }
    }

    /// Runs a closure in the host's namespace on a thread of its own; see [`NetNs::run`].
    ///
    /// The cgroup is the caller's, unless the host is a [`Host::process`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        if !self.in_cgroup {
            return self.netns.run(work);
        }
        let _visit = Visit::to(&self.cgroup)?;
        self.netns.run(|| {
            Visit::admit_thread();
            work()
        })
    }

    /// A command that will run in the host's namespace and cgroup.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, LabError> {
        self.netns.command_in_cgroup(program, Some(&self.cgroup))
    }

    /// Runs a shell-free command line split at blanks and returns its standard output.
    ///
    /// An answer other than success is an error that carries what it wrote.
    pub fn output(&self, command_line: &str) -> Result<String, LabError> {
        let mut words = command_line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or("true"))?;
        crate::run::feed(command.args(words), "")
    }

    /// Asks a server for `path` on a new connection, with a bound of two seconds.
    pub fn http_get(&self, remote: SocketAddr, path: &str) -> Result<HttpReply, LabError> {
        self.run(|| HttpClient::new(remote).get(path))?
    }

    /// Asks a UDP server `question` from a new socket, with a bound of two seconds.
    pub fn udp_ask(&self, remote: SocketAddr, question: &str) -> Result<String, LabError> {
        self.run(|| UdpClient::bind(remote, None)?.ask(question))?
    }

    /// Starts a TCP (HTTP) and UDP server on both addresses that answers the host's name.
    ///
    /// It runs until the value is dropped or stopped.
    pub fn serve(&self, port: u16) -> Result<Server, LabError> {
        self.serve_with(&ServerOptions::new(&self.name, &[port]))
    }

    /// Starts a server with a name and ports of its own.
    pub fn serve_with(&self, options: &ServerOptions) -> Result<Server, LabError> {
        Server::start(self, options)
    }

    /// Starts recording packets on a device of the host, or on `any`.
    pub fn capture(&self, device: &str) -> Result<Capture, LabError> {
        Capture::start(self, device)
    }
}
