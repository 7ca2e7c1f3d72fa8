// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each pinned map must look like.
//!
//! Maps that planning writes may have any number of entries, since they grow when they are full
//! and keep their size; the others have the one that was asked for.
//! **Invariant:** one row for each name of `lb_common::abi::names`. Next: `pins.rs`.

use aya::maps::{MapInfo, MapType};
use lb_common::Reason;
use lb_common::abi::{
    Affinity, AffinityKey, Backend, Conn, ConnKey, Cursor, Fragment, FragmentKey, Frontend,
    FrontendKey, Iface, PortSet, PrefixKey, Recent, ServiceStats, SlotKey, SocketKey, SocketPeer,
    SourceRangeKey, VERSIONS, limits, names,
};

use super::sizes::{Size, Sizes};

/// How many entries a map has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entries {
    /// This many.
    Exactly(u32),
    /// As many as the object says, and no fewer than this.
    Object(u32),
    /// It grows: this many at first.
    Growing(u32),
}

/// What a map must look like.
pub(super) struct Shape {
    pub(super) name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    pub(super) entries: Entries,
}

/// What a map looks like.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    kind: String,
    key: u32,
    value: u32,
    pub(super) entries: u32,
}

impl From<&MapInfo> for Found {
    fn from(info: &MapInfo) -> Self {
        Self {
            kind: info
                .map_type()
                .map_or_else(|_| "unknown".to_owned(), |kind| format!("{kind:?}")),
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
        }
    }
}

impl Shape {
    fn new<K, V>(name: &'static str, kind: MapType, entries: Entries) -> Self {
        Self {
            name,
            kind,
            key: size_of::<K>(),
            value: size_of::<V>(),
            entries,
        }
    }

    fn hash<K, V>(name: &'static str, entries: u32) -> Self {
        Self::new::<K, V>(name, MapType::Hash, Entries::Exactly(entries))
    }

    fn lru<K, V>(name: &'static str, entries: u32) -> Self {
        Self::new::<K, V>(name, MapType::LruHash, Entries::Exactly(entries))
    }

    fn prefixes<A>(name: &'static str) -> Self {
        let entries = Entries::Exactly(limits::PREFIXES);
        Self::new::<PrefixKey<A>, A>(name, MapType::LpmTrie, entries)
    }

    fn growing<K, V>(name: &'static str, size: Size) -> Self {
        Self::new::<K, V>(name, MapType::Hash, Entries::Growing(size.first))
    }

    fn ranges<A>(name: &'static str, size: Size) -> Self {
        let entries = Entries::Growing(size.first);
        Self::new::<SourceRangeKey<A>, u8>(name, MapType::LpmTrie, entries)
    }

    /// The first difference in words, or none.
    pub(super) fn difference(&self, found: &Found) -> Option<String> {
        let wanted = format!("{:?}", self.kind);
        if found.kind != wanted {
            return Some(format!("it is of type {}, wanted is {wanted}", found.kind));
        }
        for (what, is, wanted) in [
            ("key", found.key, self.key),
            ("value", found.value, self.value),
        ] {
            if usize::try_from(is).ok() != Some(wanted) {
                return Some(format!("its {what} has {is} bytes, wanted are {wanted}"));
            }
        }
        let (fits, wanted) = match self.entries {
            Entries::Exactly(entries) => (found.entries == entries, entries),
            Entries::Object(least) => (found.entries >= least, least),
            Entries::Growing(first) => (true, first),
        };
        let entries = found.entries;
        (!fits).then(|| format!("it was made for {entries} entries, wanted are {wanted}"))
    }
}

/// Entries of the maps that programs write, as far as they can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) connections: u32,
    pub(super) half_open: u32,
    pub(super) affinities: u32,
}

/// Every pinned map.
pub(super) fn shapes(chosen: Chosen, sizes: &Sizes) -> Vec<Shape> {
    type V4 = [u8; 4];
    type V6 = [u8; 16];
    let services = Entries::Exactly(limits::SERVICES);
    let reasons = Entries::Object(u32::try_from(Reason::ALL.len()).unwrap_or(u32::MAX));
    vec![
        Shape::growing::<FrontendKey<V4>, Frontend>(names::FRONTENDS_V4, sizes.frontends),
        Shape::growing::<FrontendKey<V6>, Frontend>(names::FRONTENDS_V6, sizes.frontends),
        Shape::growing::<SlotKey, u32>(names::SLOTS, sizes.slots),
        Shape::growing::<u32, Backend<V4>>(names::BACKENDS_V4, sizes.backends),
        Shape::growing::<u32, Backend<V6>>(names::BACKENDS_V6, sizes.backends),
        Shape::new::<u32, Cursor>(names::CURSORS, MapType::Array, services),
        Shape::hash::<ConnKey<V4>, Conn<V4>>(names::CONNS_V4, chosen.connections),
        Shape::hash::<ConnKey<V6>, Conn<V6>>(names::CONNS_V6, chosen.connections),
        Shape::lru::<ConnKey<V4>, Conn<V4>>(names::HALF_OPEN_V4, chosen.half_open),
        Shape::lru::<ConnKey<V6>, Conn<V6>>(names::HALF_OPEN_V6, chosen.half_open),
        Shape::lru::<AffinityKey<V4>, Affinity>(names::AFFINITY_V4, chosen.affinities),
        Shape::lru::<AffinityKey<V6>, Affinity>(names::AFFINITY_V6, chosen.affinities),
        Shape::lru::<FragmentKey<V4>, Fragment>(names::FRAGMENTS_V4, limits::FRAGMENTS),
        Shape::lru::<FragmentKey<V6>, Fragment>(names::FRAGMENTS_V6, limits::FRAGMENTS),
        Shape::lru::<SocketKey<V4>, SocketPeer<V4>>(names::SOCKETS_V4, limits::SOCKETS),
        Shape::lru::<SocketKey<V6>, SocketPeer<V6>>(names::SOCKETS_V6, limits::SOCKETS),
        Shape::hash::<u64, u32>(names::NAMESPACES, limits::NAMESPACES),
        Shape::prefixes::<V4>(names::PREFIXES_V4),
        Shape::prefixes::<V6>(names::PREFIXES_V6),
        Shape::new::<u32, ServiceStats>(names::SERVICE_STATS, MapType::Array, services),
        Shape::new::<u32, u32>(names::VERSIONS, MapType::Array, Entries::Exactly(VERSIONS)),
        Shape::new::<u32, PortSet>(names::FRONTEND_PORTS, MapType::Array, Entries::Exactly(1)),
        Shape::new::<u32, Recent>(names::RECENT, MapType::Array, Entries::Exactly(1)),
        Shape::ranges::<V4>(names::SRC_RANGES_V4, sizes.source_ranges),
        Shape::ranges::<V6>(names::SRC_RANGES_V6, sizes.source_ranges),
        Shape::hash::<u32, Iface>(names::IFACES, limits::IFACES),
        Shape::new::<u32, u64>(names::REASONS, MapType::PerCpuArray, reasons),
    ]
}

/// The maps that another layout has otherwise, as they are there.
#[cfg(feature = "layout-next")]
pub(super) fn older_shapes(chosen: Chosen, sizes: &Sizes) -> Vec<Shape> {
    use lb_common::abi::older::{OldConn, OldFrontendKey};
    type V4 = [u8; 4];
    type V6 = [u8; 16];
    vec![
        Shape::growing::<OldFrontendKey<V4>, Frontend>(names::FRONTENDS_V4, sizes.frontends),
        Shape::growing::<OldFrontendKey<V6>, Frontend>(names::FRONTENDS_V6, sizes.frontends),
        Shape::hash::<ConnKey<V4>, OldConn<V4>>(names::CONNS_V4, chosen.connections),
        Shape::hash::<ConnKey<V6>, OldConn<V6>>(names::CONNS_V6, chosen.connections),
        Shape::lru::<ConnKey<V4>, OldConn<V4>>(names::HALF_OPEN_V4, chosen.half_open),
        Shape::lru::<ConnKey<V6>, OldConn<V6>>(names::HALF_OPEN_V6, chosen.half_open),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Chosen = Chosen {
        connections: 1,
        half_open: 1,
        affinities: 1,
    };

    fn found(kind: &str, key: u32, value: u32, entries: u32) -> Found {
        Found {
            kind: kind.to_owned(),
            key,
            value,
            entries,
        }
    }

    #[test]
    fn every_pinned_map_has_a_shape() {
        let shapes = shapes(ONE, &Sizes::default());
        let mut known: Vec<_> = shapes.iter().map(|shape| shape.name).collect();
        let mut all = names::ALL.to_vec();
        known.sort_unstable();
        all.sort_unstable();
        assert_eq!(known, all);
    }

    #[test]
    fn a_map_that_differs_is_refused_with_what_differs() {
        let shape = Shape::hash::<SlotKey, u32>(names::SLOTS, 10);
        let wrong = |found: &Found| shape.difference(found).unwrap();
        assert_eq!(shape.difference(&found("Hash", 8, 4, 10)), None);
        assert!(wrong(&found("LruHash", 8, 4, 10)).contains("type LruHash"));
        assert!(wrong(&found("Hash", 12, 4, 10)).contains("key has 12 bytes"));
        assert!(wrong(&found("Hash", 8, 8, 10)).contains("value has 8 bytes"));
        assert!(wrong(&found("Hash", 8, 4, 11)).contains("11 entries, wanted are 10"));
    }

    #[test]
    fn a_map_that_grows_is_accepted_in_every_size() {
        let size = Size {
            first: 10,
            most: 40,
        };
        let shape = Shape::growing::<SlotKey, u32>(names::SLOTS, size);
        for entries in [1, 10, 20, 80] {
            assert_eq!(shape.difference(&found("Hash", 8, 4, entries)), None);
        }
        assert!(shape.difference(&found("LruHash", 8, 4, 10)).is_some());
    }

    #[test]
    fn counters_may_have_room_for_more_reasons_than_are_known() {
        let shape = shapes(ONE, &Sizes::default()).pop().unwrap();
        let enough = u32::try_from(Reason::ALL.len()).unwrap();
        let more = found("PerCpuArray", 4, 8, enough + 9);
        assert_eq!(shape.difference(&more), None);
        let fewer = found("PerCpuArray", 4, 8, enough - 1);
        assert!(shape.difference(&fewer).is_some());
    }
}
