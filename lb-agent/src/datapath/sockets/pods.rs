// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the pods of this node by their cgroups, and their network namespaces by their processes.
//!
//! The kubelet makes a folder for each pod, named by its uid, and runtimes put its containers below.
//! **Invariant:** no namespace is held open: it would outlive its pod. So what leads to one is a process,
//! and it is looked at again whenever it is used.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// Folders in one another that are looked at, down to pods and from there down to processes.
const DEPTH_MAX: usize = 8;
/// Folders that are looked at in all: a node has some hundreds.
const FOLDERS_MAX: usize = 65_536;
/// Where a thread finds its own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace, by a process in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    path: PathBuf,
    /// Device and inode; an inode is used again soon after its namespace is gone.
    id: (u64, u64),
}

impl Place {
    /// The calling thread's own.
    pub(super) fn own() -> io::Result<Self> {
        Self::at(Path::new(OWN).to_owned())
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        let meta = fs::metadata(&path)?;
        let id = (meta.dev(), meta.ino());
        Ok(Self { path, id })
    }

    /// True for the same namespace, by whatever process.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// A thread of its own that may enter namespaces.
pub(super) struct Visitor {
    home: File,
}

impl Visitor {
    /// One that comes back to where the calling thread is now.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            home: File::open(OWN)?,
        })
    }

    /// Does something in a namespace. None when it is gone.
    pub(super) fn visit<T>(
        &self,
        place: &Place,
        inside: impl FnOnce() -> T,
    ) -> io::Result<Option<T>> {
        let Ok(namespace) = File::open(&place.path) else {
            return Ok(None);
        };
        let meta = namespace.metadata()?;
        if (meta.dev(), meta.ino()) != place.id {
            return Ok(None);
        }
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let done = inside();
        // Cannot fail while the namespace is there, which `home` sees to.
        setns(&self.home, CloneFlags::CLONE_NEWNET)?;
        Ok(Some(done))
    }
}

/// The uid in the name of a pod's folder, as the kubelet names it: `pod<uid>`, or, where systemd makes
/// it, `kubepods-…-pod<uid>.slice` with `_` for `-`.
pub(super) fn uid_of(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let begins_well = uid.starts_with(|c: char| c.is_ascii_alphanumeric());
    (begins_well && uid.chars().all(good)).then_some(uid)
}

/// Every pod below `root`, each with its namespace if a process runs in it. Each folder whose content
/// decides about that goes to `watch` before it is read.
pub(super) fn find(
    root: &Path,
    mut watch: impl FnMut(&Path),
) -> io::Result<BTreeMap<String, Option<Place>>> {
    let mut pods = BTreeMap::new();
    let mut level = vec![root.to_owned()];
    let mut seen = 0;
    watch(root);
    // Without the root there is nothing to be found out; others may go at any time.
    fs::read_dir(root)?;
    for _ in 0..DEPTH_MAX {
        let mut next = Vec::new();
        for folder in level {
            watch(&folder);
            for (name, path) in folders(&folder) {
                seen += 1;
                if seen > FOLDERS_MAX {
                    return Err(io::Error::other(format!("more than {FOLDERS_MAX} cgroups")));
                }
                match uid_of(&name) {
                    Some(uid) => {
                        let place = place_of(&path, &mut watch);
                        // Of two folders, the one where something runs.
                        let known = pods.entry(uid).or_insert(None);
                        *known = known.take().or(place);
                    }
                    None => next.push(path),
                }
            }
        }
        level = next;
    }
    Ok(pods)
}

/// The namespace of the processes of a pod: the ones nearest to its folder, since containers may have
/// others in namespaces of their own.
fn place_of(pod: &Path, watch: &mut impl FnMut(&Path)) -> Option<Place> {
    let mut level = vec![pod.to_owned()];
    watch(pod);
    for _ in 0..DEPTH_MAX {
        if let Some(place) = level.iter().find_map(|folder| place_in(folder)) {
            return Some(place);
        }
        let below = level.iter().flat_map(|folder| folders(folder));
        level = below.map(|(_, path)| path).collect();
    }
    None
}

fn place_in(folder: &Path) -> Option<Place> {
    let processes = fs::read_to_string(folder.join("cgroup.procs")).ok()?;
    // 0 stands for one that this process cannot see.
    let mut seen = processes.lines().filter(|process| *process != "0");
    seen.find_map(|process| Place::at(format!("/proc/{process}/ns/net").into()).ok())
}

/// The folders in one, in the order of their names; none when it is gone.
fn folders(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let entries = entries.flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_the_names_that_the_kubelet_gives() {
        let uid = "0b8a4c2e-6f1d-4d3a-9a55-0123456789ab";
        let found = |name: &str| uid_of(name);
        assert_eq!(found(&format!("pod{uid}")).as_deref(), Some(uid));
        let slice = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
        assert_eq!(found(&slice).as_deref(), Some(uid));
        let hash = "e1f4a0c5d3b2e1f4a0c5d3b2e1f4a0c5";
        assert_eq!(
            found(&format!("kubelet-kubepods-pod{hash}.slice")).as_deref(),
            Some(hash)
        );
        for other in [
            "kubepods-burstable.slice",
            "kubepods.slice",
            "podman.service",
            "podman-1234.scope",
            "machine-libpod_pod_12.slice",
            "cri-containerd-12.scope",
            "pod",
            "besteffort",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
    }

    #[test]
    fn pods_are_found_wherever_they_are_and_a_pod_without_a_process_has_no_namespace() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str, processes: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.procs"), processes).unwrap();
        };
        let own = std::process::id();
        make("kubepods/burstable/podaaaa", "");
        make("kubepods/burstable/podaaaa/123", &format!("0\n{own}\n"));
        make("kubepods/podbbbb/123", "");
        make("kubepods.slice/kubepods-podcc_cc.slice", "0\n");
        let mut watched = Vec::new();
        let found = find(root.path(), |path| watched.push(path.to_owned())).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|(uid, p)| (uid.as_str(), p.is_some()))
            .collect();
        assert_eq!(found, [("aaaa", true), ("bbbb", false), ("cc-cc", false)]);
        assert!(watched.contains(&root.path().join("kubepods/podbbbb")));
        assert!(find(&root.path().join("gone"), |_| {}).is_err());
    }
}
