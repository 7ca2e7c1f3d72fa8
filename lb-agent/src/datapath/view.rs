// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel has told about the node's devices, and which of them are to be managed.
//!
//! Built by a full list and kept up to date by single messages; a later full list replaces it.
//! **Invariant:** pure. The same messages give the same answer, so it is tested without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::Iface;

use super::attach::{Filters, Target};
use super::devices::{Carries, LinkFacts, Role, Rules, classify, iface};
use super::facts::{AddressFacts, RouteFacts};

/// A device that is to be managed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) role: Role,
    pub(super) target: Target,
    pub(super) iface: Iface,
}

/// Devices and what decides about them.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    links: BTreeMap<u32, LinkFacts>,
    /// Of each device, in the kernel's order.
    addresses: BTreeMap<u32, Vec<AddressFacts>>,
    /// Of each device, the best first.
    routes: BTreeMap<u32, Vec<RouteFacts>>,
    filters: BTreeMap<u32, Filters>,
}

impl View {
    pub(super) fn put_link(&mut self, link: LinkFacts) {
        self.links.insert(link.index, link);
    }

    pub(super) fn remove_link(&mut self, index: u32) {
        self.links.remove(&index);
        self.filters.remove(&index);
        self.addresses.remove(&index);
        self.routes.remove(&index);
    }

    /// Takes an address in that is listed: the list is in the kernel's order.
    pub(super) fn add_listed(&mut self, facts: AddressFacts) {
        self.addresses.entry(facts.device).or_default().push(facts);
    }

    /// Takes an address in that has come or changed. The kernel puts a new one of IPv4 behind the
    /// others and one of IPv6 before them.
    pub(super) fn put_address(&mut self, facts: AddressFacts) {
        let all = self.addresses.entry(facts.device).or_default();
        let same = |known: &&mut AddressFacts| is_same(known, &facts);
        if let Some(known) = all.iter_mut().find(same) {
            *known = facts;
        } else if facts.address.is_ipv4() {
            all.push(facts);
        } else {
            all.insert(0, facts);
        }
    }

    pub(super) fn remove_address(&mut self, facts: &AddressFacts) {
        if let Some(all) = self.addresses.get_mut(&facts.device) {
            all.retain(|known| !is_same(known, facts));
        }
    }

    /// Replaces all routes; true when that changes anything.
    pub(super) fn set_routes(&mut self, mut routes: Vec<RouteFacts>) -> bool {
        let order = |r: &RouteFacts| (r.device, r.aside, r.metric, r.destination, r.source);
        routes.sort_by_key(order);
        let mut by_device = BTreeMap::<u32, Vec<RouteFacts>>::new();
        for route in routes {
            by_device.entry(route.device).or_default().push(route);
        }
        let differ = by_device != self.routes;
        self.routes = by_device;
        differ
    }

    pub(super) fn put_filters(&mut self, index: u32, filters: Filters) {
        self.filters.insert(index, filters);
    }

    pub(super) fn filters(&self, index: u32) -> Filters {
        self.filters.get(&index).copied().unwrap_or_default()
    }

    pub(super) fn indices(&self) -> impl Iterator<Item = u32> {
        self.links.keys().copied()
    }

    /// Addresses of this node that mean something outside of their links. Those that an earlier
    /// proxy bound for its Services are not its own.
    pub(super) fn node_addresses(&self) -> BTreeSet<IpAddr> {
        self.own_addresses().map(|facts| facts.address).collect()
    }

    /// All addresses of this node, by device, but those that an earlier proxy bound.
    pub(super) fn own_addresses(&self) -> impl Iterator<Item = &AddressFacts> {
        let bound_by_ipvs = |index: &u32| {
            let link = self.links.get(index);
            link.is_some_and(|link| link.name == "kube-ipvs0")
        };
        let own = self.addresses.iter();
        own.filter(move |(index, _)| !bound_by_ipvs(index))
            .flat_map(|(_, all)| all)
    }

    /// The addresses of one device.
    pub(super) fn addresses(&self, index: u32) -> &[AddressFacts] {
        self.addresses.get(&index).map_or(&[], Vec::as_slice)
    }

    /// The routes out of one device, the best first.
    pub(super) fn routes(&self, index: u32) -> impl Iterator<Item = &RouteFacts> {
        self.routes.get(&index).into_iter().flatten()
    }

    /// The routes out of all devices.
    pub(super) fn all_routes(&self) -> impl Iterator<Item = &RouteFacts> {
        self.routes.values().flatten()
    }

    /// The device whose addresses count for what leaves by this one: its bridge, or itself.
    pub(super) fn holder(&self, index: u32) -> u32 {
        let link = self.links.get(&index);
        let bridge = link.and_then(|link| self.bridge_of(link));
        bridge.map_or(index, |bridge| bridge.index)
    }

    /// The VRF that a device belongs to.
    pub(super) fn vrf(&self, index: u32) -> Option<u32> {
        let master = self.links.get(&self.links.get(&index)?.master)?;
        (master.kind == "vrf").then_some(master.index)
    }

    /// Devices that are ports of one of these: what they are depends on it.
    pub(super) fn ports_of(&self, masters: &BTreeSet<u32>) -> Vec<u32> {
        let ports = self.links.values().filter(|l| masters.contains(&l.master));
        ports.map(|link| link.index).collect()
    }

    /// True while a device is up.
    pub(super) fn is_up(&self, index: u32) -> bool {
        self.links.get(&index).is_some_and(|link| link.up)
    }

    /// The device as something to attach to or to detach from, whatever its role.
    pub(super) fn target(&self, index: u32) -> Option<Target> {
        let link = self.links.get(&index)?;
        Some(Target {
            index,
            name: link.name.clone(),
            ethernet: link.ethernet,
            filters: self.filters(index),
        })
    }

    /// How a device is to be managed, or none when it is not.
    pub(super) fn wanted(&self, index: u32, rules: &Rules) -> Option<Wanted> {
        let link = self.links.get(&index)?;
        let role = classify(link, self.carries(link), &rules.patterns)?;
        Some(Wanted {
            role,
            target: self.target(index)?,
            iface: iface(link, self.bridge_of(link), role, &rules.pods),
        })
    }

    /// Pairs whose other end went somewhere unknown: the kernel tells that the end has left before
    /// it can tell where to, so these must be asked for again.
    pub(super) fn unsettled_pairs(&self) -> Vec<u32> {
        self.links
            .values()
            .filter(|link| link.is_pair() && link.peer_netns.is_none())
            .filter(|link| {
                let other = self.links.get(&link.peer);
                other.is_none_or(|other| other.peer != link.index)
            })
            .map(|link| link.index)
            .collect()
    }

    fn bridge_of(&self, link: &LinkFacts) -> Option<&LinkFacts> {
        self.links
            .get(&link.master)
            .filter(|master| master.kind == "bridge")
    }

    fn carries(&self, link: &LinkFacts) -> Carries {
        let leads_out = |index: u32| self.routes(index).any(RouteFacts::is_default);
        let through_bridge = self
            .bridge_of(link)
            .is_some_and(|bridge| !link.is_pair() && leads_out(bridge.index));
        Carries {
            default_route: through_bridge || leads_out(link.index),
            global_address: !self.addresses(link.index).is_empty(),
        }
    }
}

fn is_same(one: &AddressFacts, other: &AddressFacts) -> bool {
    one.address == other.address && one.subnet == other.subnet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> LinkFacts {
        LinkFacts {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            ethernet: true,
            ..LinkFacts::default()
        }
    }

    fn address(device: u32, text: &str) -> AddressFacts {
        let (address, _) = text.split_once('/').unwrap();
        AddressFacts {
            device,
            address: address.parse().unwrap(),
            subnet: text.parse().unwrap(),
            secondary: false,
            unfit: false,
        }
    }

    fn default_route(device: u32) -> RouteFacts {
        RouteFacts {
            device,
            destination: "0.0.0.0/0".parse().unwrap(),
            aside: false,
            metric: 0,
            source: None,
            gateway: None,
        }
    }

    fn role(view: &View, index: u32) -> Option<Role> {
        view.wanted(index, &Rules::default())
            .map(|wanted| wanted.role)
    }

    #[test]
    fn a_pod_on_a_bridge_is_managed_with_its_bridge_and_the_bridge_is_not() {
        let mut view = View::default();
        view.put_link(link(4, "cni0", "bridge"));
        view.put_address(address(4, "10.244.0.1/24"));
        view.put_link(LinkFacts {
            master: 4,
            peer: 2,
            peer_netns: Some(1),
            ..link(5, "veth5", "veth")
        });
        assert_eq!(role(&view, 4), None);
        let pod = view.wanted(5, &Rules::default()).unwrap();
        assert_eq!(pod.role, Role::Pod);
        assert_eq!((pod.iface.bridge, pod.iface.peer_netns), (4, 1));
    }

    #[test]
    fn hardware_below_a_bridge_with_the_default_route_is_the_uplink() {
        let mut view = View::default();
        view.put_link(link(2, "br0", "bridge"));
        view.put_link(LinkFacts {
            master: 2,
            ..link(3, "eth0", "")
        });
        assert_eq!(role(&view, 3), None);
        view.set_routes(vec![default_route(2)]);
        assert_eq!(role(&view, 3), Some(Role::Uplink));
        assert_eq!(role(&view, 2), None);
    }

    #[test]
    fn a_port_of_something_else_than_a_bridge_has_no_bridge() {
        let mut view = View::default();
        view.put_link(link(9, "vrf-red", "vrf"));
        view.put_link(LinkFacts {
            master: 9,
            ..link(3, "eth0", "")
        });
        view.set_routes(vec![default_route(3)]);
        let uplink = view.wanted(3, &Rules::default()).unwrap();
        assert_eq!(uplink.iface.bridge, 0);
    }

    #[test]
    fn addresses_come_and_go_with_their_device() {
        let mut view = View::default();
        let seven = address(3, "192.0.2.7/24");
        view.put_link(link(3, "eth1", ""));
        view.put_address(seven.clone());
        assert_eq!(role(&view, 3), Some(Role::Uplink));
        view.remove_address(&seven);
        assert_eq!(role(&view, 3), None);
        view.put_address(seven.clone());
        view.remove_link(3);
        view.put_link(link(3, "eth1", ""));
        assert_eq!(role(&view, 3), None);
    }

    #[test]
    fn addresses_are_in_the_kernels_order_and_change_in_place() {
        let mut view = View::default();
        view.put_link(link(3, "eth0", ""));
        for text in [
            "192.0.2.7/24",
            "198.51.100.7/24",
            "fd00::7/64",
            "fd00::8/64",
        ] {
            view.put_address(address(3, text));
        }
        let mut changed = address(3, "192.0.2.7/24");
        changed.unfit = true;
        view.put_address(changed);
        let all = view.addresses(3).iter();
        let all: Vec<_> = all.map(|a| (a.address.to_string(), a.unfit)).collect();
        let wanted = [
            ("fd00::8", false),
            ("fd00::7", false),
            ("192.0.2.7", true),
            ("198.51.100.7", false),
        ];
        assert_eq!(all, wanted.map(|(text, unfit)| (text.to_owned(), unfit)));
    }

    #[test]
    fn addresses_that_ipvs_bound_are_not_the_nodes_own() {
        let mut view = View::default();
        view.put_link(link(3, "eth0", ""));
        view.put_link(link(4, "kube-ipvs0", "dummy"));
        view.put_address(address(3, "192.0.2.7/24"));
        view.put_address(address(4, "10.0.0.10/32"));
        let own = "192.0.2.7".parse().unwrap();
        assert_eq!(view.node_addresses(), BTreeSet::from([own]));
    }

    #[test]
    fn a_pair_is_unsettled_from_the_departure_of_its_end_until_the_new_place_is_known() {
        let mut view = View::default();
        view.put_link(LinkFacts {
            peer: 6,
            ..link(5, "veth5", "veth")
        });
        view.put_link(LinkFacts {
            peer: 5,
            ..link(6, "veth6", "veth")
        });
        assert!(view.unsettled_pairs().is_empty());
        view.remove_link(6);
        assert_eq!(view.unsettled_pairs(), [5]);
        view.put_link(LinkFacts {
            peer: 6,
            peer_netns: Some(0),
            ..link(5, "veth5", "veth")
        });
        assert!(view.unsettled_pairs().is_empty());
    }
}
