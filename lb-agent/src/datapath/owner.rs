// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who owns the pins: one process at a time, by a lock on their directory.
//!
//! It is an advisory lock (`flock`) on the directory's inode, so it holds for every container that
//! mounts the same BPF file system, and the kernel gives it up with the last descriptor: also at
//! SIGKILL. Maps and links are pinned anew now and then, the directory stays.
//! **Invariant:** nobody writes below the directory without the lock; reading needs none.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::DatapathError;
use super::pins;

/// Time between two tries to get the lock.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// The right to change what is pinned below a directory, until it is dropped.
#[derive(Debug)]
pub(super) struct Owner {
    _lock: File,
}

/// What came of one try.
enum Try {
    Taken(Owner),
    /// Somebody else has it.
    Held,
    /// There is no such directory.
    Absent,
}

impl Owner {
    /// Takes the directory, which is made on its first use; waits for its owner for at most `wait`.
    pub(super) async fn take(root: &Path, wait: Duration) -> Result<Self, DatapathError> {
        pins::require_bpffs(root)?;
        let begin = Instant::now();
        let mut told = false;
        loop {
            // Whoever cleans up removes the directory while it is waited for.
            pins::create(root)?;
            match try_take(root)? {
                Try::Taken(owner) => {
                    if told {
                        tracing::info!("the pins under {} are free: taking over", root.display());
                    }
                    return Ok(owner);
                }
                Try::Absent => continue,
                Try::Held if begin.elapsed() >= wait => return Err(owned(root)),
                Try::Held => {}
            }
            if !told {
                tracing::info!(
                    "{} owns the pins under {}: waiting for its end, for at most {} s",
                    holder(root),
                    root.display(),
                    wait.as_secs()
                );
                told = true;
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// Takes the directory if there is one; an error if somebody has it.
    pub(super) fn take_existing(root: &Path) -> Result<Option<Self>, DatapathError> {
        match try_take(root)? {
            Try::Taken(owner) => Ok(Some(owner)),
            Try::Absent => Ok(None),
            Try::Held => Err(owned(root)),
        }
    }
}

fn owned(root: &Path) -> DatapathError {
    DatapathError::Owned {
        path: root.to_owned(),
        holder: holder(root),
    }
}

fn try_take(root: &Path) -> Result<Try, DatapathError> {
    let failed = |source| DatapathError::Directory {
        what: "lock directory",
        path: root.to_owned(),
        source,
    };
    let folder = match File::open(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Try::Absent),
        other => other.map_err(failed)?,
    };
    match folder.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Try::Held),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // ORDER: after the lock. It may be one on a directory that its last owner has removed.
    let is_there = match (std::fs::metadata(root), folder.metadata()) {
        (Ok(path), Ok(lock)) => (path.dev(), path.ino()) == (lock.dev(), lock.ino()),
        _ => false,
    };
    Ok(if is_there {
        Try::Taken(Owner { _lock: folder })
    } else {
        Try::Absent
    })
}

/// Who has the directory now, in words; none when nobody has, or there is none.
pub(super) fn owner(root: &Path) -> Option<String> {
    let folder = File::open(root).ok()?;
    match folder.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(holder(root)),
        _ => None,
    }
}

/// The process that has the lock, as far as it can be seen from here.
fn holder(root: &Path) -> String {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let found = std::fs::metadata(root)
        .ok()
        .and_then(|folder| locker(&locks, folder.dev(), folder.ino()));
    match found {
        Some(pid) => format!("process {pid} ({})", command(pid)),
        None => "a process that cannot be seen from here, such as one of another container,".into(),
    }
}

/// The process that has the lock on an inode, by the text of `/proc/locks`. The kernel leaves those
/// out that this process id namespace does not know.
fn locker(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let place = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        // Who waits for a lock is in the list as well, behind an arrow.
        if words.next()? != "FLOCK" {
            return None;
        }
        let pid = words.nth(2)?.parse().ok()?;
        (words.next()? == place).then_some(pid)
    })
}

/// The program of a process and its first word, such as `lb-agent cleanup`.
fn command(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    let mut words = line.split('\0');
    let program = words.next().and_then(|path| path.rsplit('/').next());
    let verb = words.next().filter(|word| !word.starts_with('-'));
    let words: Vec<&str> = [program, verb].into_iter().flatten().collect();
    let text = words.join(" ");
    let text = text.trim();
    if text.is_empty() {
        "its program is not known".to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_found_among_the_locks_and_not_who_waits() {
        let locks = "1: POSIX  ADVISORY  WRITE 5 00:27:4711 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 7 00:27:471 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 9 00:27:4711 0 EOF\n\
            3: -> FLOCK  ADVISORY  WRITE 11 00:27:4711 0 EOF\n";
        let device = libc::makedev(0, 0x27);
        assert_eq!(locker(locks, device, 4711), Some(9));
        assert_eq!(locker(locks, device, 4712), None);
    }

    #[test]
    fn one_has_a_directory_until_it_lets_go_and_a_removed_one_is_nobodys() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("lb");
        assert!(Owner::take_existing(&root).unwrap().is_none());
        std::fs::create_dir(&root).unwrap();
        assert_eq!(owner(&root), None);
        let first = Owner::take_existing(&root).unwrap().unwrap();
        let sentence = Owner::take_existing(&root).unwrap_err().to_string();
        let own = format!("process {} (", std::process::id());
        assert!(sentence.contains(&own), "{sentence}");
        assert!(
            sentence.contains(&root.display().to_string()) && sentence.contains("--bpffs"),
            "{sentence}"
        );
        assert!(owner(&root).unwrap().contains(&own));
        std::fs::remove_dir(&root).unwrap();
        std::fs::create_dir(&root).unwrap();
        let second = Owner::take_existing(&root).unwrap().unwrap();
        drop(first);
        assert!(Owner::take_existing(&root).is_err());
        drop(second);
        assert!(Owner::take_existing(&root).unwrap().is_some());
    }
}
