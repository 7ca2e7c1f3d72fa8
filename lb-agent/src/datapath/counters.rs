// SPDX-License-Identifier: MIT OR Apache-2.0
//! `SERVICE_STATS` and `REASONS` as the agent sees them: counters to read, those of Services also to
//! clear.
//!
//! **Invariant:** the counters of a service id that is given up are cleared, so the next user of the
//! id begins at zero.

use std::collections::BTreeSet;
use std::{fmt, io};

use aya::maps::{Array, MapData, PerCpuArray};
use lb_common::Reason;
use lb_common::abi::{ServiceStats, names};

use super::batch::Batches;
use super::error::DatapathError;
use super::maps::{Raw, failed};
use super::pins::Pins;

/// Counters that are read at once.
const STEP_ENTRIES: usize = 16_384;

/// The counters of all service ids.
pub struct ServiceCounters {
    map: Array<MapData, Raw<ServiceStats>>,
    /// The same map, for reading many.
    data: MapData,
}

impl fmt::Debug for ServiceCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceCounters").finish_non_exhaustive()
    }
}

impl ServiceCounters {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let open = || {
            MapData::from_pin(pins.map(names::SERVICE_STATS))
                .map_err(failed("open", names::SERVICE_STATS))
        };
        Ok(Self {
            map: Array::try_from(aya::maps::Map::Array(open()?))
                .map_err(failed("open", names::SERVICE_STATS))?,
            data: open()?,
        })
    }

    /// What was counted for a service id; zeros for one that nobody has dialled.
    pub fn read(&self, service: u32) -> Result<ServiceStats, DatapathError> {
        match self.map.get(&service, 0) {
            Ok(Raw(stats)) => Ok(stats),
            Err(error) => Err(failed("read", names::SERVICE_STATS)(error)),
        }
    }

    /// Clears the counters of a service id.
    pub(super) fn clear(&mut self, service: u32) -> Result<(), DatapathError> {
        self.map
            .set(service, Raw(ServiceStats::default()), 0)
            .map_err(failed("write", names::SERVICE_STATS))
    }

    /// Clears the counters of all service ids but these.
    pub(super) fn retain(&mut self, services: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let mut left = Vec::new();
        let mut walk = Batches::<u32, ServiceStats>::new(&self.data, STEP_ENTRIES);
        while let Some((ids, stats)) = walk.next().map_err(unread)? {
            let entries = ids.iter().zip(stats);
            let counted = entries.filter(|(_, stats)| **stats != ServiceStats::default());
            let strange = counted
                .map(|(id, _)| *id)
                .filter(|id| !services.contains(id));
            left.extend(strange);
        }
        left.into_iter().try_for_each(|service| self.clear(service))
    }
}

/// How often each reason has occurred.
pub struct ReasonCounters {
    map: PerCpuArray<MapData, u64>,
}

impl fmt::Debug for ReasonCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReasonCounters").finish_non_exhaustive()
    }
}

impl ReasonCounters {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        MapData::from_pin(pins.map(names::REASONS))
            .map(aya::maps::Map::PerCpuArray)
            .and_then(PerCpuArray::try_from)
            .map(|map| Self { map })
            .map_err(failed("open", names::REASONS))
    }

    /// Every reason with its count since the maps were made, summed over all CPUs.
    pub fn read(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
        let count = |reason: &Reason| {
            let per_cpu = self.map.get(&(*reason as u32), 0);
            let per_cpu = per_cpu.map_err(failed("read", names::REASONS))?;
            Ok((*reason, per_cpu.iter().sum()))
        };
        Reason::ALL.iter().map(count).collect()
    }
}

fn unread(error: io::Error) -> DatapathError {
    failed("read", names::SERVICE_STATS)(error.into())
}
