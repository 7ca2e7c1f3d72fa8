// SPDX-License-Identifier: MIT OR Apache-2.0
//! `PREFIXES_*` as tables that are set as a whole and written entry by entry.
//!
//! What the maps hold is read once at start, so a new agent writes only what differs.
//! **Invariant:** what is remembered is what the maps hold, also after a write that failed.
//! What belongs in them is worked out by `masquerade.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, MapData};
use lb_common::abi::{PREFIX_TABLE_BITS, Prefix as Compared, PrefixKey, names};

use super::error::DatapathError;
use super::maps::{Raw, failed, is_missing};
use super::masquerade::Table;
use super::pins::Pins;
use crate::model::prefix::Prefix;

pub(super) type Trie<A> = LpmTrie<MapData, Raw<Compared<A>>, Raw<A>>;

/// Both maps.
pub(super) struct Prefixes {
    v4: Trie<[u8; 4]>,
    v6: Trie<[u8; 16]>,
    held: BTreeMap<u32, Table>,
}

impl Prefixes {
    /// Opens the pinned maps and reads what an earlier agent wrote.
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let v4 = open(pins, names::PREFIXES_V4)?;
        let v6 = open(pins, names::PREFIXES_V6)?;
        let mut held = BTreeMap::<u32, Table>::new();
        let mut add = |(table, prefix, address)| {
            held.entry(table).or_default().insert(prefix, address);
        };
        for entry in &v4 {
            let (key, Raw(address)) = entry.map_err(failed("read", names::PREFIXES_V4))?;
            entry_of::<[u8; 4]>(&key, address).map(&mut add);
        }
        for entry in &v6 {
            let (key, Raw(address)) = entry.map_err(failed("read", names::PREFIXES_V6))?;
            entry_of::<[u8; 16]>(&key, address).map(&mut add);
        }
        Ok(Self { v4, v6, held })
    }

    /// Numbers of the tables that have entries.
    pub(super) fn tables(&self) -> BTreeSet<u32> {
        self.held.keys().copied().collect()
    }

    /// Makes a table what is wanted; an empty one is none.
    pub(super) fn set(&mut self, table: u32, wanted: &Table) -> Result<(), DatapathError> {
        let held = self.held.get(&table).cloned().unwrap_or_default();
        // ORDER: what is missing first, so that nothing is without an answer in between.
        for (prefix, address) in wanted {
            if held.get(prefix) != Some(address) {
                self.put(table, *prefix, *address)?;
            }
        }
        for prefix in held.keys().filter(|prefix| !wanted.contains_key(prefix)) {
            self.remove(table, *prefix)?;
        }
        Ok(())
    }

    fn put(&mut self, table: u32, prefix: Prefix, value: IpAddr) -> Result<(), DatapathError> {
        let bits = prefix.bits();
        match (prefix.address(), value) {
            (IpAddr::V4(address), IpAddr::V4(value)) => self
                .v4
                .insert(&key(table, address.octets(), bits), Raw(value.octets()), 0)
                .map_err(failed("write", names::PREFIXES_V4))?,
            (IpAddr::V6(address), IpAddr::V6(value)) => self
                .v6
                .insert(&key(table, address.octets(), bits), Raw(value.octets()), 0)
                .map_err(failed("write", names::PREFIXES_V6))?,
            // Nothing makes such an entry.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Ok(()),
        }
        self.held.entry(table).or_default().insert(prefix, value);
        Ok(())
    }

    fn remove(&mut self, table: u32, prefix: Prefix) -> Result<(), DatapathError> {
        let bits = prefix.bits();
        let (removed, map) = match prefix.address() {
            IpAddr::V4(address) => (
                self.v4.remove(&key(table, address.octets(), bits)),
                names::PREFIXES_V4,
            ),
            IpAddr::V6(address) => (
                self.v6.remove(&key(table, address.octets(), bits)),
                names::PREFIXES_V6,
            ),
        };
        match removed {
            Err(error) if !is_missing(&error) => return Err(failed("write", map)(error)),
            _ => {}
        }
        if let Some(held) = self.held.get_mut(&table) {
            held.remove(&prefix);
            if held.is_empty() {
                self.held.remove(&table);
            }
        }
        Ok(())
    }
}

/// Opens one of the pinned maps.
pub(super) fn open<A>(pins: &Pins, name: &'static str) -> Result<Trie<A>, DatapathError>
where
    A: bytemuck::Pod,
    Compared<A>: bytemuck::Pod,
{
    MapData::from_pin(pins.map(name))
        .map(aya::maps::Map::LpmTrie)
        .and_then(Trie::try_from)
        .map_err(failed("open", name))
}

/// What to look an address up by in a table that has prefixes of any length.
pub(super) fn whole<A: Copy>(table: u32, address: A) -> Key<Raw<Compared<A>>>
where
    Compared<A>: bytemuck::Pod,
{
    let bits = u8::try_from(8 * size_of::<A>()).unwrap_or(u8::MAX);
    key(table, address, bits)
}

fn key<A: Copy>(table: u32, address: A, bits: u8) -> Key<Raw<Compared<A>>>
where
    Compared<A>: bytemuck::Pod,
{
    let key = PrefixKey::new(table, address, bits);
    Key::new(key.prefix_len, Raw(key.prefix))
}

/// Table, prefix and address of an entry; none for one that nobody writes, shorter than its table.
fn entry_of<A>(key: &Key<Raw<Compared<A>>>, value: A) -> Option<(u32, Prefix, IpAddr)>
where
    A: Copy + Into<IpAddr>,
    Compared<A>: bytemuck::Pod,
{
    let bits = key.prefix_len().checked_sub(PREFIX_TABLE_BITS)?;
    let Raw(compared) = key.data();
    let prefix = Prefix::new(compared.address.into(), u8::try_from(bits).ok()?)?;
    Some((compared.table, prefix, value.into()))
}
