// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carries planned writes out on the pinned maps, and reads them back.
//!
//! Both families go through the same generic code.
//! **Invariant:** decides nothing: the order of writes is `crate::diff`'s. A write goes to two maps
//! while one takes the place of the other. Beside it, a frontend's port is in `FRONTEND_PORTS` before
//! the frontend, and after frontends and backends the version of each service they were and are of is
//! raised: one read of the old entry and one more write. What takes something away from a Service of UDP
//! asks for a look at sockets.

use std::collections::BTreeSet;
use std::io;

use aya::maps::MapError;
use lb_common::abi::{Backend, FrontendKey, SourceRange, names};

use super::error::DatapathError;
use super::maps::{FamilyMaps, Hash, KernelTables, MapFamily, Raw};
use super::written::{Shared, Store, WriteError, lock};
use crate::model::tables::{Op, TableOp};
use crate::tables::{ApplyError, DumpError, Tables};

impl Tables for KernelTables {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let concerned = match op {
            Op::V4(write) => self.v4.concerned(write),
            Op::V6(write) => self.v6.concerned(write),
            Op::PutSlot(..) | Op::DeleteSlot(_) => Concerned::default(),
        };
        // ORDER: before the frontend, which no packet finds without it.
        if let Some((port, proto)) = port_of(op) {
            self.ports
                .add(port, proto)
                .map_err(|error| ApplyError::io(op, into_io(error)))?;
        }
        let written = match op {
            Op::V4(write) => self.v4.apply(write),
            Op::V6(write) => self.v6.apply(write),
            Op::PutSlot(key, backend) => lock(&self.slots).put(key, *backend),
            Op::DeleteSlot(key) => lock(&self.slots).delete(key),
        };
        // ORDER: after the write, and also after one that failed: nobody knows how far it came.
        if let Some(trigger) = &mut self.trigger {
            if let Some(service) = concerned.lost {
                trigger.lost(service);
            }
            if let (Some((_, protocol)), Some(service)) = (port_of(op), concerned.after) {
                trigger.put(service, protocol);
            }
        }
        for service in concerned.services() {
            self.versions
                .raise(service)
                .map_err(|error| ApplyError::io(op, into_io(error)))?;
        }
        written.map_err(|error| match error {
            WriteError::Full(limit, growth) => ApplyError::full(op, limit, growth),
            WriteError::Refused(error) => ApplyError::io(op, into_io(error)),
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
            Op::V4(op) => self.v4.holds(op),
            Op::V6(op) => self.v6.holds(op),
            Op::PutSlot(key, id) => holds(&self.slots, key, Some(id)),
            Op::DeleteSlot(key) => holds(&self.slots, key, None),
        }
    }

    fn forget_services(&mut self, services: &[u32]) {
        self.traffic.forget(services);
        for service in services {
            if let Err(error) = self.counters.clear(*service) {
                warn_of_counters(&error);
                return;
            }
        }
    }

    fn keep_services(&mut self, services: &BTreeSet<u32>) {
        if let Err(error) = self.counters.retain(services) {
            warn_of_counters(&error);
        }
    }

    fn relieve(&mut self, _full: &'static str) {
        // The map itself knows that it was full: the name adds nothing.
        if let Some(grower) = &self.grower {
            grower.call();
        }
    }
}

/// The services that a write of a frontend or backend is about.
#[derive(Clone, Copy, Debug, Default)]
struct Concerned {
    /// The one that the entry was of.
    before: Option<u32>,
    /// The one that it is of.
    after: Option<u32>,
    /// The same as `before`, when what it had there is gone: the entry is deleted, or another one's.
    lost: Option<u32>,
}

impl Concerned {
    /// `before` and `after` are service and stamp (generation or epoch) of the entry.
    fn new(before: Option<(u32, u32)>, after: Option<(u32, u32)>) -> Self {
        Self {
            before: before.map(|(service, _)| service),
            after: after.map(|(service, _)| service),
            lost: before
                .filter(|_| before != after)
                .map(|(service, _)| service),
        }
    }

    fn services(&self) -> impl Iterator<Item = u32> {
        let before = self.before.filter(|_| self.before != self.after);
        before.into_iter().chain(self.after)
    }
}

impl<A: Copy + Ord + Send + 'static> FamilyMaps<A>
where
    FrontendKey<A>: bytemuck::Pod,
    Backend<A>: bytemuck::Pod + PartialEq,
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

    /// The services whose flows of UDP must look at frontend and backend again after this write: the
    /// one that the entry was of, and the one that it is of. An entry that cannot be read is as one
    /// that is not there.
    fn concerned(&self, op: &TableOp<A>) -> Concerned {
        let frontend = |key| {
            let before = lock(&self.frontends).now().replaced(key);
            before.ok().flatten().map(|f| (f.service, f.generation))
        };
        let backend = |id| {
            let before = lock(&self.backends).now().replaced(id);
            before.ok().flatten().map(|b| (b.service, b.epoch))
        };
        match op {
            TableOp::PutFrontend(key, value) => {
                Concerned::new(frontend(key), Some((value.service, value.generation)))
            }
            TableOp::DeleteFrontend(key) => Concerned::new(frontend(key), None),
            TableOp::PutBackend(id, value) => {
                Concerned::new(backend(id), Some((value.service, value.epoch)))
            }
            TableOp::DeleteBackend(id) => Concerned::new(backend(id), None),
            TableOp::PutSourceRange(_) | TableOp::DeleteSourceRange(_) => Concerned::default(),
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
        for key in Store::keys(lock(&self.ranges).now()) {
            let key = key.map_err(unread(F::SOURCE_RANGES))?;
            each(TableOp::PutSourceRange(key));
        }
        Ok(())
    }

    fn holds(&self, op: &TableOp<A>) -> Result<bool, DumpError> {
        match op {
            TableOp::PutFrontend(key, value) => holds(&self.frontends, key, Some(value)),
            TableOp::DeleteFrontend(key) => holds(&self.frontends, key, None),
            TableOp::PutBackend(id, value) => holds(&self.backends, id, Some(value)),
            TableOp::DeleteBackend(id) => holds(&self.backends, id, None),
            TableOp::PutSourceRange(key) => holds(&self.ranges, key, Some(&())),
            TableOp::DeleteSourceRange(key) => holds(&self.ranges, key, None),
        }
    }
}

/// Port and protocol of the frontend that a write makes.
fn port_of(op: &Op) -> Option<(u16, u8)> {
    match op {
        Op::V4(TableOp::PutFrontend(key, _)) => Some((key.port, key.proto)),
        Op::V6(TableOp::PutFrontend(key, _)) => Some((key.port, key.proto)),
        Op::V4(_) | Op::V6(_) | Op::PutSlot(..) | Op::DeleteSlot(_) => None,
    }
}

/// Counters that stay are wrong for the next user of the id, and for nothing else.
fn warn_of_counters(error: &DatapathError) {
    tracing::warn!(error = crate::error_chain(error), "remove counters");
}

fn walk<K: bytemuck::Pod + Send, V: bytemuck::Pod + Send>(
    map: &Shared<Hash<K, V>>,
    name: &'static str,
    mut each: impl FnMut(K, V),
) -> Result<(), DumpError> {
    for entry in lock(map).now() {
        let (Raw(key), Raw(value)) = entry.map_err(unread(name))?;
        each(key, value);
    }
    Ok(())
}

/// True when the value of `key` is `wanted`; none stands for no entry.
fn holds<M: Store>(
    map: &Shared<M>,
    key: &M::Key,
    wanted: Option<&M::Value>,
) -> Result<bool, DumpError>
where
    M::Value: PartialEq,
{
    let map = lock(map);
    let found = map.now().replaced(key).map_err(unread(map.name))?;
    Ok(found.as_ref() == wanted)
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
