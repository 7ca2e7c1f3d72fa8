// SPDX-License-Identifier: MIT OR Apache-2.0
//! The contents of the tables as plain values, and single writes to them.
//!
//! Keys and values are those of `lb_common::abi`, so what is planned here is byte for byte what
//! the kernel holds and what `bpftool map dump` shows.
//! **Invariant:** nothing here touches the kernel. `crate::tables` carries writes out, `crate::diff`
//! puts them in order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use lb_common::abi::{
    Backend, BackendState, Frontend, FrontendKey, Kind, List, SlotKey, SourceRangeKey, names, proto,
};

use super::prefix::Prefix;

/// An address of IPv4 as the tables hold it.
pub type Addr4 = [u8; 4];
/// An address of IPv6 as the tables hold it.
pub type Addr6 = [u8; 16];

/// The frontends and backends of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyTables<A: Ord> {
    /// `FRONTENDS_*`.
    pub frontends: BTreeMap<FrontendKey<A>, Frontend>,
    /// `BACKENDS_*`, by backend id.
    pub backends: BTreeMap<u32, Backend<A>>,
    /// `SRC_RANGES_*`.
    pub source_ranges: BTreeSet<SourceRangeKey<A>>,
}

impl<A: Ord> Default for FamilyTables<A> {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
        }
    }
}

impl<A: Ord> FamilyTables<A> {
    fn len(&self) -> usize {
        self.frontends.len() + self.backends.len() + self.source_ranges.len()
    }

    fn services(&self) -> impl Iterator<Item = u32> {
        let frontends = self.frontends.values().map(|f| f.service);
        let backends = self.backends.values().map(|b| b.service);
        let ranges = self.source_ranges.iter().map(|r| r.range.service);
        frontends.chain(backends).chain(ranges)
    }

    fn merge(&mut self, other: Self) {
        self.frontends.extend(other.frontends);
        self.backends.extend(other.backends);
        self.source_ranges.extend(other.source_ranges);
    }
}

/// Everything that the agent writes, or the share of it that some services own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableContent {
    /// IPv4.
    pub v4: FamilyTables<Addr4>,
    /// IPv6.
    pub v6: FamilyTables<Addr6>,
    /// `SLOTS`, shared by both families: a service id belongs to one of them.
    pub slots: BTreeMap<SlotKey, u32>,
}

impl TableContent {
    /// True when nothing is in any table.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries in all tables together.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len() + self.slots.len()
    }

    /// The addresses that have node ports.
    pub fn node_port_addresses(&self) -> BTreeSet<IpAddr> {
        let is_node_port = |value: &Frontend| value.kind == Kind::NodePort as u8;
        let v4 = self.v4.frontends.iter().filter(|(_, v)| is_node_port(v));
        let v6 = self.v6.frontends.iter().filter(|(_, v)| is_node_port(v));
        let v4 = v4.map(|(key, _)| IpAddr::from(key.address));
        v4.chain(v6.map(|(key, _)| IpAddr::from(key.address)))
            .collect()
    }

    /// The service ids that anything in here belongs to.
    pub fn services(&self) -> BTreeSet<u32> {
        let slots = self.slots.keys().map(|key| key.service);
        slots
            .chain(self.v4.services())
            .chain(self.v6.services())
            .collect()
    }

    /// Adds a frontend to the tables of its family.
    pub fn put_frontend(&mut self, address: IpAddr, port: u16, proto: u8, value: Frontend) {
        match address {
            IpAddr::V4(a) => {
                let key = FrontendKey::new(a.octets(), port, proto);
                self.v4.frontends.insert(key, value);
            }
            IpAddr::V6(a) => {
                let key = FrontendKey::new(a.octets(), port, proto);
                self.v6.frontends.insert(key, value);
            }
        }
    }

    /// Adds a backend to the tables of its family; `port` in host order.
    pub fn put_backend(
        &mut self,
        id: u32,
        (service, epoch): (u32, u32),
        (address, port): (IpAddr, u16),
        (state, flags): (BackendState, u8),
    ) {
        match address {
            IpAddr::V4(a) => {
                let value = Backend::new(service, epoch, a.octets(), port, state);
                self.v4.backends.insert(id, value.with_flags(flags));
            }
            IpAddr::V6(a) => {
                let value = Backend::new(service, epoch, a.octets(), port, state);
                self.v6.backends.insert(id, value.with_flags(flags));
            }
        }
    }

    /// Adds a range of sources that may dial load balancer addresses of `service`.
    pub fn put_source_range(&mut self, service: u32, range: Prefix) {
        match range.address() {
            IpAddr::V4(a) => {
                let key = SourceRangeKey::new(service, a.octets(), range.bits());
                self.v4.source_ranges.insert(key);
            }
            IpAddr::V6(a) => {
                let key = SourceRangeKey::new(service, a.octets(), range.bits());
                self.v6.source_ranges.insert(key);
            }
        }
    }

    /// Adds everything of `other`; on a common key the value of `other` stays.
    pub fn merge(&mut self, other: Self) {
        self.v4.merge(other.v4);
        self.v6.merge(other.v6);
        self.slots.extend(other.slots);
    }

    /// True when what `op` puts is there, or what it deletes is not.
    pub fn holds(&self, op: &Op) -> bool {
        match op {
            Op::V4(op) => self.v4.holds(op),
            Op::V6(op) => self.v6.holds(op),
            Op::PutSlot(key, backend) => self.slots.get(key) == Some(backend),
            Op::DeleteSlot(key) => !self.slots.contains_key(key),
        }
    }

    /// Carries one write out on these values.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::V4(op) => self.v4.apply(op),
            Op::V6(op) => self.v6.apply(op),
            Op::PutSlot(key, backend) => {
                self.slots.insert(*key, *backend);
            }
            Op::DeleteSlot(key) => {
                self.slots.remove(key);
            }
        }
    }
}

impl<A: Ord + Copy> FamilyTables<A> {
    fn holds(&self, op: &TableOp<A>) -> bool
    where
        Backend<A>: PartialEq,
    {
        match op {
            TableOp::PutFrontend(key, value) => self.frontends.get(key) == Some(value),
            TableOp::DeleteFrontend(key) => !self.frontends.contains_key(key),
            TableOp::PutBackend(id, value) => self.backends.get(id) == Some(value),
            TableOp::DeleteBackend(id) => !self.backends.contains_key(id),
            TableOp::PutSourceRange(key) => self.source_ranges.contains(key),
            TableOp::DeleteSourceRange(key) => !self.source_ranges.contains(key),
        }
    }

    fn apply(&mut self, op: &TableOp<A>) {
        match op {
            TableOp::PutFrontend(key, value) => {
                self.frontends.insert(*key, *value);
            }
            TableOp::DeleteFrontend(key) => {
                self.frontends.remove(key);
            }
            TableOp::PutBackend(id, value) => {
                self.backends.insert(*id, *value);
            }
            TableOp::DeleteBackend(id) => {
                self.backends.remove(id);
            }
            TableOp::PutSourceRange(key) => {
                self.source_ranges.insert(*key);
            }
            TableOp::DeleteSourceRange(key) => {
                self.source_ranges.remove(key);
            }
        }
    }
}

/// One write to one table. Deleting what is not there is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// To `FRONTENDS_V4`, `BACKENDS_V4` or `SRC_RANGES_V4`.
    V4(TableOp<Addr4>),
    /// To `FRONTENDS_V6`, `BACKENDS_V6` or `SRC_RANGES_V6`.
    V6(TableOp<Addr6>),
    /// Inserts into or replaces in `SLOTS`; the value is a backend id.
    PutSlot(SlotKey, u32),
    /// Removes from `SLOTS`.
    DeleteSlot(SlotKey),
}

/// One write to a table of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableOp<A> {
    /// Inserts or replaces a frontend.
    PutFrontend(FrontendKey<A>, Frontend),
    /// Removes a frontend.
    DeleteFrontend(FrontendKey<A>),
    /// Inserts or replaces a backend by its id.
    PutBackend(u32, Backend<A>),
    /// Removes a backend by its id.
    DeleteBackend(u32),
    /// Inserts a source range.
    PutSourceRange(SourceRangeKey<A>),
    /// Removes a source range.
    DeleteSourceRange(SourceRangeKey<A>),
}

impl Op {
    /// The write that removes what this one puts or removes.
    #[must_use]
    pub fn deletion(&self) -> Self {
        match self {
            Self::V4(op) => Self::V4(op.deletion()),
            Self::V6(op) => Self::V6(op.deletion()),
            Self::PutSlot(key, _) | Self::DeleteSlot(key) => Self::DeleteSlot(*key),
        }
    }

    /// The pinned name of the map that this write goes to.
    pub fn map(&self) -> &'static str {
        match self {
            Self::V4(TableOp::PutFrontend(..) | TableOp::DeleteFrontend(_)) => names::FRONTENDS_V4,
            Self::V4(TableOp::PutBackend(..) | TableOp::DeleteBackend(_)) => names::BACKENDS_V4,
            Self::V6(TableOp::PutFrontend(..) | TableOp::DeleteFrontend(_)) => names::FRONTENDS_V6,
            Self::V6(TableOp::PutBackend(..) | TableOp::DeleteBackend(_)) => names::BACKENDS_V6,
            Self::V4(TableOp::PutSourceRange(_) | TableOp::DeleteSourceRange(_)) => {
                names::SRC_RANGES_V4
            }
            Self::V6(TableOp::PutSourceRange(_) | TableOp::DeleteSourceRange(_)) => {
                names::SRC_RANGES_V6
            }
            Self::PutSlot(..) | Self::DeleteSlot(_) => names::SLOTS,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(op) => op.describe(f, |a| IpAddr::from(*a)),
            Self::V6(op) => op.describe(f, |a| IpAddr::from(*a)),
            Self::PutSlot(key, backend) => {
                write!(f, "put {} -> backend {backend}", slot_words(*key))
            }
            Self::DeleteSlot(key) => write!(f, "delete {}", slot_words(*key)),
        }
    }
}

fn slot_words(key: SlotKey) -> String {
    let list = if key.list % List::TABLES == List::Local as u16 {
        "local "
    } else {
        ""
    };
    let of = if key.list < List::TABLES {
        ""
    } else {
        "table "
    };
    format!("{list}{of}slot {} of service {}", key.slot, key.service)
}

impl<A: Copy> TableOp<A> {
    fn deletion(&self) -> Self {
        match self {
            Self::PutFrontend(key, _) | Self::DeleteFrontend(key) => Self::DeleteFrontend(*key),
            Self::PutBackend(id, _) | Self::DeleteBackend(id) => Self::DeleteBackend(*id),
            Self::PutSourceRange(key) | Self::DeleteSourceRange(key) => {
                Self::DeleteSourceRange(*key)
            }
        }
    }
}

impl<A> TableOp<A> {
    fn describe(&self, f: &mut fmt::Formatter<'_>, address: impl Fn(&A) -> IpAddr) -> fmt::Result {
        match self {
            Self::PutFrontend(key, value) => write!(
                f,
                "put frontend {} {} -> service {} count {}{}{}",
                socket(address(&key.address), key.port),
                protocol_name(key.proto),
                value.service,
                value.cluster_count,
                match value.local_count {
                    0 => String::new(),
                    local => format!(" local {local}"),
                },
                match value.table_size {
                    0 => String::new(),
                    size => format!(" table {size}"),
                }
            ),
            Self::DeleteFrontend(key) => write!(
                f,
                "delete frontend {} {}",
                socket(address(&key.address), key.port),
                protocol_name(key.proto)
            ),
            Self::PutBackend(id, value) => write!(
                f,
                "put backend {id} {} of service {}",
                socket(address(&value.address), value.port),
                value.service
            ),
            Self::DeleteBackend(id) => write!(f, "delete backend {id}"),
            Self::PutSourceRange(key) => write!(
                f,
                "put source range {}/{} of service {}",
                address(&key.range.address),
                key.bits(),
                key.range.service
            ),
            Self::DeleteSourceRange(key) => write!(
                f,
                "delete source range {}/{} of service {}",
                address(&key.range.address),
                key.bits(),
                key.range.service
            ),
        }
    }
}

/// `address:port` as people write it, with brackets around IPv6.
pub fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// `TCP`, `UDP`, `SCTP` or `protocol N`.
pub fn protocol_name(number: u8) -> String {
    match number {
        proto::TCP => "TCP".to_owned(),
        proto::UDP => "UDP".to_owned(),
        proto::SCTP => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
}
