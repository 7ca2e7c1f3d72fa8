// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carries planned writes out on the pinned maps, and reads them back at start.
//!
//! Both families go through the same generic code.
//! **Invariant:** one write is one bpf(2) call, or one for each of two maps while one takes the
//! place of the other, and decides nothing; their order is `crate::diff`'s.

use std::collections::BTreeMap;
use std::io;

use aya::maps::MapError;
use lb_common::abi::{Backend, FrontendKey, SourceRange, names};

use super::maps::{FamilyMaps, Hash, KernelTables, MapFamily, Raw};
use super::written::{Shared, Store, WriteError, lock};
use crate::model::tables::{FamilyTables, Op, TableContent, TableOp};
use crate::tables::{ApplyError, DumpError, Tables};

impl Tables for KernelTables {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let written = match op {
            Op::V4(write) => self.v4.apply(write),
            Op::V6(write) => self.v6.apply(write),
            Op::PutSlot(key, backend) => lock(&self.slots).put(key, *backend),
            Op::DeleteSlot(key) => lock(&self.slots).delete(key),
        };
        written.map_err(|error| match error {
            WriteError::Full(limit, growth) => ApplyError::full(op, limit, growth),
            WriteError::Refused(error) => ApplyError::io(op, into_io(error)),
        })
    }

    fn dump(&self) -> Result<TableContent, DumpError> {
        Ok(TableContent {
            v4: self.v4.dump::<lb_common::V4>()?,
            v6: self.v6.dump::<lb_common::V6>()?,
            slots: dump(&self.slots, names::SLOTS)?,
        })
    }

    fn relieve(&mut self, _full: &'static str) {
        // The map itself knows that it was full: the name adds nothing.
        if let Some(grower) = &self.grower {
            grower.call();
        }
    }
}

impl<A: Copy + Ord + Send + 'static> FamilyMaps<A>
where
    FrontendKey<A>: bytemuck::Pod,
    Backend<A>: bytemuck::Pod,
    SourceRange<A>: bytemuck::Pod,
{
    fn apply(&mut self, op: &TableOp<A>) -> Result<(), WriteError> {
        match op {
            TableOp::PutFrontend(key, value) => lock(&self.frontends).put(key, *value),
            TableOp::DeleteFrontend(key) => lock(&self.frontends).delete(key),
            TableOp::PutBackend(id, value) => lock(&self.backends).put(id, *value),
            TableOp::DeleteBackend(id) => lock(&self.backends).delete(id),
            TableOp::PutSourceRange(key) => lock(&self.ranges).put(key, ()),
            TableOp::DeleteSourceRange(key) => lock(&self.ranges).delete(key),
        }
    }

    fn dump<F: MapFamily<Addr = A>>(&self) -> Result<FamilyTables<A>, DumpError> {
        Ok(FamilyTables {
            frontends: dump(&self.frontends, F::FRONTENDS)?,
            backends: dump(&self.backends, F::BACKENDS)?,
            source_ranges: Store::keys(lock(&self.ranges).now())
                .collect::<Result<_, _>>()
                .map_err(unread(F::SOURCE_RANGES))?,
        })
    }
}

fn dump<K: bytemuck::Pod + Ord + Send, V: bytemuck::Pod + Send>(
    map: &Shared<Hash<K, V>>,
    name: &'static str,
) -> Result<BTreeMap<K, V>, DumpError> {
    lock(map)
        .now()
        .iter()
        .map(|entry| entry.map(|(Raw(key), Raw(value))| (key, value)))
        .collect::<Result<_, _>>()
        .map_err(unread(name))
}

fn unread(map: &'static str) -> impl FnOnce(MapError) -> DumpError {
    move |error| DumpError {
        map,
        source: into_io(error),
    }
}

fn into_io(error: MapError) -> io::Error {
    if let MapError::SyscallError(error) = error {
        error.io_error
    } else {
        io::Error::other(error)
    }
}
