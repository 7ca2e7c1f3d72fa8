// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads what an agent has pinned, whether or not it still runs: tables, flows, sockets, counters.
//!
//! `flows.rs` reads flows, `peers.rs` what sockets were led to, `fill.rs` how full maps are, `node.rs` the
//! devices and addresses of this node.
//! **Invariant:** nothing is written, and a walk over a map holds no more of it than one step of it has.

mod fill;
mod flows;
mod node;
mod peers;

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapInfo};
use lb_common::Reason;
use lb_common::abi::{
    Backend, Frontend, FrontendKey, ServiceStats, SlotKey, SourceRange, SourceRangeKey, names,
};
use lb_common::{V4, V6};
use nix::errno::Errno;

use super::batch::Batches;
use super::counters::{ReasonCounters, ServiceCounters};
use super::error::{DatapathError, os_error};
use super::maps::{MapFamily, Ranges, failed};
use super::pins::Pins;
use super::written::Store as _;
use crate::model::tables::{FamilyTables, TableContent};

pub use fill::MapFill;
pub use flows::{Flow, FlowState, FlowVisitor, Masquerades};
pub use node::{NodeLook, look_at_node};
pub use peers::SocketFlow;

/// Entries that are read at once.
const STEP_ENTRIES: usize = 4096;

/// The pinned maps, to be read.
#[derive(Clone, Debug)]
pub struct Look {
    pins: Pins,
    root: PathBuf,
}

impl Look {
    /// Finds the maps that an agent has pinned under `bpffs`. All of them must be there, of the layout
    /// that this program knows, and this process must be allowed to read them.
    pub fn open(bpffs: &Path) -> Result<Self, DatapathError> {
        let allowed = |found: io::Result<bool>| match found {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(DatapathError::NotAllowed {
                    path: bpffs.to_owned(),
                })
            }
            other => Ok(other.unwrap_or(false)),
        };
        allowed(bpffs.join(names::SLOTS).try_exists())?;
        let look = Self {
            pins: Pins::open(bpffs)?,
            root: bpffs.to_owned(),
        };
        let is_missing = |name: &&&str| !look.pins.map(name).exists();
        if let Some(missing) = names::ALL.iter().find(is_missing) {
            return Err(DatapathError::MapMissing {
                map: missing,
                path: bpffs.to_owned(),
            });
        }
        match MapInfo::from_pin(look.pins.map(names::SLOTS)) {
            Err(error) if is_refused(&error) => Err(DatapathError::NotAllowed {
                path: bpffs.to_owned(),
            }),
            _ => Ok(look),
        }
    }

    /// The directory with the pins.
    pub fn bpffs(&self) -> &Path {
        &self.root
    }

    /// Frontends, backends and source ranges, and no slots.
    pub fn services(&self) -> Result<TableContent, DatapathError> {
        Ok(TableContent {
            v4: self.family::<V4, _>()?,
            v6: self.family::<V6, _>()?,
            ..TableContent::default()
        })
    }

    /// Everything that an agent writes for Services.
    pub fn content(&self) -> Result<TableContent, DatapathError> {
        let mut content = self.services()?;
        self.slots(&mut |key, backend| {
            content.slots.insert(key, backend);
        })?;
        Ok(content)
    }

    /// Every slot, of lists and of lookup tables, with its backend id.
    pub fn slots(&self, each: &mut dyn FnMut(SlotKey, u32)) -> Result<(), DatapathError> {
        self.walk(names::SLOTS, |key: &SlotKey, backend: &u32| {
            each(*key, *backend);
        })
    }

    fn family<F, A>(&self) -> Result<FamilyTables<A>, DatapathError>
    where
        F: MapFamily<Addr = A>,
        A: Ord + Copy + Send + 'static,
        FrontendKey<A>: bytemuck::Pod,
        Backend<A>: bytemuck::Pod,
        SourceRange<A>: bytemuck::Pod + Send,
        SourceRangeKey<A>: Ord,
    {
        let mut tables = FamilyTables::default();
        self.walk(F::FRONTENDS, |key: &FrontendKey<A>, value: &Frontend| {
            tables.frontends.insert(*key, *value);
        })?;
        self.walk(F::BACKENDS, |id: &u32, value: &Backend<A>| {
            tables.backends.insert(*id, *value);
        })?;
        let name = F::SOURCE_RANGES;
        let ranges = Ranges::<A>::open(&self.pins.map(name)).map_err(failed("open", name))?;
        for key in super::written::Store::keys(&ranges) {
            tables
                .source_ranges
                .insert(key.map_err(failed("read", name))?);
        }
        Ok(tables)
    }

    /// What was counted for each service id that was ever dialled.
    pub fn stats(&self, each: &mut dyn FnMut(u32, ServiceStats)) -> Result<(), DatapathError> {
        self.walk(names::SERVICE_STATS, |id: &u32, stats: &ServiceStats| {
            if *stats != ServiceStats::default() {
                each(*id, *stats);
            }
        })
    }

    /// What was counted for one service id.
    pub fn counters(&self) -> Result<ServiceCounters, DatapathError> {
        ServiceCounters::open(&self.pins)
    }

    /// How often each reason has occurred.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
        ReasonCounters::open(&self.pins)?.read()
    }

    /// Every entry of the map `name`, a hash or an array.
    fn walk<K, V>(
        &self,
        name: &'static str,
        mut each: impl FnMut(&K, &V),
    ) -> Result<(), DatapathError>
    where
        K: bytemuck::Pod,
        V: bytemuck::Pod,
    {
        self.walk_steps(name, |keys: &[K], values: &[V]| {
            keys.iter()
                .zip(values)
                .for_each(|(key, value)| each(key, value));
            Ok(())
        })
    }

    /// The same, a step at a time.
    fn walk_steps<K, V>(
        &self,
        name: &'static str,
        mut each: impl FnMut(&[K], &[V]) -> Result<(), DatapathError>,
    ) -> Result<(), DatapathError>
    where
        K: bytemuck::Pod,
        V: bytemuck::Pod,
    {
        let map = self.open_map::<K, V>(name)?;
        let mut batches = Batches::<K, V>::new(&map, STEP_ENTRIES);
        let unread = |source| DatapathError::Batch { map: name, source };
        while let Some((keys, values)) = batches.next().map_err(unread)? {
            each(keys, values)?;
        }
        Ok(())
    }

    /// Opens the map `name`, whose keys and values must have these sizes: batches rely on it.
    fn open_map<K, V>(&self, name: &'static str) -> Result<MapData, DatapathError> {
        let path = self.pins.map(name);
        let map = MapData::from_pin(&path).map_err(failed("open", name))?;
        let info = map.info().map_err(failed("read", name))?;
        let found = (info.key_size() as usize, info.value_size() as usize);
        let wanted = (size_of::<K>(), size_of::<V>());
        if found == wanted {
            return Ok(map);
        }
        let difference = format!(
            "its keys and values have {} and {} bytes, and {} and {} are known here",
            found.0, found.1, wanted.0, wanted.1
        );
        Err(DatapathError::Shape { path, difference })
    }
}

fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let number = os_error(error).map(Errno::from_raw);
    matches!(number, Some(Errno::EPERM | Errno::EACCES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::LAYOUT_VERSION;

    /// The refusal of a directory in which these are pinned.
    fn refusal(layout: u32, pinned: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(format!("layout-{layout}"))).unwrap();
        for name in pinned {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        Look::open(folder.path()).unwrap_err().to_string()
    }

    #[test]
    fn pins_that_cannot_be_read_are_refused_with_what_to_do() {
        let nothing = refusal(LAYOUT_VERSION, &[]);
        assert!(
            nothing.contains("start `lb-agent run`, or let --bpffs"),
            "{nothing}"
        );
        let other = refusal(LAYOUT_VERSION + 1, &[names::SLOTS]);
        assert!(other.contains("run the version that made them"), "{other}");
        let one = refusal(LAYOUT_VERSION, &[names::SLOTS]);
        assert!(
            one.starts_with("open map FRONTENDS_V4: it is missing under"),
            "{one}"
        );
    }
}
