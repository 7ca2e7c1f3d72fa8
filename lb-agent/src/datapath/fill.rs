// SPDX-License-Identifier: MIT OR Apache-2.0
//! How full the kernel side is: room of each map, entries of the flow tables, masquerade ports in use.
//!
//! **Invariant:** asking costs a few system calls for each map, however much is in it: flows are
//! counted by the sweeper, which reads them anyway.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapInfo;
use lb_common::abi::names;

use super::pins::Pins;

/// What the last pass over the flows of one family has met.
#[derive(Debug, Default)]
pub(super) struct FlowsMet {
    entries: AtomicU64,
    masqueraded: AtomicU64,
}

impl FlowsMet {
    pub(super) fn note(&self, entries: u64, masqueraded: u64) {
        self.entries.store(entries, Ordering::Relaxed);
        self.masqueraded.store(masqueraded, Ordering::Relaxed);
    }
}

/// Of IPv4 and IPv6.
pub(super) type MetByFamily = [Arc<FlowsMet>; 2];

/// How full the kernel side is.
#[derive(Clone, Debug)]
pub struct Fill {
    pins: Pins,
    met: MetByFamily,
    snat_ports: u32,
}

impl Fill {
    pub(super) fn new(pins: Pins, met: MetByFamily, snat_ports: u32) -> Self {
        Self {
            pins,
            met,
            snat_ports,
        }
    }

    /// Name of each pinned map and the most entries that it has room for now. A map that cannot be
    /// asked is left out.
    pub fn room(&self) -> impl Iterator<Item = (&'static str, u32)> {
        names::ALL.iter().filter_map(|name| {
            let info = MapInfo::from_pin(self.pins.map(name)).ok()?;
            Some((*name, info.max_entries()))
        })
    }

    /// Name of each table of flows and its entries, as the last pass has met them.
    pub fn flow_entries(&self) -> [(&'static str, u64); 2] {
        let met = |at: usize| self.met[at].entries.load(Ordering::Relaxed);
        [(names::CONNS_V4, met(0)), (names::CONNS_V6, met(1))]
    }

    /// Established flows that hold a masquerade port, of IPv4 and IPv6.
    pub fn masqueraded(&self) -> [u64; 2] {
        let met = |at: usize| self.met[at].masqueraded.load(Ordering::Relaxed);
        [met(0), met(1)]
    }

    /// Ports that masqueraded flows to one backend can have at once.
    pub fn snat_ports(&self) -> u32 {
        self.snat_ports
    }
}
