// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel says of addresses and routes, as far as masquerading depends on it.
//!
//! `netlink.rs` reads it, `view.rs` keeps it, `masquerade.rs` draws the conclusions.
//! **Invariant:** plain values; nothing here asks the kernel.

use std::net::IpAddr;

use crate::model::prefix::Prefix;
use crate::model::service::IpFamily;

/// An address of a device that means something outside of its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddressFacts {
    /// The device's number.
    pub(super) device: u32,
    /// The near end.
    pub(super) address: IpAddr,
    /// Whom it reaches without a gateway: its subnet, or the far end.
    pub(super) subnet: Prefix,
    /// IPv4: not the first of its subnet. IPv6: temporary.
    pub(super) secondary: bool,
    /// No source for new flows: deprecated, or not yet or never found to be unique.
    pub(super) unfit: bool,
}

/// A route of unicast out of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RouteFacts {
    /// The device's number.
    pub(super) device: u32,
    /// Where it leads.
    pub(super) destination: Prefix,
    /// It stands in another table than the main one.
    pub(super) aside: bool,
    /// The lower, the better.
    pub(super) metric: u32,
    /// The source that it prefers.
    pub(super) source: Option<IpAddr>,
    /// The next router, of the same family.
    pub(super) gateway: Option<IpAddr>,
}

impl RouteFacts {
    pub(super) fn is_default(&self) -> bool {
        self.destination.bits() == 0
    }

    pub(super) fn family(&self) -> IpFamily {
        self.destination.family()
    }
}

/// True for addresses that every node has: they name nobody to others.
pub(super) fn is_loopback_or_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_unspecified(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.is_unspecified(),
    }
}
