// SPDX-License-Identifier: MIT OR Apache-2.0
//! The gates: what is attached while layouts change, and leads to the programs of one layout or the
//! other.
//!
//! A program at ingress writes what one at egress reads, and the other way round, on any two devices.
//! Replaced one after the other, programs of two layouts would not see each other's flows.
//! **Invariant:** a gate leads to a program that was attached before until all gates turn at once.

use std::io;

use aya::Ebpf;
use aya::maps::{Array, Map, MapData, ProgramArray};
use aya::programs::{ProgramError, SchedClassifier};
use lb_common::abi::{LAYOUT_VERSION, names};

use super::super::attach::{Attacher, Hook, Programs};
use super::super::error::DatapathError;
use super::super::events::Netlink;
use super::super::loader;
use super::super::maps::failed;
use super::super::netlink;
use super::super::pins::Pins;
use super::super::sockets::{SocketConfig, SocketHooks};

/// Programs in the order of the gates' numbers.
const KINDS: [(Hook, bool); 4] = [
    (Hook::Ingress, true),
    (Hook::Egress, true),
    (Hook::Ingress, false),
    (Hook::Egress, false),
];

fn open(pins: &Pins, name: &'static str) -> Result<MapData, DatapathError> {
    let path = pins.upgrade(LAYOUT_VERSION).join(name);
    MapData::from_pin(path).map_err(failed("open", name))
}

/// Tells the gates which programs there are: those that were attached last, and those of `newer`.
pub(super) fn fill(pins: &Pins, newer: &mut Ebpf) -> Result<(), DatapathError> {
    let map = names::GATE_PROGRAMS;
    let mut programs =
        ProgramArray::try_from(Map::ProgramArray(open(pins, map)?)).map_err(failed("open", map))?;
    for (number, (hook, ethernet)) in (0_u32..).zip(KINDS) {
        let name = Programs::Path.name(hook, ethernet);
        let path = pins.program(name);
        if !path.exists() {
            continue;
        }
        let refused = |error: ProgramError| DatapathError::refused(name, error);
        let older = SchedClassifier::from_pin(path).map_err(refused)?;
        programs
            .set(number, older.fd().map_err(refused)?, 0)
            .map_err(failed("write", map))?;
        let newer = loader::program(newer, name)?;
        let behind = u32::try_from(KINDS.len()).unwrap_or_default();
        programs
            .set(behind + number, newer.fd().map_err(refused)?, 0)
            .map_err(failed("write", map))?;
    }
    Ok(())
}

/// Puts a gate in the place of every program of ours.
pub(super) async fn attach_all(
    pins: &Pins,
    programs: Ebpf,
    tcx: bool,
) -> Result<(), DatapathError> {
    let netlink = Netlink::open()?;
    let view = netlink::list(&netlink.handle).await?;
    let sockets = SocketHooks::new(SocketConfig::default(), None);
    let mut attacher = Attacher::new(programs, pins.clone(), tcx, sockets).with_gates();
    for target in view.indices().filter_map(|index| view.target(index)) {
        for hook in [Hook::Ingress, Hook::Egress] {
            if !attacher.has(&target, hook) {
                continue;
            }
            let path = pins.program(Programs::Path.name(hook, target.ethernet));
            if !path.exists() {
                return Err(DatapathError::Directory {
                    what: "find the program that is attached at",
                    path,
                    source: io::ErrorKind::NotFound.into(),
                });
            }
            attacher.ensure(&target, hook)?;
        }
    }
    Ok(())
}

/// From now on all gates lead to the new programs.
pub(super) fn turn(pins: &Pins) -> Result<(), DatapathError> {
    let map = names::GATE_PHASE;
    let mut phase =
        Array::<_, u32>::try_from(Map::Array(open(pins, map)?)).map_err(failed("open", map))?;
    phase.set(0, 1, 0).map_err(failed("write", map))
}
