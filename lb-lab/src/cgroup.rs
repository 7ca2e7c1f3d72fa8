// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves this process into a host's cgroup while it makes sockets for it.
//!
//! A socket belongs for good to the cgroup that its process is in when it is made, and programs on a
//! cgroup see the calls of its sockets. Entering a namespace is not enough for them.
//! **Invariant:** one visit at a time; the process is back when it ends, also after a panic, and
//! before a removal kills what is in a lab's cgroups. Read next: `host`.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::error::LabError;
use crate::stale;

/// Where the process was before its first visit.
static HOME: OnceLock<PathBuf> = OnceLock::new();
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether this thread runs for a visit, whose lock its own visits then are under.
    static VISITING: Cell<bool> = const { Cell::new(false) };
}

/// The first cgroup v2 hierarchy that is mounted.
pub(crate) fn mount() -> Result<PathBuf, LabError> {
    let mounts = fs::read_to_string("/proc/mounts").map_err(LabError::io("read /proc/mounts"))?;
    let mut fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = fields
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .ok_or(LabError::NoCgroup2)?;
    Ok(mount[1].into())
}

/// The cgroup directory that this process is in.
fn own() -> Result<PathBuf, LabError> {
    let path = "/proc/self/cgroup";
    let text = fs::read_to_string(path).map_err(LabError::file("read", path))?;
    let below = text.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(mount()?.join(below.ok_or(LabError::NoCgroup2)?))
}

fn enter(cgroup: &Path) -> Result<(), LabError> {
    let path = cgroup.join("cgroup.procs");
    let pid = std::process::id().to_string();
    fs::write(&path, pid).map_err(LabError::file("move this process by", path))
}

/// The time that this process spends in a host's cgroup; dropping it ends that.
pub(crate) struct Visit {
    back: Option<PathBuf>,
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Visit {
    /// Moves the process, once no other visit goes on.
    pub(crate) fn to(cgroup: &Path) -> Result<Self, LabError> {
        let lock = || ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = (!VISITING.get()).then(lock);
        let here = own()?;
        HOME.get_or_init(|| here.clone());
        let moves = here != cgroup;
        if moves {
            enter(cgroup)?;
        }
        Ok(Self {
            back: moves.then_some(here),
            _alone: alone,
        })
    }

    /// Lets this thread make visits of its own within this one.
    pub(crate) fn admit_thread() {
        VISITING.set(true);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(back) = &self.back
            && let Err(error) = enter(back)
        {
            stale::complain(&format!("{error}: sockets are made in the wrong cgroup"));
        }
    }
}

/// Ends a visit to a cgroup below `root` early, because all that is there will be killed.
pub(crate) fn leave(root: &Path) -> Result<(), LabError> {
    match HOME.get() {
        Some(home) if own()?.starts_with(root) => enter(home),
        _ => Ok(()),
    }
}
