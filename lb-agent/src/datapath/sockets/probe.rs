// SPDX-License-Identifier: MIT OR Apache-2.0
//! What sockets need: a hierarchy, programs for it, the way to end one.
//!
//! **Invariant:** as in `datapath::probe`: what is tried goes away with the call. The socket that is
//! ended is its own.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::is_program_supported;

use super::diag::{Diag, Family};
use super::hooks::{self, PROGRAMS};
use crate::datapath::link::Link;
use crate::datapath::probe::{Finding, Health};
use crate::error_chain;

/// Who is not served without it.
const NOT_SERVED: &str = "processes of this node and pods on its network are not served";

/// Looks at what serving sockets takes.
pub(in crate::datapath) fn probe(cgroup: Option<&Path>) -> Vec<Finding> {
    vec![hierarchy(cgroup), programs()]
}

fn hierarchy(cgroup: Option<&Path>) -> Finding {
    const WHAT: &str = "cgroup v2";
    if let Some(path) = cgroup {
        return Finding::new(WHAT, Health::Fine, path.display().to_string());
    }
    let detail = format!(
        "no hierarchy is mounted: {NOT_SERVED}; mount one (`mount -t cgroup2 none DIR`), or let \
         --cgroup name one"
    );
    Finding::new(WHAT, Health::Lacking, detail)
}

fn programs() -> Finding {
    const WHAT: &str = "programs at sockets";
    match is_program_supported(ProgramType::CgroupSockAddr) {
        Ok(true) => Finding::new(WHAT, Health::Fine, "the kernel loads programs for cgroups"),
        Ok(false) => {
            let detail = format!("the kernel has none (CONFIG_CGROUP_BPF): {NOT_SERVED}");
            Finding::new(WHAT, Health::Lacking, detail)
        }
        Err(error) => Finding::new(WHAT, Health::Lacking, error_chain(&error)),
    }
}

/// Ends a socket of this process, to find out whether the kernel lets sockets be ended.
pub(in crate::datapath) fn can_end() -> io::Result<()> {
    let listening = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(listening.local_addr()?)?;
    let remote = listening.local_addr()?;
    let mut diag = Diag::open()?;
    let mut found = None;
    diag.list(Family::Inet, |listed| {
        if listed.remote() == remote {
            found = Some(listed);
        }
    })?;
    let found = found.ok_or_else(|| io::Error::other("the kernel does not list sockets of UDP"))?;
    diag.destroy(&found).map(drop)
}

/// Which of the programs an agent has put on the cgroup.
pub(in crate::datapath) fn attached(bpffs: &Path, cgroup: Option<&Path>) -> Finding {
    const WHAT: &str = "sockets";
    let wanted = cgroup.and_then(|path| fs::metadata(path).ok());
    let wanted = wanted.map(|folder| folder.ino());
    let links = PROGRAMS.iter().map(|(name, pin)| {
        let link = Link::open(&hooks::pin(bpffs, pin)).ok().flatten();
        (name, link.and_then(|link| link.cgroup().ok()))
    });
    let (there, missing): (Vec<_>, Vec<_>) =
        links.partition(|(_, id)| id.is_some_and(|id| id != 0 && wanted.is_none_or(|w| w == id)));
    match (there.len(), missing.len()) {
        (_, 0) => Finding::new(WHAT, Health::Fine, "served: all programs are on the cgroup"),
        (0, _) => {
            let detail = format!(
                "no program of an agent is on the cgroup: {NOT_SERVED}; is it running, and without \
                 --socket-lb=off?"
            );
            Finding::new(WHAT, Health::Less, detail)
        }
        _ => {
            let names: Vec<_> = missing.iter().map(|(name, _)| **name).collect();
            let detail = format!("missing on the cgroup: {}", names.join(", "));
            Finding::new(WHAT, Health::Lacking, detail)
        }
    }
}
