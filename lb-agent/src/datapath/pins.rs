// SPDX-License-Identifier: MIT OR Apache-2.0
//! The directory on a BPF file system where everything that outlives the agent is pinned.
//!
//! `<bpffs>/NAME` is a map, `<bpffs>/next/NAME` a larger one that is to take its place,
//! `<bpffs>/links/<ifindex>-<hook>` an attachment, `<bpffs>/clock` the program that reads the
//! kernel's time, the empty directory `<bpffs>/qdiscs/<ifindex>` says that the clsact qdisc of that
//! device was made by an agent, and the empty directory `<bpffs>/layout-N` which version of the
//! layouts the maps have; `layouts.rs` has what a change of these needs. What is new here is to be known
//! by `cleanup.rs` too.
//! **Invariant:** maps of another layout or shape are never written to, and each `<bpffs>/NAME`
//! holds every entry at any time.

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use lb_common::abi::{LAYOUT_VERSION, names};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::DatapathError;
use super::layouts::has_way_from;
use super::shapes::{Found, Shape};

/// How directories begin that tell the version of the layouts.
pub(super) const LAYOUT_PREFIX: &str = "layout-";

/// How directories begin whose maps are to take the place of those of an older layout.
pub(super) const UPGRADE_PREFIX: &str = "upgrade-";

/// The pin directory of one node.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Makes the directory on its first use and checks what an earlier agent left there.
    pub fn prepare(root: &Path) -> Result<Self, DatapathError> {
        require_bpffs(root)?;
        let pins = Self {
            root: root.to_owned(),
        };
        create(&pins.links())?;
        pins.forget_next()?;
        let found = pins.layout()?;
        if found.as_deref() == Some(&LAYOUT_VERSION.to_string()) {
            return Ok(pins);
        }
        if names::ALL.iter().any(|name| pins.map(name).exists()) {
            if has_way_from(found.as_deref()) {
                return Ok(pins);
            }
            return Err(pins.wrong_layout(found));
        }
        if let Some(found) = found {
            remove(&root.join(format!("{LAYOUT_PREFIX}{found}")))?;
        }
        // ORDER: the number stands there before the first map, so no map is ever without one.
        create(&root.join(format!("{LAYOUT_PREFIX}{LAYOUT_VERSION}")))?;
        Ok(pins)
    }

    /// Opens what an agent has pinned, whether or not it still runs.
    pub fn open(root: &Path) -> Result<Self, DatapathError> {
        let pins = Self {
            root: root.to_owned(),
        };
        if !pins.map(names::SLOTS).exists() {
            return Err(DatapathError::NothingPinned {
                path: root.to_owned(),
            });
        }
        let found = pins.layout()?;
        if found.as_deref() != Some(&LAYOUT_VERSION.to_string()) {
            return Err(pins.wrong_layout(found));
        }
        Ok(pins)
    }

    /// The directory, whatever is in it.
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The directory itself.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Path of the map `name`.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Directory of the attachments.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Directory of the notes about qdiscs.
    pub(super) fn qdiscs(&self) -> PathBuf {
        self.root.join("qdiscs")
    }

    /// The note that the clsact qdisc of a device was made by an agent.
    pub(super) fn qdisc(&self, index: u32) -> PathBuf {
        self.qdiscs().join(index.to_string())
    }

    /// Path of the program that reads the kernel's time.
    pub fn clock(&self) -> PathBuf {
        self.root.join("clock")
    }

    /// Refuses pinned maps that this program would have made otherwise.
    pub(super) fn check_shapes<'a>(
        &self,
        shapes: impl IntoIterator<Item = &'a Shape>,
    ) -> Result<(), DatapathError> {
        for shape in shapes {
            if let Some(found) = self.found(shape.name)?
                && let Some(difference) = shape.difference(&found)
            {
                let path = self.map(shape.name);
                return Err(DatapathError::Shape { path, difference });
            }
        }
        Ok(())
    }

    /// What the pinned map `name` looks like, or none when there is none.
    pub(super) fn found(&self, name: &'static str) -> Result<Option<Found>, DatapathError> {
        let path = self.map(name);
        if !path.exists() {
            return Ok(None);
        }
        MapData::from_pin(&path)
            .and_then(|map| map.info())
            .map(|info| Some(Found::from(&info)))
            .map_err(|source| DatapathError::Map {
                what: "open",
                map: name,
                source: Box::new(source),
            })
    }

    /// Path of the map that is to take the place of the map `name`.
    pub(super) fn next(&self, name: &str) -> PathBuf {
        self.next_maps().join(name)
    }

    /// Directory of the maps that are to take the place of others.
    pub(super) fn next_maps(&self) -> PathBuf {
        self.root.join("next")
    }

    /// Makes the directory for maps that are to take the place of others; it is empty then.
    pub(super) fn prepare_next(&self) -> Result<(), DatapathError> {
        self.forget_next()?;
        create(&self.next_maps())
    }

    /// Removes the maps that were to take the place of others.
    ///
    /// What is lost by that is the larger size, and never an entry, wherever the agent that made
    /// them ended. While it copied, they were incomplete and no program used them. From the end of
    /// the copying each write went to both maps, the old one first, so the old one lacks nothing,
    /// whichever of them a device's program reads. `take_over` puts one map after the other in the
    /// place of its predecessor, with the same content; a set of pins with some of them larger and
    /// some not is as good as any.
    pub(super) fn forget_next(&self) -> Result<(), DatapathError> {
        let directory = self.next_maps();
        for name in list(&directory)? {
            let path = directory.join(name);
            std::fs::remove_file(&path).map_err(|source| DatapathError::Directory {
                what: "remove",
                path,
                source,
            })?;
        }
        if directory.exists() {
            remove(&directory)?;
        }
        Ok(())
    }

    /// Puts the next map `name` in the place of the one before it.
    pub(super) fn take_over(&self, name: &str) -> Result<(), DatapathError> {
        // ORDER: one rename replaces the pin, so there is one at every moment.
        let path = self.map(name);
        std::fs::rename(self.next(name), &path).map_err(|source| DatapathError::Directory {
            what: "replace map",
            path,
            source,
        })
    }

    /// True when the maps have the layout of this number.
    #[cfg(feature = "layout-next")]
    pub(super) fn is_of(&self, layout: u32) -> Result<bool, DatapathError> {
        Ok(self.layout()? == Some(layout.to_string()))
    }

    /// From now on the maps have the layout of this build, and had that of this number.
    #[cfg(feature = "layout-next")]
    pub(super) fn rename_layout(&self, from: u32) -> Result<(), DatapathError> {
        let path = self.root.join(format!("{LAYOUT_PREFIX}{LAYOUT_VERSION}"));
        let from = self.root.join(format!("{LAYOUT_PREFIX}{from}"));
        std::fs::rename(from, &path).map_err(|source| DatapathError::Directory {
            what: "rename to",
            path,
            source,
        })
    }

    /// The number behind `layout-`, if there is such a directory.
    fn layout(&self) -> Result<Option<String>, DatapathError> {
        for entry in list(&self.root)? {
            if let Some(found) = entry.strip_prefix(LAYOUT_PREFIX) {
                return Ok(Some(found.to_owned()));
            }
        }
        Ok(None)
    }

    fn wrong_layout(&self, found: Option<String>) -> DatapathError {
        DatapathError::Layout {
            path: self.root.clone(),
            found: found.unwrap_or_else(|| "unknown".to_owned()),
            wanted: LAYOUT_VERSION,
        }
    }
}

/// The names in a directory; none when it does not exist.
pub(super) fn list(path: &Path) -> Result<Vec<String>, DatapathError> {
    let failed = |source| DatapathError::Directory {
        what: "read directory",
        path: path.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(failed)
}

/// Walks up to the first directory that exists, because the rest is still to be made.
pub(super) fn require_bpffs(path: &Path) -> Result<(), DatapathError> {
    for ancestor in path.ancestors() {
        match statfs(ancestor) {
            Ok(fs) if fs.filesystem_type() == BPF_FS_MAGIC => return Ok(()),
            Err(nix::errno::Errno::ENOENT) => {}
            Ok(_) => break,
            Err(errno) => {
                return Err(DatapathError::Directory {
                    what: "look at directory",
                    path: ancestor.to_owned(),
                    source: errno.into(),
                });
            }
        }
    }
    Err(DatapathError::NotBpffs {
        path: path.to_owned(),
    })
}

pub(super) fn create(path: &Path) -> Result<(), DatapathError> {
    std::fs::create_dir_all(path).map_err(|source| DatapathError::Directory {
        what: "create directory",
        path: path.to_owned(),
        source,
    })
}

pub(super) fn remove(path: &Path) -> Result<(), DatapathError> {
    std::fs::remove_dir(path).map_err(|source| DatapathError::Directory {
        what: "remove directory",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_on_another_file_system_is_refused_with_the_command_to_mount_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("not/made/yet");
        let sentence = Pins::prepare(&path).unwrap_err().to_string();
        assert!(sentence.contains("mount -t bpf"), "{sentence}");
        assert!(!path.exists());
    }
}
