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

use lb_common::abi::{Backend, BackendState, Frontend, FrontendKey, SlotKey, names, proto};

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
}

impl<A: Ord> Default for FamilyTables<A> {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
        }
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
        self.v4.frontends.len()
            + self.v4.backends.len()
            + self.v6.frontends.len()
            + self.v6.backends.len()
            + self.slots.len()
    }

    /// The service ids that anything in here belongs to.
    pub fn services(&self) -> BTreeSet<u32> {
        let mut ids: BTreeSet<u32> = self.slots.keys().map(|key| key.service).collect();
        ids.extend(self.v4.frontends.values().map(|f| f.service));
        ids.extend(self.v6.frontends.values().map(|f| f.service));
        ids.extend(self.v4.backends.values().map(|b| b.service));
        ids.extend(self.v6.backends.values().map(|b| b.service));
        ids
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
        state: BackendState,
    ) {
        match address {
            IpAddr::V4(a) => {
                let value = Backend::new(service, epoch, a.octets(), port, state);
                self.v4.backends.insert(id, value);
            }
            IpAddr::V6(a) => {
                let value = Backend::new(service, epoch, a.octets(), port, state);
                self.v6.backends.insert(id, value);
            }
        }
    }

    /// Adds everything of `other`; on a common key the value of `other` stays.
    pub fn merge(&mut self, other: Self) {
        self.v4.frontends.extend(other.v4.frontends);
        self.v4.backends.extend(other.v4.backends);
        self.v6.frontends.extend(other.v6.frontends);
        self.v6.backends.extend(other.v6.backends);
        self.slots.extend(other.slots);
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
        }
    }
}

/// One write to one table. Deleting what is not there is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// To `FRONTENDS_V4` or `BACKENDS_V4`.
    V4(TableOp<Addr4>),
    /// To `FRONTENDS_V6` or `BACKENDS_V6`.
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
}

impl Op {
    /// The pinned name of the map that this write goes to.
    pub fn map(&self) -> &'static str {
        match self {
            Self::V4(TableOp::PutFrontend(..) | TableOp::DeleteFrontend(_)) => names::FRONTENDS_V4,
            Self::V4(TableOp::PutBackend(..) | TableOp::DeleteBackend(_)) => names::BACKENDS_V4,
            Self::V6(TableOp::PutFrontend(..) | TableOp::DeleteFrontend(_)) => names::FRONTENDS_V6,
            Self::V6(TableOp::PutBackend(..) | TableOp::DeleteBackend(_)) => names::BACKENDS_V6,
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
                write!(
                    f,
                    "put slot {} of service {} -> backend {backend}",
                    key.slot, key.service
                )
            }
            Self::DeleteSlot(key) => {
                write!(f, "delete slot {} of service {}", key.slot, key.service)
            }
        }
    }
}

impl<A> TableOp<A> {
    fn describe(&self, f: &mut fmt::Formatter<'_>, address: impl Fn(&A) -> IpAddr) -> fmt::Result {
        match self {
            Self::PutFrontend(key, value) => write!(
                f,
                "put frontend {} {} -> service {} count {}",
                socket(address(&key.address), key.port),
                protocol_name(key.proto),
                value.service,
                value.count
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
        }
    }
}

/// `address:port` as people write it, with brackets around IPv6.
pub fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// `TCP`, `UDP` or `protocol N`.
pub fn protocol_name(number: u8) -> String {
    match number {
        proto::TCP => "TCP".to_owned(),
        proto::UDP => "UDP".to_owned(),
        other => format!("protocol {other}"),
    }
}
