// SPDX-License-Identifier: MIT OR Apache-2.0
//! `VERSIONS`: tells flows of UDP that what they depend on has changed.
//!
//! **Invariant:** raised after the write that it is about. 0 is never written: it stands for a flow
//! that was not looked at yet.

use aya::maps::{Array, MapData, MapError};
use lb_common::abi::{VERSIONS, names, version_index};

use super::error::DatapathError;
use super::maps::failed;
use super::pins::Pins;

/// The versions of all services. Only one process writes them, so each is read once.
pub(super) struct Versions {
    map: Array<MapData, u32>,
    /// What is in the map; 0 stands for an entry that was not read yet.
    known: Box<[u32]>,
}

impl Versions {
    /// Opens the pinned map.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        MapData::from_pin(pins.map(names::VERSIONS))
            .map(aya::maps::Map::Array)
            .and_then(Array::try_from)
            .map(|map| Self {
                map,
                known: vec![0; VERSIONS as usize].into(),
            })
            .map_err(failed("open", names::VERSIONS))
    }

    /// Something of this service has changed.
    pub(super) fn raise(&mut self, service: u32) -> Result<(), MapError> {
        let index = version_index(service);
        let known = &mut self.known[index as usize];
        if *known == 0 {
            *known = self.map.get(&index, 0)?;
        }
        let next = known.wrapping_add(1).max(1);
        self.map.set(index, next, 0)?;
        *known = next;
        Ok(())
    }
}
