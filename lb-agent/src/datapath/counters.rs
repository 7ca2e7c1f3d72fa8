// SPDX-License-Identifier: MIT OR Apache-2.0
//! `SERVICE_STATS` as the agent sees it: counters to read, and entries to give up.
//!
//! The packet path makes an entry when a service port is first dialled.
//! **Invariant:** an entry goes with its service id, so the next user of the id begins at zero.

use std::collections::BTreeSet;
use std::fmt;

use aya::maps::{MapData, MapError, PerCpuHashMap};
use lb_common::abi::{ServiceStats, names};

use super::error::DatapathError;
use super::maps::{Raw, failed, is_missing};
use super::pins::Pins;

/// The counters of all service ids.
pub struct ServiceCounters(PerCpuHashMap<MapData, u32, Raw<ServiceStats>>);

impl fmt::Debug for ServiceCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceCounters").finish_non_exhaustive()
    }
}

impl ServiceCounters {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        MapData::from_pin(pins.map(names::SERVICE_STATS))
            .map(aya::maps::Map::PerCpuHashMap)
            .and_then(PerCpuHashMap::try_from)
            .map(Self)
            .map_err(failed("open", names::SERVICE_STATS))
    }

    /// What was counted for a service id, over all CPUs; zeros for one that nobody has dialled.
    pub fn read(&self, service: u32) -> Result<ServiceStats, DatapathError> {
        let mut sum = ServiceStats::default();
        match self.0.get(&service, 0) {
            Ok(per_cpu) => {
                for Raw(one) in per_cpu.iter() {
                    sum.opened += one.opened;
                    sum.rejected += one.rejected;
                }
            }
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(failed("read", names::SERVICE_STATS)(error)),
        }
        Ok(sum)
    }

    /// Removes the entry of a service id; none is no error.
    pub(super) fn remove(&mut self, service: u32) -> Result<(), DatapathError> {
        match self.0.remove(&service) {
            Err(error) if !is_missing(&error) => Err(failed("write", names::SERVICE_STATS)(error)),
            _ => Ok(()),
        }
    }

    /// Removes the entries of all service ids but these.
    pub(super) fn retain(&mut self, services: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let keys: Result<Vec<u32>, MapError> = self.0.keys().collect();
        for service in keys.map_err(failed("read", names::SERVICE_STATS))? {
            if !services.contains(&service) {
                self.remove(service)?;
            }
        }
        Ok(())
    }
}
