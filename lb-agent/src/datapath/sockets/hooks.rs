// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts the programs at the sockets of a cgroup, beside those of others, and keeps them there.
//!
//! **Invariant:** as for devices: a link is changed in place, or a second one is made before the first
//! one goes, and none of them ends with this process.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use nix::errno::Errno;

use super::{SocketConfig, SocketLb, SocketState};
use crate::datapath::error::{DatapathError, os_error};
use crate::datapath::link::Link;
use crate::datapath::pins::Pins;
use crate::error_chain;

/// The programs and their pins. Those that show a socket its frontend come first: none is told of a
/// backend before.
pub(in crate::datapath) const PROGRAMS: [(&str, &str); 8] = [
    ("lb_getpeername4", "cgroup-getpeername4"),
    ("lb_getpeername6", "cgroup-getpeername6"),
    ("lb_recvmsg4", "cgroup-recvmsg4"),
    ("lb_recvmsg6", "cgroup-recvmsg6"),
    ("lb_connect4", "cgroup-connect4"),
    ("lb_connect6", "cgroup-connect6"),
    ("lb_sendmsg4", "cgroup-sendmsg4"),
    ("lb_sendmsg6", "cgroup-sendmsg6"),
];

/// The hooks of one cgroup.
pub(in crate::datapath) struct SocketHooks {
    config: SocketConfig,
    /// Why sockets cannot be served whatever is tried; none: they may be.
    impossible: Option<String>,
    /// Programs whose latest version is attached.
    current: BTreeSet<&'static str>,
    state: SocketState,
}

impl SocketHooks {
    /// Hooks as chosen; `impossible` says what is missing for them for good.
    pub(in crate::datapath) fn new(config: SocketConfig, impossible: Option<String>) -> Self {
        Self {
            config,
            impossible,
            current: BTreeSet::new(),
            state: SocketState::Off,
        }
    }

    /// How sockets are served, as far as is known.
    pub(in crate::datapath) fn state(&self) -> &SocketState {
        &self.state
    }

    /// From now on there are other programs to attach.
    pub(in crate::datapath) fn renew(&mut self) {
        self.current.clear();
    }

    /// True when an earlier program is attached that is to be replaced: also where another one cannot
    /// be attached, and where that was an earlier agent's.
    pub(in crate::datapath) fn is_outdated(&self, pins: &Pins) -> bool {
        let is_old = |(name, pin): &(&'static str, &str)| {
            !self.current.contains(name) && pins.links().join(pin).exists()
        };
        PROGRAMS.iter().any(is_old)
    }

    /// Sees to it that each program is on the cgroup once, or on none when that was chosen; tells how
    /// many had to be put back.
    pub(in crate::datapath) fn ensure(&mut self, ebpf: &mut Ebpf, pins: &Pins) -> u64 {
        let mode = self.config.mode;
        let before = self.state.clone();
        let result = match (&self.impossible, mode) {
            (_, SocketLb::Off) => remove_all(pins).map(|()| (SocketState::Off, 0)),
            (Some(why), _) => {
                let lacking = SocketState::Lacking(why.clone());
                remove_all(pins).map(|()| (lacking, 0))
            }
            (None, _) => self
                .attach_all(ebpf, pins)
                .map(|attached| (SocketState::Serving(mode), attached)),
        };
        let (state, attached) = result.unwrap_or_else(|error| {
            let why = format!("{}; it is tried again", error_chain(&error));
            (SocketState::Lacking(why), 0)
        });
        let repaired = if matches!(before, SocketState::Serving(_)) {
            attached
        } else {
            0
        };
        if repaired > 0 {
            tracing::warn!("put {repaired} programs at sockets back, they had been detached");
        }
        if state != before {
            match &state {
                SocketState::Lacking(_) => tracing::warn!("{state}"),
                SocketState::Off | SocketState::Serving(_) => tracing::info!("{state}"),
            }
            self.state = state;
        }
        repaired
    }

    /// Attaches what is not attached; tells how many that were. What fails keeps no other program from
    /// being the latest.
    fn attach_all(&mut self, ebpf: &mut Ebpf, pins: &Pins) -> Result<u64, DatapathError> {
        let path = self.config.cgroup.as_deref().unwrap_or(Path::new("/"));
        let failed = |source| DatapathError::Directory {
            what: "open cgroup",
            path: path.to_owned(),
            source,
        };
        let folder = File::open(path).map_err(failed)?;
        // The inode of a cgroup's folder is its id.
        let id = folder.metadata().map_err(failed)?.ino();
        let mut attached = Ok(0);
        for (name, pin) in PROGRAMS {
            let pin = pins.links().join(pin);
            let done =
                program(ebpf, name).and_then(|program| attach(program, name, (&folder, id), &pin));
            match done {
                Ok(new) => {
                    self.current.insert(name);
                    attached = attached.map(|count: u64| count + u64::from(new));
                }
                Err(error) => attached = attached.and(Err(error)),
            }
        }
        attached
    }
}

/// Sees to it that the program is on the cgroup; true when it was not.
fn attach(
    program: &mut CgroupSockAddr,
    name: &'static str,
    (folder, id): (&File, u64),
    pin: &Path,
) -> Result<bool, DatapathError> {
    let failed = |source: io::Error| DatapathError::Hook { name, source };
    if let Some(link) = Link::open(pin).map_err(failed)?
        && link.cgroup().map_err(failed)? == id
    {
        let fd = program.fd().map_err(|e| failed(io::Error::other(e)))?;
        match link.update(fd.as_fd()) {
            Ok(()) => return Ok(false),
            // KERNEL: a link whose cgroup has gone meanwhile, or that was detached by force.
            Err(error) if error.raw_os_error() == Some(Errno::ENOLINK as i32) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let as_io = |error: aya::programs::ProgramError| {
        let number = os_error(&error);
        failed(number.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error))
    };
    let link = program
        .attach(folder, CgroupAttachMode::Single)
        .map_err(as_io)?;
    let link = program.take_link(link).map_err(as_io)?;
    let link = FdLink::try_from(link).map_err(|e| failed(io::Error::other(e)))?;
    // ORDER: the link that was there goes when the rename drops its pin, after the new one is on.
    let fresh = fresh_pin(pin);
    forget(&fresh)?;
    link.pin(&fresh).map_err(|e| failed(io::Error::other(e)))?;
    std::fs::rename(&fresh, pin).map_err(failed)?;
    Ok(true)
}

/// Where a link is pinned, below the directory of all pins.
pub(super) fn pin(bpffs: &Path, name: &str) -> PathBuf {
    bpffs.join("links").join(name)
}

/// Where a link is pinned until it takes the place of another. A BPF file system refuses names with
/// a dot.
pub(in crate::datapath) fn fresh_pin(pin: &Path) -> PathBuf {
    let mut path = pin.as_os_str().to_owned();
    path.push("-new");
    path.into()
}

/// The program `name` of the object, in the kernel.
fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut CgroupSockAddr, DatapathError> {
    let program: &mut CgroupSockAddr = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(DatapathError::Missing { name })?;
    if program.fd().is_err() {
        program
            .load()
            .map_err(|error| DatapathError::refused(name, error))?;
    }
    Ok(program)
}

/// Takes the programs off, the last that was attached first.
fn remove_all(pins: &Pins) -> Result<(), DatapathError> {
    PROGRAMS
        .iter()
        .rev()
        .try_for_each(|(_, pin)| forget(&pins.links().join(pin)))
}

/// Removes a pin if there is one.
fn forget(path: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DatapathError::Directory {
            what: "remove link",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
