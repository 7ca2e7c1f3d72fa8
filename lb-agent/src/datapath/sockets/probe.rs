// SPDX-License-Identifier: MIT OR Apache-2.0
//! What sockets need: a hierarchy, programs for it, the way to tell a namespace, the way to end one.
//!
//! **Invariant:** as in `datapath::probe`: what is tried goes away with the call. The socket that is
//! ended is its own.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_program_supported};

use super::diag::{Diag, Family};
use super::hooks::{self, PROGRAMS};
use super::netns_cookie;
use crate::datapath::link::Link;
use crate::datapath::probe::{Finding, Health, has_helper};
use crate::error_chain;

/// Who is not served without it.
const NOT_SERVED: &str = "processes of this node and pods on its network are not served";

/// Looks at what serving sockets takes.
pub(in crate::datapath) fn probe(cgroup: Option<&Path>) -> Vec<Finding> {
    vec![
        hierarchy(cgroup),
        programs(),
        namespace(),
        errors(),
        ending(),
    ]
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

fn namespace() -> Finding {
    const WHAT: &str = "network namespace";
    match netns_cookie() {
        Ok(cookie) => Finding::new(WHAT, Health::Fine, format!("its cookie is {cookie}")),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let detail = "the kernel does not tell its cookie (Linux 5.14 does); the agent learns it \
                          by a call of its own, and must be in the cgroup for that";
            Finding::new(WHAT, Health::Less, detail)
        }
        Err(error) => Finding::new(WHAT, Health::Lacking, error.to_string()),
    }
}

fn errors() -> Finding {
    const WHAT: &str = "errors of connect()";
    if has_helper(BpfHelper::BPF_FUNC_set_retval) {
        let detail = "ECONNREFUSED where a Service has no endpoints";
        return Finding::new(WHAT, Health::Fine, detail);
    }
    let detail = "EPERM where a Service has no endpoints: the kernel lets no program choose the error \
                  (Linux 6.1 does)";
    Finding::new(WHAT, Health::Less, detail)
}

fn ending() -> Finding {
    const WHAT: &str = "ending sockets";
    match end_one() {
        Ok(()) => {
            let detail = "connected sockets of UDP get an error when their backend goes";
            Finding::new(WHAT, Health::Fine, detail)
        }
        Err(error) => {
            let detail = format!(
                "connected sockets of UDP go on sending to a backend that is gone \
                 (CONFIG_INET_DIAG_DESTROY): {error}"
            );
            Finding::new(WHAT, Health::Less, detail)
        }
    }
}

/// Ends a socket of this process.
fn end_one() -> io::Result<()> {
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
