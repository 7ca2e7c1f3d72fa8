// SPDX-License-Identifier: MIT OR Apache-2.0
//! The directory on a BPF file system where everything that outlives the agent is pinned.
//!
//! `<bpffs>/NAME` is a map, `<bpffs>/links/<ifindex>-<hook>` an attachment, `<bpffs>/clock` the
//! program that reads the kernel's time, and the empty directory `<bpffs>/layout-N` says which
//! version of the layouts the maps have.
//! **Invariant:** maps of another layout or shape are never written to.

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapInfo, MapType};
use lb_common::Reason;
use lb_common::abi::{
    Backend, Conn, ConnKey, Cursor, Frontend, FrontendKey, Iface, LAYOUT_VERSION, SlotKey,
    SourceRangeKey, limits, names,
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::DatapathError;

const LAYOUT_PREFIX: &str = "layout-";

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
        let found = pins.layout()?;
        if found.as_deref() == Some(&LAYOUT_VERSION.to_string()) {
            return Ok(pins);
        }
        if names::ALL.iter().any(|name| pins.map(name).exists()) {
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

    /// Path of the map `name`.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Directory of the attachments.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Path of the program that reads the kernel's time.
    pub fn clock(&self) -> PathBuf {
        self.root.join("clock")
    }

    /// Refuses pinned maps that this program would have made otherwise.
    pub(super) fn check_shapes(&self, connections_max: u32) -> Result<(), DatapathError> {
        for shape in shapes(connections_max) {
            let path = self.map(shape.name);
            if !path.exists() {
                continue;
            }
            let found = MapData::from_pin(&path)
                .and_then(|map| map.info())
                .map_err(|source| DatapathError::Map {
                    what: "open",
                    map: shape.name,
                    source: Box::new(source),
                })?;
            if let Some(difference) = shape.difference(&Found::from(&found)) {
                return Err(DatapathError::Shape { path, difference });
            }
        }
        Ok(())
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
fn require_bpffs(path: &Path) -> Result<(), DatapathError> {
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

fn create(path: &Path) -> Result<(), DatapathError> {
    std::fs::create_dir_all(path).map_err(|source| DatapathError::Directory {
        what: "create directory",
        path: path.to_owned(),
        source,
    })
}

fn remove(path: &Path) -> Result<(), DatapathError> {
    std::fs::remove_dir(path).map_err(|source| DatapathError::Directory {
        what: "remove directory",
        path: path.to_owned(),
        source,
    })
}

/// What a map must look like.
pub(super) struct Shape {
    pub(super) name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    /// Entries, or none when the object decides and only a lower bound is known.
    pub(super) entries: Option<u32>,
    entries_min: u32,
}

/// What a map looks like.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    kind: String,
    key: u32,
    value: u32,
    entries: u32,
}

impl From<&MapInfo> for Found {
    fn from(info: &MapInfo) -> Self {
        Self {
            kind: info
                .map_type()
                .map_or_else(|_| "unknown".to_owned(), |kind| format!("{kind:?}")),
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
        }
    }
}

impl Shape {
    fn new<K, V>(name: &'static str, kind: MapType, entries: u32) -> Self {
        Self {
            name,
            kind,
            key: size_of::<K>(),
            value: size_of::<V>(),
            entries: Some(entries),
            entries_min: entries,
        }
    }

    fn hash<K, V>(name: &'static str, entries: u32) -> Self {
        Self::new::<K, V>(name, MapType::Hash, entries)
    }

    /// The first difference in words, or none.
    fn difference(&self, found: &Found) -> Option<String> {
        let wanted = format!("{:?}", self.kind);
        if found.kind != wanted {
            return Some(format!("it is of type {}, wanted is {wanted}", found.kind));
        }
        for (what, is, wanted) in [
            ("key", found.key, self.key),
            ("value", found.value, self.value),
        ] {
            if usize::try_from(is).ok() != Some(wanted) {
                return Some(format!("its {what} has {is} bytes, wanted are {wanted}"));
            }
        }
        let fits = match self.entries {
            Some(entries) => found.entries == entries,
            None => found.entries >= self.entries_min,
        };
        (!fits).then(|| {
            format!(
                "it was made for {} entries, wanted are {}",
                found.entries, self.entries_min
            )
        })
    }
}

/// Every pinned map; a connection table has room for `connections_max` entries.
pub(super) fn shapes(connections_max: u32) -> Vec<Shape> {
    type V4 = [u8; 4];
    type V6 = [u8; 16];
    let mut reasons = Shape::new::<u32, u64>(names::REASONS, MapType::PerCpuArray, 0);
    reasons.entries = None;
    reasons.entries_min = u32::try_from(Reason::ALL.len()).unwrap_or(u32::MAX);
    vec![
        Shape::hash::<FrontendKey<V4>, Frontend>(names::FRONTENDS_V4, limits::FRONTENDS),
        Shape::hash::<FrontendKey<V6>, Frontend>(names::FRONTENDS_V6, limits::FRONTENDS),
        Shape::hash::<SlotKey, u32>(names::SLOTS, limits::SLOTS),
        Shape::hash::<u32, Backend<V4>>(names::BACKENDS_V4, limits::BACKENDS),
        Shape::hash::<u32, Backend<V6>>(names::BACKENDS_V6, limits::BACKENDS),
        Shape::new::<u32, Cursor>(names::CURSORS, MapType::Array, limits::SERVICES),
        Shape::hash::<ConnKey<V4>, Conn<V4>>(names::CONNS_V4, connections_max),
        Shape::hash::<ConnKey<V6>, Conn<V6>>(names::CONNS_V6, connections_max),
        Shape::new::<SourceRangeKey<V4>, u8>(
            names::SRC_RANGES_V4,
            MapType::LpmTrie,
            limits::SOURCE_RANGES,
        ),
        Shape::new::<SourceRangeKey<V6>, u8>(
            names::SRC_RANGES_V6,
            MapType::LpmTrie,
            limits::SOURCE_RANGES,
        ),
        Shape::hash::<u32, Iface>(names::IFACES, limits::IFACES),
        reasons,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: &str, key: u32, value: u32, entries: u32) -> Found {
        Found {
            kind: kind.to_owned(),
            key,
            value,
            entries,
        }
    }

    #[test]
    fn every_pinned_map_has_a_shape() {
        let mut known: Vec<_> = shapes(1).iter().map(|shape| shape.name).collect();
        let mut all = names::ALL.to_vec();
        known.sort_unstable();
        all.sort_unstable();
        assert_eq!(known, all);
    }

    #[test]
    fn a_map_that_differs_is_refused_with_what_differs() {
        let shape = Shape::hash::<SlotKey, u32>(names::SLOTS, 10);
        let wrong = |found: &Found| shape.difference(found).unwrap();
        assert_eq!(shape.difference(&found("Hash", 8, 4, 10)), None);
        assert!(wrong(&found("LruHash", 8, 4, 10)).contains("type LruHash"));
        assert!(wrong(&found("Hash", 12, 4, 10)).contains("key has 12 bytes"));
        assert!(wrong(&found("Hash", 8, 8, 10)).contains("value has 8 bytes"));
        assert!(wrong(&found("Hash", 8, 4, 11)).contains("11 entries, wanted are 10"));
    }

    #[test]
    fn counters_may_have_room_for_more_reasons_than_are_known() {
        let shape = shapes(1).pop().unwrap();
        let enough = u32::try_from(Reason::ALL.len()).unwrap();
        assert_eq!(
            shape.difference(&found("PerCpuArray", 4, 8, enough + 9)),
            None
        );
        assert!(
            shape
                .difference(&found("PerCpuArray", 4, 8, enough - 1))
                .is_some()
        );
    }

    #[test]
    fn a_directory_on_another_file_system_is_refused_with_the_command_to_mount_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("not/made/yet");
        let sentence = Pins::prepare(&path).unwrap_err().to_string();
        assert!(sentence.contains("mount -t bpf"), "{sentence}");
        assert!(!path.exists());
    }
}
