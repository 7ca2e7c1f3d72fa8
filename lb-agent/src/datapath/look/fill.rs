// SPDX-License-Identifier: MIT OR Apache-2.0
//! How full the pinned maps are.
//!
//! **Invariant:** counted by walking: the kernel keeps no count of a map's entries. Maps that have all
//! their entries from the start are left out.

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Map, MapData};
use lb_common::abi::{
    Affinity, AffinityKey, Backend, Conn, ConnKey, Fragment, FragmentKey, Frontend, FrontendKey,
    Iface, SlotKey, SocketKey, SocketPeer, names,
};

use super::Look;
use crate::datapath::error::DatapathError;
use crate::datapath::maps::failed;

type Addr4 = [u8; 4];
type Addr6 = [u8; 16];
/// Prefixes and source ranges: a length and two words or more; the values differ.
type TrieKey<const N: usize> = [u8; N];

/// A map and its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// The pinned name.
    pub name: &'static str,
    /// Entries that it has.
    pub entries: u64,
    /// Entries that it has room for.
    pub capacity: u32,
}

impl Look {
    /// Every map that entries come into and go out of, in the order of their names.
    pub fn fill(&self) -> Result<Vec<MapFill>, DatapathError> {
        let mut fills = vec![
            self.count::<FrontendKey<Addr4>, Frontend>(names::FRONTENDS_V4)?,
            self.count::<FrontendKey<Addr6>, Frontend>(names::FRONTENDS_V6)?,
            self.count::<SlotKey, u32>(names::SLOTS)?,
            self.count::<u32, Backend<Addr4>>(names::BACKENDS_V4)?,
            self.count::<u32, Backend<Addr6>>(names::BACKENDS_V6)?,
            self.count::<ConnKey<Addr4>, Conn<Addr4>>(names::CONNS_V4)?,
            self.count::<ConnKey<Addr6>, Conn<Addr6>>(names::CONNS_V6)?,
            self.count::<ConnKey<Addr4>, Conn<Addr4>>(names::HALF_OPEN_V4)?,
            self.count::<ConnKey<Addr6>, Conn<Addr6>>(names::HALF_OPEN_V6)?,
            self.count::<AffinityKey<Addr4>, Affinity>(names::AFFINITY_V4)?,
            self.count::<AffinityKey<Addr6>, Affinity>(names::AFFINITY_V6)?,
            self.count::<FragmentKey<Addr4>, Fragment>(names::FRAGMENTS_V4)?,
            self.count::<FragmentKey<Addr6>, Fragment>(names::FRAGMENTS_V6)?,
            self.count::<SocketKey<Addr4>, SocketPeer<Addr4>>(names::SOCKETS_V4)?,
            self.count::<SocketKey<Addr6>, SocketPeer<Addr6>>(names::SOCKETS_V6)?,
            self.count::<u64, u32>(names::NAMESPACES)?,
            self.count::<u32, Iface>(names::IFACES)?,
            self.count_trie::<8, u8>(names::SRC_RANGES_V4)?,
            self.count_trie::<20, u8>(names::SRC_RANGES_V6)?,
            self.count_trie::<8, Addr4>(names::PREFIXES_V4)?,
            self.count_trie::<20, Addr6>(names::PREFIXES_V6)?,
        ];
        fills.sort_by_key(|fill| fill.name);
        Ok(fills)
    }

    fn count<K: bytemuck::Pod, V: bytemuck::Pod>(
        &self,
        name: &'static str,
    ) -> Result<MapFill, DatapathError> {
        let mut entries = 0;
        self.walk_steps(name, |keys: &[K], _: &[V]| {
            entries += keys.len() as u64;
            Ok(())
        })?;
        let info = self.open_map::<K, V>(name)?;
        let info = info.info().map_err(failed("read", name))?;
        Ok(MapFill {
            name,
            entries,
            capacity: info.max_entries(),
        })
    }

    /// A trie's keys are a length and `N` bytes.
    fn count_trie<const N: usize, V: aya::Pod>(
        &self,
        name: &'static str,
    ) -> Result<MapFill, DatapathError> {
        let map = MapData::from_pin(self.pins.map(name)).map_err(failed("open", name))?;
        let info = map.info().map_err(failed("read", name))?;
        let trie = LpmTrie::<_, TrieKey<N>, V>::try_from(Map::LpmTrie(map));
        let trie = trie.map_err(failed("open", name))?;
        let mut entries = 0;
        for key in trie.keys() {
            key.map_err(failed("read", name))?;
            entries += 1;
        }
        Ok(MapFill {
            name,
            entries,
            capacity: info.max_entries(),
        })
    }
}
