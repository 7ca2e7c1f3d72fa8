// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pinned maps as typed values: [`KernelTables`] and [`Flows`].
//!
//! They are opened from their pins, so the commands that only look work while the agent is down.
//! `apply.rs` writes what was planned, `sweep.rs` removes flows.
//! **Invariant:** keys and values are those of `lb_common::abi`, byte for byte.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData, MapError};
use lb_common::abi::{
    Backend, Conn, ConnKey, Frontend, FrontendKey, Iface, Kind, SlotKey, SourceRange,
    SourceRangeKey, names,
};
use lb_common::{Family, Reason, V4, V6};

use super::batch::Batches;
use super::counters::{ReasonCounters, ServiceCounters};
use super::error::DatapathError;
use super::grow::Caller;
use super::pins::Pins;
use super::port_set::FrontendPorts;
use super::sockets::Trigger;
use super::traffic::{Lookup, Meter, Traffic};
use super::versions::Versions;
use super::written::{Grow, Shared, Store, Written, lock};

/// A key or value as the kernel sees it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

// SAFETY: the same memory as T, whose every byte is initialised and whose every pattern is valid.
#[expect(unsafe_code, reason = "aya has its own marker for plain old data")]
unsafe impl<T: bytemuck::Pod> aya::Pod for Raw<T> {}

/// A hash map with keys and values of the ABI.
pub(super) type Hash<K, V> = HashMap<MapData, Raw<K>, Raw<V>>;

/// Opens the pinned hash map `name`.
pub(super) fn open_hash<K, V>(pins: &Pins, name: &'static str) -> Result<Hash<K, V>, DatapathError>
where
    K: bytemuck::Pod,
    V: bytemuck::Pod,
{
    MapData::from_pin(pins.map(name))
        .map(aya::maps::Map::HashMap)
        .and_then(Hash::try_from)
        .map_err(failed("open", name))
}

pub(super) fn failed(
    what: &'static str,
    map: &'static str,
) -> impl FnOnce(MapError) -> DatapathError {
    move |source| DatapathError::Map {
        what,
        map,
        source: Box::new(source),
    }
}

/// A family whose types may be keys and values of maps.
pub(super) trait MapFamily: Family {
    const FRONTENDS: &'static str;
    const BACKENDS: &'static str;
    const CONNS: &'static str;
    const SOURCE_RANGES: &'static str;
}

impl MapFamily for V4 {
    const FRONTENDS: &'static str = names::FRONTENDS_V4;
    const BACKENDS: &'static str = names::BACKENDS_V4;
    const CONNS: &'static str = names::CONNS_V4;
    const SOURCE_RANGES: &'static str = names::SRC_RANGES_V4;
}

impl MapFamily for V6 {
    const FRONTENDS: &'static str = names::FRONTENDS_V6;
    const BACKENDS: &'static str = names::BACKENDS_V6;
    const CONNS: &'static str = names::CONNS_V6;
    const SOURCE_RANGES: &'static str = names::SRC_RANGES_V6;
}

/// A trie of source ranges.
pub(super) type Ranges<A> = LpmTrie<MapData, Raw<SourceRange<A>>, u8>;

/// The key as aya has it: the same bytes, with its own name for the prefix.
fn trie_key<A: Copy>(key: &SourceRangeKey<A>) -> Key<Raw<SourceRange<A>>>
where
    SourceRange<A>: bytemuck::Pod,
{
    Key::new(key.prefix_len, Raw(key.range))
}

fn range_of<A: Copy>(key: &Key<Raw<SourceRange<A>>>) -> SourceRangeKey<A>
where
    SourceRange<A>: bytemuck::Pod,
{
    SourceRangeKey {
        prefix_len: key.prefix_len(),
        range: key.data().0,
    }
}

impl<K, V> Store for Hash<K, V>
where
    K: bytemuck::Pod + Send,
    V: bytemuck::Pod + Send,
{
    type Key = K;
    type Value = V;

    fn open(path: &Path) -> Result<Self, MapError> {
        MapData::from_pin(path)
            .map(aya::maps::Map::HashMap)
            .and_then(Self::try_from)
    }

    fn put(&mut self, key: &K, value: V) -> Result<(), MapError> {
        self.insert(Raw(*key), Raw(value), 0)
    }

    fn delete(&mut self, key: &K) -> Result<(), MapError> {
        match self.remove(&Raw(*key)) {
            Err(error) if is_missing(&error) => Ok(()),
            other => other,
        }
    }

    fn value(&self, key: &K) -> Result<V, MapError> {
        self.get(&Raw(*key), 0).map(|Raw(value)| value)
    }

    fn replaced(&self, key: &K) -> Result<Option<V>, MapError> {
        match self.value(key) {
            Err(MapError::KeyNotFound) => Ok(None),
            other => other.map(Some),
        }
    }

    fn keys(&self) -> impl Iterator<Item = Result<K, MapError>> {
        HashMap::keys(self).map(|key| key.map(|Raw(key)| key))
    }
}

impl<A> Store for Ranges<A>
where
    A: Copy + Send + 'static,
    SourceRange<A>: bytemuck::Pod + Send,
{
    type Key = SourceRangeKey<A>;
    type Value = ();

    fn open(path: &Path) -> Result<Self, MapError> {
        MapData::from_pin(path)
            .map(aya::maps::Map::LpmTrie)
            .and_then(Self::try_from)
    }

    fn put(&mut self, key: &Self::Key, (): ()) -> Result<(), MapError> {
        self.insert(&trie_key(key), key.bits(), 0)
    }

    fn delete(&mut self, key: &Self::Key) -> Result<(), MapError> {
        match self.remove(&trie_key(key)) {
            Err(error) if is_missing(&error) => Ok(()),
            other => other,
        }
    }

    fn value(&self, _: &Self::Key) -> Result<(), MapError> {
        Ok(())
    }

    /// A lookup finds the longest range up to the length asked for; its value tells which.
    fn replaced(&self, key: &Self::Key) -> Result<Option<()>, MapError> {
        match self.get(&trie_key(key), 0) {
            Ok(bits) => Ok((bits == key.bits()).then_some(())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn keys(&self) -> impl Iterator<Item = Result<Self::Key, MapError>> {
        LpmTrie::keys(self).map(|key| key.map(|key| range_of(&key)))
    }
}

/// Opens the pinned map `name`, which planning writes.
fn open_written<M: Store>(pins: &Pins, name: &'static str) -> Result<Shared<M>, DatapathError> {
    let path = pins.map(name);
    let map = M::open(&path).map_err(failed("open", name))?;
    let info = aya::maps::MapInfo::from_pin(path).map_err(failed("open", name))?;
    let written = Written::new(name, map, info.max_entries());
    Ok(Arc::new(Mutex::new(written)))
}

/// What planning writes of one family.
pub(super) struct FamilyMaps<A>
where
    FrontendKey<A>: bytemuck::Pod,
    Backend<A>: bytemuck::Pod,
    SourceRange<A>: bytemuck::Pod,
{
    pub(super) frontends: Shared<Hash<FrontendKey<A>, Frontend>>,
    pub(super) backends: Shared<Hash<u32, Backend<A>>>,
    pub(super) ranges: Shared<Ranges<A>>,
}

impl<A> FamilyMaps<A>
where
    A: Copy + Send + 'static,
    FrontendKey<A>: bytemuck::Pod,
    Backend<A>: bytemuck::Pod,
    SourceRange<A>: bytemuck::Pod,
{
    fn open<F: MapFamily<Addr = A>>(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            frontends: open_written(pins, F::FRONTENDS)?,
            backends: open_written(pins, F::BACKENDS)?,
            ranges: open_written(pins, F::SOURCE_RANGES)?,
        })
    }

    fn all(&self) -> [Arc<dyn Grow>; 3] {
        [
            Arc::clone(&self.frontends) as _,
            Arc::clone(&self.backends) as _,
            Arc::clone(&self.ranges) as _,
        ]
    }
}

/// The tables in the kernel.
pub struct KernelTables {
    pub(super) v4: FamilyMaps<[u8; 4]>,
    pub(super) v6: FamilyMaps<[u8; 16]>,
    pub(super) slots: Shared<Hash<SlotKey, u32>>,
    /// Who makes full maps larger; nobody without a running agent.
    pub(super) grower: Option<Caller>,
    /// Who looks for sockets that have lost their backend; nobody without a running agent.
    pub(super) trigger: Option<Trigger>,
    reasons: ReasonCounters,
    pub(super) counters: ServiceCounters,
    pub(super) traffic: Traffic,
    pub(super) versions: Versions,
    pub(super) ports: FrontendPorts,
}

impl KernelTables {
    /// Opens the maps that an agent has pinned under `bpffs`, without loading anything.
    pub fn open(bpffs: &Path) -> Result<Self, DatapathError> {
        Self::open_pins(&Pins::open(bpffs)?)
    }

    pub(super) fn open_pins(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            v4: FamilyMaps::open::<V4>(pins)?,
            v6: FamilyMaps::open::<V6>(pins)?,
            slots: open_written(pins, names::SLOTS)?,
            grower: None,
            trigger: None,
            reasons: ReasonCounters::open(pins)?,
            counters: ServiceCounters::open(pins)?,
            traffic: Traffic::default(),
            versions: Versions::open(pins)?,
            ports: FrontendPorts::open(pins)?,
        })
    }

    /// The maps that planning writes.
    pub(super) fn written(&self) -> Vec<Arc<dyn Grow>> {
        let slots: Arc<dyn Grow> = Arc::clone(&self.slots) as _;
        let families = self.v4.all().into_iter().chain(self.v6.all());
        families.chain([slots]).collect()
    }

    /// Who sums what flows count, for IPv4 and IPv6.
    pub(super) fn meters(&self) -> [Meter; 2] {
        [
            self.traffic.meter_v4(users(&self.v4.backends)),
            self.traffic.meter_v6(users(&self.v6.backends)),
        ]
    }

    /// Addresses that belong to Services, as the tables tell.
    pub(super) fn service_addresses(&self) -> Result<BTreeSet<IpAddr>, DatapathError> {
        let mut found = BTreeSet::new();
        add_virtual(&self.v4.frontends, &mut found)?;
        add_virtual(&self.v6.frontends, &mut found)?;
        Ok(found)
    }

    /// How often each reason has occurred since the maps were made, summed over all CPUs.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
        self.reasons.read()
    }
}

/// Tells who has a backend id. One that cannot be read is as one that nobody has.
fn users<A>(backends: &Shared<Hash<u32, Backend<A>>>) -> Lookup
where
    A: Copy + Send + 'static,
    Backend<A>: bytemuck::Pod + Send,
{
    let backends = Arc::clone(backends);
    Box::new(move |id| {
        let found = lock(&backends).now().replaced(&id).ok().flatten()?;
        Some((found.service, found.epoch))
    })
}

/// Adds the addresses of all frontends that are no node ports.
fn add_virtual<A>(
    frontends: &Shared<Hash<FrontendKey<A>, Frontend>>,
    found: &mut BTreeSet<IpAddr>,
) -> Result<(), DatapathError>
where
    A: Copy + Into<IpAddr>,
    FrontendKey<A>: bytemuck::Pod + Send,
{
    let frontends = lock(frontends);
    for entry in frontends.now() {
        let (Raw(key), Raw(frontend)) = entry.map_err(failed("read", frontends.name))?;
        if frontend.kind != Kind::NodePort as u8 {
            found.insert(key.address.into());
        }
    }
    Ok(())
}

/// The flow entries of one family.
pub struct Flows<A>
where
    ConnKey<A>: bytemuck::Pod,
    Conn<A>: bytemuck::Pod,
{
    map: Hash<ConnKey<A>, Conn<A>>,
    /// The same map once more, to read many entries at a time.
    data: MapData,
    name: &'static str,
}

impl Flows<[u8; 4]> {
    /// Opens the pinned table of IPv4 flows.
    pub fn open_v4(pins: &Pins) -> Result<Self, DatapathError> {
        Self::open::<V4>(pins)
    }
}

impl Flows<[u8; 16]> {
    /// Opens the pinned table of IPv6 flows.
    pub fn open_v6(pins: &Pins) -> Result<Self, DatapathError> {
        Self::open::<V6>(pins)
    }
}

impl<A> Flows<A>
where
    ConnKey<A>: bytemuck::Pod,
    Conn<A>: bytemuck::Pod,
{
    fn open<F: MapFamily<Addr = A>>(pins: &Pins) -> Result<Self, DatapathError> {
        Self::open_table(pins, F::CONNS)
    }

    /// Opens the pinned table `name` of flow entries: of established ones or of half-open ones.
    pub(super) fn open_table(pins: &Pins, name: &'static str) -> Result<Self, DatapathError> {
        Ok(Self {
            map: open_hash(pins, name)?,
            data: MapData::from_pin(pins.map(name)).map_err(failed("open", name))?,
            name,
        })
    }

    /// Every entry, at most `entries` in one step.
    pub(super) fn batches(&self, entries: usize) -> Batches<'_, ConnKey<A>, Conn<A>> {
        Batches::new(&self.data, entries)
    }

    /// The most entries that the table may have.
    pub(super) fn entries_max(&self) -> Result<usize, DatapathError> {
        let info = self.data.info().map_err(failed("read", self.name))?;
        Ok(info.max_entries() as usize)
    }

    /// What failed while entries were read.
    pub(super) fn unread(&self, source: std::io::Error) -> DatapathError {
        DatapathError::Batch {
            map: self.name,
            source,
        }
    }

    /// Every entry, two for each flow, in no order; entries that come or go meanwhile may or may
    /// not be among them.
    pub fn iter(&self) -> impl Iterator<Item = Result<(ConnKey<A>, Conn<A>), DatapathError>> {
        let name = self.name;
        self.map.iter().map(move |entry| {
            entry
                .map(|(Raw(key), Raw(conn))| (key, conn))
                .map_err(failed("read", name))
        })
    }

    /// The entry of `key`, if there is one.
    pub fn lookup(&self, key: &ConnKey<A>) -> Result<Option<Conn<A>>, DatapathError> {
        match self.map.get(&Raw(*key), 0) {
            Ok(Raw(conn)) => Ok(Some(conn)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("read", self.name)(error)),
        }
    }

    /// Removes the entry of `key`; none is no error.
    pub(super) fn remove(&mut self, key: &ConnKey<A>) -> Result<(), DatapathError> {
        match self.map.remove(&Raw(*key)) {
            Err(error) if !is_missing(&error) => Err(failed("write", self.name)(error)),
            _ => Ok(()),
        }
    }
}

/// The devices that the packet path knows.
pub(super) struct Ifaces(Hash<u32, Iface>);

impl Ifaces {
    pub(super) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        open_hash(pins, names::IFACES).map(Self)
    }

    pub(super) fn put(&mut self, index: u32, iface: Iface) -> Result<(), DatapathError> {
        self.0
            .insert(Raw(index), Raw(iface), 0)
            .map_err(failed("write", names::IFACES))
    }

    pub(super) fn remove(&mut self, index: u32) -> Result<(), DatapathError> {
        match self.0.remove(&Raw(index)) {
            Err(error) if !is_missing(&error) => Err(failed("write", names::IFACES)(error)),
            _ => Ok(()),
        }
    }

    pub(super) fn indices(&self) -> Vec<u32> {
        self.0.keys().flatten().map(|Raw(index)| index).collect()
    }
}

/// True when a key was not there.
pub(super) fn is_missing(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound)
        || super::error::os_error(error) == Some(nix::errno::Errno::ENOENT as i32)
}
