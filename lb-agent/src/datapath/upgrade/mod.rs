// SPDX-License-Identifier: MIT OR Apache-2.0
//! Takes tables and flows of an older layout over while packets are forwarded, before anything else
//! of a start.
//!
//! New maps are made in `<bpffs>/upgrade-N/` and programs for them that look into the older ones,
//! too; every attach point is given a gate that leads to the older programs; one write leads all
//! gates to the new ones; the flows are moved; the new maps take the place of the older ones. The start goes
//! on with programs that know nothing of older maps.
//! **Invariant:** at any moment all attach points work on the same tables, so a reply finds what its
//! request wrote; and every step can be done again, so whoever starts next goes on.
//! Next: `gates.rs`, `flows.rs`, and lb-common/README.md for the walk.

mod flows;
mod gates;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aya::Ebpf;
use lb_common::abi::older::{self, OldFrontendKey};
use lb_common::abi::{Frontend, FrontendKey, LAYOUT_VERSION, names};

use super::error::DatapathError;
use super::layouts::remove_file;
use super::loader::{self, Bridge, Wanted};
use super::maps::{Hash, Raw, failed, open_hash};
use super::pins::{self, Pins};
use super::shapes::{Entries, Shape};
use super::written::Store as _;

/// For how long programs that had begun when the gates turned may go on; they need microseconds.
const GRACE: Duration = Duration::from_millis(50);

/// Brings what is pinned to this build's layouts, if it is not there yet.
pub(super) async fn run(pins: &Pins, wanted: &Wanted, tcx: bool) -> Result<(), DatapathError> {
    let begun = Instant::now();
    let is_older = pins.is_of(older::VERSION)?;
    if is_older {
        tracing::info!(
            "the maps have layout {}: taking them over into layout {LAYOUT_VERSION}",
            older::VERSION
        );
        prepare(pins, wanted, tcx).await?;
        // ORDER: before the gates turn. Whoever starts a build of the older layout from here on is
        // refused, also when this process ends before they have turned.
        pins.rename_layout(older::VERSION)?;
    }
    let left = unfinished(pins, wanted);
    if left.is_empty() {
        return Ok(());
    }
    gates::turn(pins)?;
    tokio::time::sleep(GRACE).await;
    let moved = flows::carry_all(pins, &left)?;
    for name in left {
        // ORDER: one rename replaces the pin. What was pinned there is used by no program any more but
        // to find that it is empty.
        let path = pins.map(name);
        std::fs::rename(incoming(pins, name), &path).map_err(|source| {
            DatapathError::Directory {
                what: "replace map",
                path,
                source,
            }
        })?;
    }
    let took = begun.elapsed().as_secs_f64();
    tracing::info!(
        "layout {LAYOUT_VERSION} is in force after {took:.1} s, with {moved} entries of flows"
    );
    Ok(())
}

/// Everything up to the moment when the gates may turn.
async fn prepare(pins: &Pins, wanted: &Wanted, tcx: bool) -> Result<(), DatapathError> {
    let directory = pins.upgrade(LAYOUT_VERSION);
    // What an attempt before this one has left. Gates that it attached are led by its own two maps, which
    // stay.
    for name in pins::list(&directory)? {
        if ![names::GATE_PROGRAMS, names::GATE_PHASE].contains(&name.as_str()) {
            remove_file(&directory.join(name))?;
        }
    }
    std::fs::create_dir_all(&directory).map_err(|source| DatapathError::Directory {
        what: "create directory",
        path: directory,
        source,
    })?;
    let mut programs = load(pins, wanted)?;
    copy_frontends::<[u8; 4]>(pins, names::FRONTENDS_V4)?;
    copy_frontends::<[u8; 16]>(pins, names::FRONTENDS_V6)?;
    gates::fill(pins, &mut programs)?;
    gates::attach_all(pins, programs, tcx).await
}

/// Loads programs for new maps beside the older ones.
fn load(pins: &Pins, wanted: &Wanted) -> Result<Ebpf, DatapathError> {
    let mut elsewhere = BTreeMap::new();
    for older in wanted.older_shapes() {
        let Some(found) = pins.found(older.name)? else {
            continue;
        };
        let entries = match older.entries {
            Entries::Exactly(entries) => entries,
            Entries::Growing(_) | Entries::Object(_) => found.entries,
        };
        elsewhere.insert(older.name, (incoming(pins, older.name), entries));
    }
    let directory = pins.upgrade(LAYOUT_VERSION);
    let bridge = Bridge {
        elsewhere,
        gates: [names::GATE_PROGRAMS, names::GATE_PHASE].map(|name| (name, directory.join(name))),
    };
    loader::load_bridging(pins, wanted, &bridge)
}

/// Where the map that takes the place of the map `name` is pinned.
fn incoming(pins: &Pins, name: &str) -> PathBuf {
    pins.upgrade(LAYOUT_VERSION).join(name)
}

/// The maps that have not taken their predecessors' places yet.
fn unfinished(pins: &Pins, wanted: &Wanted) -> Vec<&'static str> {
    let names = wanted
        .older_shapes()
        .into_iter()
        .map(|Shape { name, .. }| name);
    names.filter(|name| incoming(pins, name).exists()).collect()
}

/// Copies a table that nobody writes meanwhile: its writer is who starts here.
fn copy_frontends<A>(pins: &Pins, name: &'static str) -> Result<(), DatapathError>
where
    A: Copy + Send + 'static,
    OldFrontendKey<A>: bytemuck::Pod + Send,
    FrontendKey<A>: bytemuck::Pod + Send,
{
    let older: Hash<OldFrontendKey<A>, Frontend> = open_hash(pins, name)?;
    let mut newer = Hash::<FrontendKey<A>, Frontend>::open(&incoming(pins, name))
        .map_err(failed("open", name))?;
    for entry in &older {
        let (Raw(key), Raw(frontend)) = entry.map_err(failed("read", name))?;
        newer
            .put(&key.renewed(), frontend)
            .map_err(failed("copy", name))?;
    }
    Ok(())
}
