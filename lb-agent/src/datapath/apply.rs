// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carries planned writes out on the pinned maps, and reads them back at start.
//!
//! Both families go through the same generic code.
//! **Invariant:** one write is one bpf(2) call and decides nothing; their order is `crate::diff`'s.

use std::collections::BTreeMap;
use std::io;

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use lb_common::abi::{Backend, FrontendKey, SourceRange, SourceRangeKey, limits, names};

use super::error::os_error;
use super::maps::{FamilyMaps, Hash, KernelTables, MapFamily, Raw, is_missing};
use crate::model::tables::{FamilyTables, Op, TableContent, TableOp};
use crate::tables::{ApplyError, DumpError, Tables};

impl Tables for KernelTables {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let written = match op {
            Op::V4(write) => self.v4.apply(write),
            Op::V6(write) => self.v6.apply(write),
            Op::PutSlot(key, backend) => put(&mut self.slots, *key, *backend),
            Op::DeleteSlot(key) => delete(&mut self.slots, *key),
        };
        written.map_err(|error| {
            let code = os_error(&error);
            if code == Some(nix::errno::Errno::E2BIG as i32) {
                ApplyError::full(op, limit(op.map()))
            } else {
                ApplyError::io(op, into_io(error))
            }
        })
    }

    fn dump(&self) -> Result<TableContent, DumpError> {
        Ok(TableContent {
            v4: self.v4.dump::<lb_common::V4>()?,
            v6: self.v6.dump::<lb_common::V6>()?,
            slots: dump(&self.slots, names::SLOTS)?,
        })
    }
}

impl<A: Copy + Ord> FamilyMaps<A>
where
    FrontendKey<A>: bytemuck::Pod,
    Backend<A>: bytemuck::Pod,
    SourceRange<A>: bytemuck::Pod,
{
    fn apply(&mut self, op: &TableOp<A>) -> Result<(), MapError> {
        match op {
            TableOp::PutFrontend(key, value) => put(&mut self.frontends, *key, *value),
            TableOp::DeleteFrontend(key) => delete(&mut self.frontends, *key),
            TableOp::PutBackend(id, value) => put(&mut self.backends, *id, *value),
            TableOp::DeleteBackend(id) => delete(&mut self.backends, *id),
            TableOp::PutSourceRange(key) => self.ranges.insert(&trie_key(key), ALLOWED, 0),
            TableOp::DeleteSourceRange(key) => match self.ranges.remove(&trie_key(key)) {
                Err(error) if is_missing(&error) => Ok(()),
                other => other,
            },
        }
    }

    fn dump<F: MapFamily<Addr = A>>(&self) -> Result<FamilyTables<A>, DumpError> {
        Ok(FamilyTables {
            frontends: dump(&self.frontends, F::FRONTENDS)?,
            backends: dump(&self.backends, F::BACKENDS)?,
            source_ranges: self
                .ranges
                .keys()
                .map(|key| key.map(|key| range_of(&key)))
                .collect::<Result<_, _>>()
                .map_err(|error| DumpError {
                    map: F::SOURCE_RANGES,
                    source: into_io(error),
                })?,
        })
    }
}

/// What the tries hold: that an entry is there says all.
const ALLOWED: u8 = 1;

/// The key as aya has it: the same bytes, with its own name for the prefix.
fn trie_key<A: Copy>(key: &SourceRangeKey<A>) -> Key<Raw<SourceRange<A>>>
where
    SourceRange<A>: bytemuck::Pod,
{
    Key::new(key.prefix_len, Raw(key.range))
}

fn range_of<A: Copy>(key: &Key<Raw<SourceRange<A>>>) -> SourceRangeKey<A>
where
    SourceRange<A>: bytemuck::Pod,
{
    SourceRangeKey {
        prefix_len: key.prefix_len(),
        range: key.data().0,
    }
}

fn put<K: bytemuck::Pod, V: bytemuck::Pod>(
    map: &mut Hash<K, V>,
    key: K,
    value: V,
) -> Result<(), MapError> {
    map.insert(Raw(key), Raw(value), 0)
}

fn delete<K: bytemuck::Pod, V: bytemuck::Pod>(
    map: &mut Hash<K, V>,
    key: K,
) -> Result<(), MapError> {
    match map.remove(&Raw(key)) {
        Err(error) if is_missing(&error) => Ok(()),
        other => other,
    }
}

fn dump<K: bytemuck::Pod + Ord, V: bytemuck::Pod>(
    map: &Hash<K, V>,
    name: &'static str,
) -> Result<BTreeMap<K, V>, DumpError> {
    map.iter()
        .map(|entry| entry.map(|(Raw(key), Raw(value))| (key, value)))
        .collect::<Result<_, _>>()
        .map_err(|error| DumpError {
            map: name,
            source: into_io(error),
        })
}

/// Entries that the map was made for.
fn limit(map: &'static str) -> u32 {
    match map {
        names::SLOTS => limits::SLOTS,
        names::BACKENDS_V4 | names::BACKENDS_V6 => limits::BACKENDS,
        names::SRC_RANGES_V4 | names::SRC_RANGES_V6 => limits::SOURCE_RANGES,
        _ => limits::FRONTENDS,
    }
}

fn into_io(error: MapError) -> io::Error {
    if let MapError::SyscallError(error) = error {
        error.io_error
    } else {
        io::Error::other(error)
    }
}
