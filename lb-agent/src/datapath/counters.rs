// SPDX-License-Identifier: MIT OR Apache-2.0
//! `SERVICE_STATS` as the agent sees it: counters to read, and to clear.
//!
//! **Invariant:** the counters of a service id that is given up are cleared, so the next user of the
//! id begins at zero.

use std::collections::BTreeSet;
use std::fmt;

use aya::maps::{Array, MapData};
use lb_common::abi::{ServiceStats, limits, names};

use super::error::DatapathError;
use super::maps::{Raw, failed};
use super::pins::Pins;

/// The counters of all service ids.
pub struct ServiceCounters(Array<MapData, Raw<ServiceStats>>);

impl fmt::Debug for ServiceCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceCounters").finish_non_exhaustive()
    }
}

impl ServiceCounters {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        MapData::from_pin(pins.map(names::SERVICE_STATS))
            .map(aya::maps::Map::Array)
            .and_then(Array::try_from)
            .map(Self)
            .map_err(failed("open", names::SERVICE_STATS))
    }

    /// What was counted for a service id; zeros for one that nobody has dialled.
    pub fn read(&self, service: u32) -> Result<ServiceStats, DatapathError> {
        match self.0.get(&service, 0) {
            Ok(Raw(stats)) => Ok(stats),
            Err(error) => Err(failed("read", names::SERVICE_STATS)(error)),
        }
    }

    /// Clears the counters of a service id.
    pub(super) fn clear(&mut self, service: u32) -> Result<(), DatapathError> {
        self.0
            .set(service, Raw(ServiceStats::default()), 0)
            .map_err(failed("write", names::SERVICE_STATS))
    }

    /// Clears the counters of all service ids but these: about 60 ms of work.
    pub(super) fn retain(&mut self, services: &BTreeSet<u32>) -> Result<(), DatapathError> {
        for service in 1..limits::SERVICES {
            if !services.contains(&service) && self.read(service)? != ServiceStats::default() {
                self.clear(service)?;
            }
        }
        Ok(())
    }
}
