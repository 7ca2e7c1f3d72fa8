// SPDX-License-Identifier: MIT OR Apache-2.0
//! `FRONTEND_PORTS`: the ports that frontends have.
//!
//! **Invariant:** a port is in the kernel's set before the first frontend that has it.

use aya::maps::{Array, MapData, MapError};
use lb_common::abi::{PortSet, names};

use super::error::DatapathError;
use super::maps::{Raw, failed};
use super::pins::Pins;

/// The set, here and in the kernel.
pub(super) struct FrontendPorts {
    map: Array<MapData, Raw<PortSet>>,
    set: Box<PortSet>,
}

impl FrontendPorts {
    /// Opens the pinned map.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let map = MapData::from_pin(pins.map(names::FRONTEND_PORTS))
            .map(aya::maps::Map::Array)
            .and_then(Array::try_from)
            .map_err(failed("open", names::FRONTEND_PORTS))?;
        let Raw(set) = Array::<MapData, Raw<PortSet>>::get(&map, &0, 0)
            .map_err(failed("read", names::FRONTEND_PORTS))?;
        let set = Box::new(set);
        Ok(Self { map, set })
    }

    /// Adds a port, which costs a write of the whole set the first time and nothing afterwards.
    pub(super) fn add(&mut self, port: u16, proto: u8) -> Result<(), MapError> {
        if self.set.contains(port, proto) {
            return Ok(());
        }
        // A copy, because a write that fails must leave both as they were.
        let mut set = self.set.clone();
        set.insert(port, proto);
        self.map.set(0, Raw(*set), 0)?;
        self.set = set;
        Ok(())
    }
}
