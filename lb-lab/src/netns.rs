// SPDX-License-Identifier: MIT OR Apache-2.0
//! A named network namespace: run code, programs and settings in it.
//!
//! **Invariant:** namespaces are entered by setns(2) in a thread or a child of their own,
//! never by `ip netns exec`, which remounts /sys and so hides bpffs and the cgroup mounts;
//! the caller's own namespace never changes. Read next: `host`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::error::LabError;
use crate::run;

/// Where iproute2 keeps the names of namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// How long the kernel may take to complete a device's addresses.
const SETTLE_MAX: Duration = Duration::from_secs(3);
/// `IFA_F_TENTATIVE` in the kernel: not checked for duplicates yet.
const TENTATIVE: u8 = 0x40;

/// Whether a device is complete by the lines of `/proc/net/if_inet6`: address, index, prefix
/// length, scope, flags, device, all but the last in hexadecimal.
fn is_settled(text: &str, device: &str) -> bool {
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_device = lines.filter(|fields| fields.get(5) == Some(&device));
    let (mut complete, mut link_local) = (true, false);
    for fields in of_device {
        let flags = u8::from_str_radix(fields[4], 16).unwrap_or(TENTATIVE);
        complete &= flags & TENTATIVE == 0;
        link_local |= fields[0].starts_with("fe80");
    }
    complete && link_local
}

/// A network namespace by its name under [`NETNS_DIR`].
///
/// The value holds no file descriptor, so it keeps nothing alive: once the lab is removed,
/// every use answers an error.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// Names a namespace that exists or is about to be made.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// The name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace; `nsenter --net=PATH` enters it.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    fn open(&self) -> Result<File, LabError> {
        File::open(self.path()).map_err(LabError::file("open network namespace", self.path()))
    }

    /// Runs a closure in the namespace, on a thread of its own, and returns its value.
    ///
    /// Sockets made by the closure belong to the namespace for good and may be returned.
    /// Threads that it starts stay in the namespace too. A panic of the closure is the caller's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let file = self.open()?;
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&file, CloneFlags::CLONE_NEWNET)?;
                    Ok(work())
                })
                .join()
        });
        match result {
            Ok(value) => value.map_err(LabError::sys(format!("enter {}", self.name))),
            Err(payload) => panic::resume_unwind(payload),
        }
    }

    /// A command that will run in the namespace, in the caller's cgroup.
    pub fn command(&self, program: &str) -> Result<Command, LabError> {
        self.command_in_cgroup(program, None)
    }

    /// A command that will run in the namespace and in the cgroup with this directory.
    pub(crate) fn command_in_cgroup(
        &self,
        program: impl AsRef<std::ffi::OsStr>,
        cgroup: Option<&Path>,
    ) -> Result<Command, LabError> {
        let netns = self.open()?;
        let procs = cgroup
            .map(|dir| {
                let path = dir.join("cgroup.procs");
                let opened = File::options().write(true).open(&path);
                opened.map_err(LabError::file("open", path))
            })
            .transpose()?;
        let mut command = Command::new(program);
        let enter = move || {
            if let Some(mut procs) = procs.as_ref() {
                procs.write_all(b"0")?;
            }
            setns(&netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
        };
        // SAFETY: between fork and exec the closure makes the system calls write and setns
        // on descriptors opened before; it takes no lock and allocates nothing.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Writes settings under /proc/sys/net of the namespace, given as (path, value) with the
    /// path relative to that directory, for example `("ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        self.run(|| {
            for (name, value) in settings {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value).map_err(LabError::file("write", path))?;
            }
            Ok(())
        })?
    }

    /// Waits until these devices have a link-local address and none that is still tentative.
    ///
    /// Until then a device does not answer its neighbours, who ask again a second later.
    pub(crate) fn settle(&self, devices: &[&str]) -> Result<(), LabError> {
        let bound = run::bound(SETTLE_MAX);
        let until = Instant::now() + bound;
        self.run(|| {
            loop {
                let path = "/proc/thread-self/net/if_inet6";
                let text = fs::read_to_string(path).map_err(LabError::file("read", path))?;
                if devices.iter().all(|device| is_settled(&text, device)) {
                    return Ok(());
                }
                if Instant::now() > until {
                    let what = format!("the addresses of {}", self.name);
                    return Err(LabError::Timeout {
                        what,
                        millis: bound.as_millis(),
                        log: text,
                    });
                }
                run::pause(Duration::from_millis(1));
            }
        })?
    }

    /// Reads a setting under /proc/sys/net of the namespace, without the end of line.
    pub fn read_sysctl(&self, name: &str) -> Result<String, LabError> {
        self.run(|| {
            let path = Path::new("/proc/sys/net").join(name);
            let text = fs::read_to_string(&path).map_err(LabError::file("read", path))?;
            Ok(text.trim_end().to_owned())
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_settled_when_its_link_local_address_is_no_longer_tentative() {
        let good = "fe80000000000000ecececfffeececec 02 40 20 80     eth0\n";
        let tentative = "fd00000000000000ecececfffeececec 02 40 00 c0     eth0\n";
        assert!(is_settled(good, "eth0"));
        assert!(!is_settled(good, "eth1"));
        assert!(!is_settled(&format!("{good}{tentative}"), "eth0"));
    }
}
