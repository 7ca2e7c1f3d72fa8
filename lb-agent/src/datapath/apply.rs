// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carries planned writes out on the pinned maps, and reads them back at start.
//!
//! Both families go through the same generic code.
//! **Invariant:** one write is one bpf(2) call and decides nothing; their order is `crate::diff`'s.

use std::io;

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use lb_common::abi::{Backend, FrontendKey, SourceRange, SourceRangeKey, limits, names};

use super::error::os_error;
use super::maps::{FamilyMaps, Hash, KernelTables, MapFamily, Raw, is_missing};
use crate::model::tables::{Op, TableOp};
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

    fn walk(&self, each: &mut dyn FnMut(Op)) -> Result<(), DumpError> {
        self.v4.walk::<lb_common::V4>(&mut |op| each(Op::V4(op)))?;
        self.v6.walk::<lb_common::V6>(&mut |op| each(Op::V6(op)))?;
        walk(&self.slots, names::SLOTS, |key, id| {
            each(Op::PutSlot(key, id));
        })
    }

    fn holds(&self, put: &Op) -> Result<bool, DumpError> {
        match put {
            Op::V4(op) => self.v4.holds::<lb_common::V4>(op),
            Op::V6(op) => self.v6.holds::<lb_common::V6>(op),
            Op::PutSlot(key, id) => holds(&self.slots, names::SLOTS, key, Some(id)),
            Op::DeleteSlot(key) => holds(&self.slots, names::SLOTS, key, None),
        }
    }
}

impl<A: Copy + Ord> FamilyMaps<A>
where
    FrontendKey<A>: bytemuck::Pod,
    Backend<A>: bytemuck::Pod,
    SourceRange<A>: bytemuck::Pod,
    SourceRangeKey<A>: PartialEq,
{
    fn apply(&mut self, op: &TableOp<A>) -> Result<(), MapError> {
        match op {
            TableOp::PutFrontend(key, value) => put(&mut self.frontends, *key, *value),
            TableOp::DeleteFrontend(key) => delete(&mut self.frontends, *key),
            TableOp::PutBackend(id, value) => put(&mut self.backends, *id, *value),
            TableOp::DeleteBackend(id) => delete(&mut self.backends, *id),
            TableOp::PutSourceRange(key) => self.ranges.insert(&trie_key(key), key.bits(), 0),
            TableOp::DeleteSourceRange(key) => match self.ranges.remove(&trie_key(key)) {
                Err(error) if is_missing(&error) => Ok(()),
                other => other,
            },
        }
    }

    fn walk<F: MapFamily<Addr = A>>(
        &self,
        each: &mut dyn FnMut(TableOp<A>),
    ) -> Result<(), DumpError> {
        walk(&self.frontends, F::FRONTENDS, |key, value| {
            each(TableOp::PutFrontend(key, value));
        })?;
        walk(&self.backends, F::BACKENDS, |id, value| {
            each(TableOp::PutBackend(id, value));
        })?;
        for key in self.ranges.keys() {
            let key = key.map_err(unreadable(F::SOURCE_RANGES))?;
            each(TableOp::PutSourceRange(range_of(&key)));
        }
        Ok(())
    }

    fn holds<F: MapFamily<Addr = A>>(&self, op: &TableOp<A>) -> Result<bool, DumpError>
    where
        Backend<A>: PartialEq,
    {
        match op {
            TableOp::PutFrontend(key, value) => {
                holds(&self.frontends, F::FRONTENDS, key, Some(value))
            }
            TableOp::DeleteFrontend(key) => holds(&self.frontends, F::FRONTENDS, key, None),
            TableOp::PutBackend(id, value) => holds(&self.backends, F::BACKENDS, id, Some(value)),
            TableOp::DeleteBackend(id) => holds(&self.backends, F::BACKENDS, id, None),
            TableOp::PutSourceRange(key) => self.has_range::<F>(key),
            TableOp::DeleteSourceRange(key) => Ok(!self.has_range::<F>(key)?),
        }
    }

    /// A lookup finds the longest range up to the length asked for; its value tells which.
    fn has_range<F: MapFamily<Addr = A>>(
        &self,
        wanted: &SourceRangeKey<A>,
    ) -> Result<bool, DumpError> {
        match self.ranges.get(&trie_key(wanted), 0) {
            Ok(bits) => Ok(bits == wanted.bits()),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(unreadable(F::SOURCE_RANGES)(error)),
        }
    }
}

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

fn walk<K: bytemuck::Pod, V: bytemuck::Pod>(
    map: &Hash<K, V>,
    name: &'static str,
    mut each: impl FnMut(K, V),
) -> Result<(), DumpError> {
    for entry in map {
        let (Raw(key), Raw(value)) = entry.map_err(unreadable(name))?;
        each(key, value);
    }
    Ok(())
}

/// True when the value of `key` is `wanted`; none stands for no entry.
fn holds<K: bytemuck::Pod, V: bytemuck::Pod + PartialEq>(
    map: &Hash<K, V>,
    name: &'static str,
    key: &K,
    wanted: Option<&V>,
) -> Result<bool, DumpError> {
    match map.get(&Raw(*key), 0) {
        Ok(Raw(value)) => Ok(Some(&value) == wanted),
        Err(error) if is_missing(&error) => Ok(wanted.is_none()),
        Err(error) => Err(unreadable(name)(error)),
    }
}

fn unreadable(map: &'static str) -> impl FnOnce(MapError) -> DumpError {
    move |error| DumpError {
        map,
        source: into_io(error),
    }
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
