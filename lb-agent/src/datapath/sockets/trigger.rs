// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells from what is written when connected sockets of UDP may talk to nobody any more.
//!
//! **Invariant:** costs a write no call of the kernel. Writes for TCP ask for nothing: only frontends
//! tell the protocol, so which services are of UDP is remembered.

use std::collections::BTreeSet;

use aya::maps::MapData;
use lb_common::abi::{Frontend, FrontendKey, names, proto};

use super::stale::Poke;
use crate::datapath::batch::Batches;
use crate::datapath::error::DatapathError;
use crate::datapath::maps::failed;
use crate::datapath::pins::Pins;

/// Frontends that are read with one call of the kernel.
const STEP_ENTRIES: usize = 4096;

/// Who asks for scans.
pub(in crate::datapath) struct Trigger {
    /// Ids of services with frontends of UDP.
    services: BTreeSet<u32>,
    poke: Poke,
}

impl Trigger {
    /// Knows the services that the pinned tables have.
    pub(super) fn open(pins: &Pins, poke: Poke) -> Result<Self, DatapathError> {
        let mut services = BTreeSet::new();
        read::<[u8; 4]>(pins, names::FRONTENDS_V4, &mut services)?;
        read::<[u8; 16]>(pins, names::FRONTENDS_V6, &mut services)?;
        Ok(Self { services, poke })
    }

    /// A frontend of this protocol is about to be written for a service.
    pub(in crate::datapath) fn put(&mut self, service: u32, protocol: u8) {
        if protocol == proto::UDP {
            self.services.insert(service);
        } else {
            self.services.remove(&service);
        }
    }

    /// A frontend or backend of a service has gone, or is another one now.
    pub(in crate::datapath) fn lost(&self, service: u32) {
        if self.services.contains(&service) {
            self.poke.poke();
        }
    }
}

fn read<A: Copy>(
    pins: &Pins,
    name: &'static str,
    services: &mut BTreeSet<u32>,
) -> Result<(), DatapathError>
where
    FrontendKey<A>: bytemuck::Pod,
{
    let map = MapData::from_pin(pins.map(name)).map_err(failed("open", name))?;
    let mut batches = Batches::<FrontendKey<A>, Frontend>::new(&map, STEP_ENTRIES);
    while let Some((keys, frontends)) = batches
        .next()
        .map_err(|source| DatapathError::Batch { map: name, source })?
    {
        let udp = keys.iter().zip(frontends);
        services.extend(
            udp.filter(|(key, _)| key.proto == proto::UDP)
                .map(|(_, frontend)| frontend.service),
        );
    }
    Ok(())
}
