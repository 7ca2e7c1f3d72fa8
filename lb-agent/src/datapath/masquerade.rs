// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which address a packet is masqueraded with, by the device it leaves by and where it goes.
//!
//! The answer is the one that netfilter's MASQUERADE gives: of IPv4 the device's address in the
//! subnet of the next hop, else its first one (`inet_select_addr`); of IPv6 the one that shares
//! most bits with the destination (`ipv6_dev_get_saddr`). Two things are ours: a source that a
//! route prefers comes first, and a port of a bridge has the addresses of the bridge.
//! **Invariant:** pure. Never an address of a Service, of a link or of loopback, and no deprecated
//! one; where nothing is left there is no entry, and the packet path counts that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::facts::{AddressFacts, RouteFacts, is_loopback_or_link_local};
use super::view::View;
use crate::model::prefix::Prefix;
use crate::model::service::IpFamily;

/// One table of `PREFIXES_*`, both families: what each prefix stands for.
pub(super) type Table = BTreeMap<Prefix, IpAddr>;

const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

/// Everything that the answer depends on.
pub(super) struct Masquerade<'a> {
    view: &'a View,
    /// Addresses of Services, which may be on devices of this node.
    services: &'a BTreeSet<IpAddr>,
    /// The node's primary address of each of [`FAMILIES`].
    primary: [Option<IpAddr>; 2],
}

impl<'a> Masquerade<'a> {
    pub(super) fn new(view: &'a View, services: &'a BTreeSet<IpAddr>) -> Self {
        let mut this = Self {
            view,
            services,
            primary: [None; 2],
        };
        this.primary = FAMILIES.map(|family| this.find_primary(family));
        this
    }

    /// The node's own addresses, each for itself.
    pub(super) fn own(&self) -> Table {
        let own = self.view.node_addresses().into_iter();
        own.filter(|ip| !is_loopback_or_link_local(*ip) && !self.services.contains(ip))
            .map(|ip| (Prefix::host(ip), ip))
            .collect()
    }

    /// What packets that leave by the device get, by where they go.
    pub(super) fn device(&self, index: u32) -> Table {
        let holder = self.view.holder(index);
        let mut table = Table::new();
        for (family, primary) in FAMILIES.into_iter().zip(self.primary) {
            self.fill(&mut table, holder, family, primary);
        }
        without_repetitions(table)
    }

    fn fill(&self, table: &mut Table, holder: u32, family: IpFamily, primary: Option<IpAddr>) {
        let own = self.candidates(holder, family);
        let routes = || self.view.routes(holder).filter(|r| r.family() == family);
        for route in routes() {
            if let Some(source) = self.source_of(route, &own) {
                table.entry(route.destination).or_insert(source);
            }
        }
        for address in &own {
            table.entry(address.subnet).or_insert(address.address);
        }
        if family == IpFamily::V6 {
            for (prefix, address) in nearest(&own) {
                table.entry(prefix).or_insert(address);
            }
        }
        let first = own.first().map(|address| address.address);
        let preferred = || routes().find_map(|route| self.usable(route.source?));
        if let Some(rest) = first.or_else(preferred).or(primary) {
            table.entry(everything(family)).or_insert(rest);
        }
    }

    /// The source of packets on a route, if it is not the one of all packets.
    fn source_of(&self, route: &RouteFacts, own: &[&AddressFacts]) -> Option<IpAddr> {
        if let Some(source) = route.source.and_then(|source| self.usable(source)) {
            return Some(source);
        }
        // Of IPv6 the kernel looks at the destination, whatever router is next.
        let gateway = route.gateway.filter(IpAddr::is_ipv4)?;
        let near = own
            .iter()
            .find(|address| address.subnet.contains(gateway))?;
        Some(near.address)
    }

    /// Addresses of a device that may be chosen, the best first; those of its VRF if it has none.
    fn candidates(&self, device: u32, family: IpFamily) -> Vec<&'a AddressFacts> {
        let of = |device| -> Vec<&AddressFacts> {
            let all = self.view.addresses(device).iter();
            all.filter(|a| IpFamily::of(a.address) == family && self.is_candidate(a))
                .collect()
        };
        let mut own = of(device);
        if own.is_empty()
            && let Some(vrf) = self.view.vrf(device)
        {
            own = of(vrf);
        }
        // Others count only where nothing else is left.
        if own.iter().any(|address| !address.secondary) {
            own.retain(|address| !address.secondary);
        }
        own
    }

    fn is_candidate(&self, address: &AddressFacts) -> bool {
        !address.unfit
            && !is_loopback_or_link_local(address.address)
            && !self.services.contains(&address.address)
    }

    /// The address, if it is one of this node that may be chosen.
    fn usable(&self, address: IpAddr) -> Option<IpAddr> {
        let mut all = self.view.own_addresses();
        all.any(|facts| facts.address == address && self.is_candidate(facts))
            .then_some(address)
    }

    /// The source of what leaves by the best default route; without one, the first address of the
    /// first device that has any, as the kernel goes through them.
    fn find_primary(&self, family: IpFamily) -> Option<IpAddr> {
        let mut defaults: Vec<&RouteFacts> = self.view.all_routes().collect();
        defaults.retain(|route| route.is_default() && route.family() == family);
        defaults.sort_by_key(|route| (route.aside, route.metric, route.device));
        let by_route = defaults.into_iter().find_map(|route| {
            let own = self.candidates(route.device, family);
            let first = || own.first().map(|address| address.address);
            self.source_of(route, &own).or_else(first)
        });
        let mut all = self.view.own_addresses();
        let any = || {
            let of = |a: &&AddressFacts| IpFamily::of(a.address) == family;
            let found = all.find(|a| of(a) && self.is_candidate(a) && !a.secondary);
            found.map(|address| address.address)
        };
        by_route.or_else(any)
    }
}

pub(super) fn everything(family: IpFamily) -> Prefix {
    let zero = match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Prefix::new(zero, 0).unwrap_or_else(|| Prefix::host(zero))
}

/// For each place where addresses of IPv6 part, which one shares more bits with what lies behind
/// it; bits beyond an address's own prefix do not count.
fn nearest(own: &[&AddressFacts]) -> Vec<(Prefix, IpAddr)> {
    let mut sorted: Vec<(u128, u8)> = own
        .iter()
        .filter_map(|facts| match facts.address {
            IpAddr::V6(address) => Some((address.to_bits(), facts.subnet.bits())),
            IpAddr::V4(_) => None,
        })
        .collect();
    sorted.sort_unstable();
    let mut found = Vec::new();
    for pair in sorted.windows(2) {
        let &[one, other] = pair else {
            continue;
        };
        let common = (one.0 ^ other.0).leading_zeros();
        let bits = u8::try_from(common + 1).unwrap_or(u8::MAX);
        for (address, length) in [one, other] {
            let address = IpAddr::V6(Ipv6Addr::from_bits(address));
            let Some(behind) = Prefix::new(address, bits).filter(|_| bits <= length) else {
                continue;
            };
            // Among those that share as many bits the kernel takes its first.
            let first = own.iter().find(|facts| behind.contains(facts.address));
            found.extend(first.map(|facts| (behind, facts.address)));
        }
    }
    found
}

/// Leaves out what a shorter prefix says as well: a thousand routes by one router are one entry.
fn without_repetitions(table: Table) -> Table {
    let mut around: Vec<(Prefix, IpAddr)> = Vec::new();
    let mut kept = Table::new();
    // A prefix comes behind all those that hold it.
    for (prefix, address) in table {
        while around
            .last()
            .is_some_and(|(outer, _)| !outer.contains(prefix.address()))
        {
            around.pop();
        }
        if around.last().is_some_and(|(_, said)| *said == address) {
            continue;
        }
        around.push((prefix, address));
        kept.insert(prefix, address);
    }
    kept
}

#[cfg(test)]
#[path = "masquerade_tests.rs"]
mod tests;
