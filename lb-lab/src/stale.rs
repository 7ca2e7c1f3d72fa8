// SPDX-License-Identifier: MIT OR Apache-2.0
//! Removes labs: at their end, on a signal, and those that a killed process left behind.
//!
//! Each lab has a directory /run/lb-lab/ID with a file `lock` that its process holds by
//! flock. A lock that can be taken belongs to nobody: the lab is stale.
//! **Invariant:** removal needs the id only, may be repeated at any point, and the directory
//! goes last, so whatever is left can still be found. Read next: `lab`.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::LabError;
use crate::lab::Shared;
use crate::netns::{NETNS_DIR, NetNs};
use crate::{cgroup, run};

/// The directory of all labs of this machine.
pub const RUN_DIR: &str = "/run/lb-lab";
/// How long processes may take to be gone after SIGKILL.
const KILL_MAX: Duration = Duration::from_secs(5);

static LIVE: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
static HANDLER: Once = Once::new();
static ON_SIGNAL: Mutex<Option<Box<dyn FnMut() + Send>>> = Mutex::new(None);

/// A lab found on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Whether a process holds it.
    pub live: bool,
    /// Its hosts, in the order of their names.
    pub hosts: Vec<FoundHost>,
}

/// A host of a lab of this or another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundHost {
    /// Its name.
    pub name: String,
    /// What it is: node, pod, client or router.
    pub kind: String,
    /// Its IPv4 address.
    pub v4: String,
    /// Its IPv6 address.
    pub v6: String,
    /// Its network namespace.
    pub netns: NetNs,
    /// Its cgroup directory.
    pub cgroup: PathBuf,
}

impl FoundHost {
    /// Reads the note that a lab keeps of each host: `kind ipv4 ipv6 netns cgroup`.
    fn read(path: &Path) -> Option<Self> {
        let note = fs::read_to_string(path).ok()?;
        let name = path.file_name()?.to_string_lossy().into_owned();
        let mut fields = note.trim_end().splitn(5, ' ').map(str::to_owned);
        let (kind, v4, v6) = (fields.next()?, fields.next()?, fields.next()?);
        let (netns, cgroup) = (NetNs::named(fields.next()?), fields.next()?.into());
        Some(Self {
            name,
            kind,
            v4,
            v6,
            netns,
            cgroup,
        })
    }

    /// A command that will run in the host's namespace and cgroup.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, LabError> {
        self.netns.command_in_cgroup(program, Some(&self.cgroup))
    }
}

/// Lists the labs of this machine, live and stale.
pub fn list() -> Result<Vec<Found>, LabError> {
    let _guard = lock_all()?;
    let mut labs = Vec::new();
    for id in ids()? {
        let dir = Path::new(RUN_DIR).join(&id);
        let live = try_lock(&dir)?.is_none();
        let notes = fs::read_dir(dir.join("hosts"))
            .into_iter()
            .flatten()
            .flatten();
        let mut hosts: Vec<_> = notes
            .filter_map(|note| FoundHost::read(&note.path()))
            .collect();
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        labs.push(Found {
            id,
            dir,
            live,
            hosts,
        });
    }
    Ok(labs)
}

/// Removes every lab that no process holds and returns their ids.
pub fn clean() -> Result<Vec<String>, LabError> {
    let mut stale = Vec::new();
    {
        let _guard = lock_all()?;
        for id in ids()? {
            // The lock is kept until the removal is over, so only one process does it.
            if let Some(lock) = try_lock(&Path::new(RUN_DIR).join(&id))? {
                stale.push((id, lock));
            }
        }
    }
    let mut removed = Vec::new();
    for (id, _lock) in stale {
        remove_traces(&id)?;
        removed.push(id);
    }
    Ok(removed)
}

/// Removes all labs of this process; for programs with a signal handler of their own.
pub fn remove_all() {
    let labs: Vec<_> = LIVE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .drain(..)
        .collect();
    for lab in labs.iter().filter_map(Weak::upgrade) {
        if let Err(error) = lab.remove() {
            complain(&format!("remove lab {}: {error}", lab.id));
        }
    }
}

/// Does `work` at every signal from now on, in place of removing all labs and exiting with 130.
///
/// It runs on the signal handler's own thread.
pub fn on_signal(work: impl FnMut() + Send + 'static) {
    *ON_SIGNAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(work));
}

/// Makes a directory with a fresh id and holds its lock.
pub(crate) fn claim() -> Result<(String, PathBuf, File), LabError> {
    let _guard = lock_all()?;
    loop {
        let random = RandomState::new().build_hasher().finish();
        let id = format!("{:05x}", random & 0xf_ffff);
        let dir = Path::new(RUN_DIR).join(&id);
        match fs::create_dir(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(LabError::file("make", dir)(error)),
        }
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(LabError::file("make", &path))?;
        lock.lock().map_err(LabError::file("lock", path))?;
        let hosts = dir.join("hosts");
        fs::create_dir(&hosts).map_err(LabError::file("make", hosts))?;
        return Ok((id, dir, lock));
    }
}

/// Registers a lab for the signal handler, which it installs at first.
pub(crate) fn remember(lab: &Arc<Shared>) {
    LIVE.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Arc::downgrade(lab));
    HANDLER.call_once(|| {
        let end = || {
            let mut work = ON_SIGNAL.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(work) = work.as_mut() {
                return work();
            }
            remove_all();
            std::process::exit(130);
        };
        // A program with a handler of its own calls `remove_all` there.
        if let Err(error) = ctrlc::set_handler(end) {
            complain(&format!("labs are not removed by a signal: {error}"));
        }
    });
}

/// Takes a removed lab from the register.
pub(crate) fn forget(lab: &Arc<Shared>) {
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    live.retain(|weak| weak.strong_count() > 0 && !weak.ptr_eq(&Arc::downgrade(lab)));
}

/// Writes a line for the person at the terminal, where no caller is left to take an error.
pub(crate) fn complain(text: &str) {
    // Nothing can be done if standard error is gone.
    drop(writeln!(io::stderr(), "lb-lab: {text}"));
}

/// The cgroup directory of a lab, in the first cgroup v2 hierarchy that is mounted.
pub(crate) fn cgroup_of(id: &str) -> Result<PathBuf, LabError> {
    Ok(cgroup::mount()?.join(format!("lb-lab.{id}")))
}

/// Mounts the lab's bpffs outside /sys, where no other tool's remount can hide it.
pub(crate) fn mount_bpffs(lab: &Shared) -> Result<(), LabError> {
    let dir = lab.path("bpf");
    fs::create_dir(&dir).map_err(LabError::file("make", &dir))?;
    mount(
        Some("bpf"),
        &dir,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .map_err(LabError::sys(format!("mount bpffs on {}", dir.display())))
}

/// Removes everything that carries a lab's id; what is already gone is not missed.
///
/// All steps are tried; the first failure is returned.
pub(crate) fn remove_traces(id: &str) -> Result<(), LabError> {
    let dir = Path::new(RUN_DIR).join(id);
    let cgroup = cgroup_of(id)?;
    let killed = cgroup::leave(&cgroup).and_then(|()| kill_all(&cgroup));
    // Namespaces go between, so that what is killed late finds none to enter.
    let netns = delete_namespaces(id);
    let unmounted = match umount2(&dir.join("bpf"), MntFlags::MNT_DETACH) {
        // Not a mount point, or no such directory: there is nothing to unmount.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => Err(LabError::sys(format!("unmount {}/bpf", dir.display()))(
            errno,
        )),
    };
    let cgroups = remove_cgroups(&cgroup);
    killed.and(netns).and(unmounted).and(cgroups)?;
    // Nobody may look for locks while the directory is half gone.
    let _guard = lock_all()?;
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LabError::file("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

fn ids() -> Result<Vec<String>, LabError> {
    let entries = fs::read_dir(RUN_DIR).map_err(LabError::file("read", RUN_DIR))?;
    let dirs = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut ids: Vec<_> = dirs
        .map(|dir| dir.file_name().to_string_lossy().into_owned())
        .collect();
    ids.sort();
    Ok(ids)
}

/// Held while labs are claimed and found, so that no new directory is taken for a stale one.
fn lock_all() -> Result<File, LabError> {
    fs::create_dir_all(RUN_DIR).map_err(LabError::file("make", RUN_DIR))?;
    let path = Path::new(RUN_DIR).join("lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.map_err(LabError::file("open", &path))?;
    file.lock().map_err(LabError::file("lock", path))?;
    Ok(file)
}

/// The lab's lock, if nobody holds it. A directory without a lock file counts as stale.
fn try_lock(dir: &Path) -> Result<Option<File>, LabError> {
    let path = dir.join("lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.map_err(LabError::file("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(LabError::file("lock", path)(error)),
    }
}

/// All cgroups of a lab, the deepest first.
fn cgroups(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    let mut next = 0;
    while let Some(dir) = found.get(next) {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let below: Vec<_> = entries
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.path())
            .collect();
        found.extend(below);
        next += 1;
    }
    found.reverse();
    found
}

/// Kills every process of the lab's cgroups and waits until they are gone.
fn kill_all(root: &Path) -> Result<(), LabError> {
    if !root.exists() {
        return Ok(());
    }
    let until = Instant::now() + run::bound(KILL_MAX);
    loop {
        let events = root.join("cgroup.events");
        // The notification refers to what was read, so the file is opened before the signals.
        let file = File::open(&events).map_err(LabError::file("open", &events))?;
        let text = fs::read_to_string(&events).map_err(LabError::file("read", &events))?;
        if text.contains("populated 0") {
            return Ok(());
        }
        if Instant::now() > until {
            let (what, millis) = (
                "the lab's processes to end".to_owned(),
                KILL_MAX.as_millis(),
            );
            return Err(LabError::Timeout {
                what,
                millis,
                log: root.display().to_string(),
            });
        }
        for dir in cgroups(root) {
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in procs
                .lines()
                .filter_map(|line| line.parse().ok())
                .filter(|pid| *pid > 1)
            {
                // A process that ended in between is what we want.
                kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default();
            }
        }
        let mut change = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        poll(&mut change, PollTimeout::from(50_u8)).map_err(LabError::sys("poll cgroup.events"))?;
    }
}

fn delete_namespaces(id: &str) -> Result<(), LabError> {
    let prefix = format!("lb-{id}-");
    let entries = fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours = names.filter(|name| name.starts_with(&prefix));
    let lines = ours.fold(String::new(), |lines, name| {
        lines + "netns del " + &name + "\n"
    });
    if lines.is_empty() {
        Ok(())
    } else {
        run::ip_netns(&lines)
    }
}

/// Removes the cgroups; a process that joined one after the first round is killed as well.
fn remove_cgroups(root: &Path) -> Result<(), LabError> {
    let until = Instant::now() + run::bound(KILL_MAX);
    loop {
        let result = try_remove_cgroups(root);
        let busy = matches!(&result, Err(LabError::Io { source, .. })
            if source.kind() == io::ErrorKind::ResourceBusy);
        if !busy || Instant::now() > until {
            return result;
        }
        kill_all(root)?;
        run::pause(Duration::from_millis(2));
    }
}

fn try_remove_cgroups(root: &Path) -> Result<(), LabError> {
    for dir in cgroups(root) {
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LabError::file("remove cgroup", dir)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
