// SPDX-License-Identifier: MIT OR Apache-2.0
//! Settings that are found out, and checks of those that are given.
//!
//! **Invariant:** every error is a sentence that says which flag to change.

use std::path::{Path, PathBuf};

/// Where the kernel's maps are pinned unless told otherwise.
pub const BPFFS_DEFAULT: &str = "/sys/fs/bpf/lb";

/// Where other commands find what an agent remembers unless told otherwise.
pub const STATE_DIR_DEFAULT: &str = "/var/lib/lb-agent";

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The host has no usable name.
    #[error("find the host name; give --node NAME")]
    HostName(#[source] nix::errno::Errno),
    /// The host name is not text.
    #[error("the host name is not text in UTF-8; give --node NAME")]
    HostNameText,
    /// There is no cgroup v2 hierarchy where one was asked for.
    #[error("--cgroup {}: no folder of a cgroup v2 hierarchy", path.display())]
    NotACgroup {
        /// The folder.
        path: PathBuf,
    },
    /// There is no folder of manifests.
    #[error("--manifests {}: no such folder", path.display())]
    NoManifests {
        /// The folder.
        path: PathBuf,
    },
}

/// The name of this node: as given, or the host's, in lower case as kubelet registers it.
pub fn node_name(given: Option<&str>) -> Result<String, ConfigError> {
    if let Some(name) = given {
        return Ok(name.to_owned());
    }
    let name = nix::unistd::gethostname().map_err(ConfigError::HostName)?;
    let name = name.into_string().map_err(|_| ConfigError::HostNameText)?;
    Ok(name.trim().to_lowercase())
}

/// The cgroup for hooks at the socket: as given, or the root of the cgroup v2 hierarchy. None if the host has no such hierarchy and none was asked for.
pub fn cgroup(given: Option<&Path>) -> Result<Option<PathBuf>, ConfigError> {
    match given {
        // Version 1 has no cgroup.controllers.
        Some(path) if path.join("cgroup.controllers").is_file() => Ok(Some(path.to_owned())),
        Some(path) => Err(ConfigError::NotACgroup {
            path: path.to_owned(),
        }),
        None => Ok(std::fs::read_to_string("/proc/mounts")
            .ok()
            .and_then(|mounts| cgroup_mount(&mounts))),
    }
}

/// The first mount point of cgroup v2 in the text of `/proc/mounts`.
fn cgroup_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// Checks that there is a folder of manifests.
pub fn manifests(path: &Path) -> Result<(), ConfigError> {
    if path.is_dir() {
        return Ok(());
    }
    Err(ConfigError::NoManifests {
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_v2_mount_is_found_beside_version_1() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs ro 0 0\n\
            cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = cgroup_mount(mounts);
        assert_eq!(found, Some(PathBuf::from("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_refused_with_its_flag() {
        let folder = tempfile::tempdir().unwrap();
        let error = cgroup(Some(folder.path())).unwrap_err();
        assert!(error.to_string().starts_with("--cgroup "), "{error}");
    }
}
