// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel has told about the node's devices, and which of them are to be managed.
//!
//! Built by a full list and kept up to date by single messages; a later full list replaces it.
//! **Invariant:** pure. The same messages give the same answer, so it is tested without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::Iface;

use super::attach::{Filters, Target};
use super::devices::{Carries, LinkFacts, Patterns, Role, classify, iface};

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
    addresses: BTreeSet<(u32, IpAddr)>,
    default_routes: BTreeSet<u32>,
    filters: BTreeMap<u32, Filters>,
}

impl View {
    pub(super) fn put_link(&mut self, link: LinkFacts) {
        self.links.insert(link.index, link);
    }

    pub(super) fn remove_link(&mut self, index: u32) {
        self.links.remove(&index);
        self.filters.remove(&index);
        self.addresses.retain(|(device, _)| *device != index);
    }

    pub(super) fn put_address(&mut self, index: u32, address: IpAddr) {
        self.addresses.insert((index, address));
    }

    pub(super) fn remove_address(&mut self, index: u32, address: IpAddr) {
        self.addresses.remove(&(index, address));
    }

    pub(super) fn set_default_routes(&mut self, devices: Vec<u32>) {
        self.default_routes = devices.into_iter().collect();
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

    /// Addresses of this node. Those that an earlier proxy bound for its Services are not its own.
    pub(super) fn node_addresses(&self) -> BTreeSet<IpAddr> {
        let bound_by_ipvs = |index: &u32| {
            let link = self.links.get(index);
            link.is_some_and(|link| link.name == "kube-ipvs0")
        };
        let own = self
            .addresses
            .iter()
            .filter(|(index, _)| !bound_by_ipvs(index));
        own.map(|(_, address)| *address).collect()
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
    pub(super) fn wanted(&self, index: u32, patterns: &Patterns) -> Option<Wanted> {
        let link = self.links.get(&index)?;
        let role = classify(link, self.carries(link), patterns)?;
        Some(Wanted {
            role,
            target: self.target(index)?,
            iface: iface(link, self.bridge_of(link).map(|bridge| bridge.index)),
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
        let through_bridge = self
            .bridge_of(link)
            .is_some_and(|bridge| !link.is_pair() && self.default_routes.contains(&bridge.index));
        Carries {
            default_route: through_bridge || self.default_routes.contains(&link.index),
            global_address: self
                .addresses
                .iter()
                .any(|(device, _)| *device == link.index),
        }
    }
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

    fn role(view: &View, index: u32) -> Option<Role> {
        view.wanted(index, &Patterns::default())
            .map(|wanted| wanted.role)
    }

    #[test]
    fn a_pod_on_a_bridge_is_managed_with_its_bridge_and_the_bridge_is_not() {
        let mut view = View::default();
        view.put_link(link(4, "cni0", "bridge"));
        view.put_address(4, "10.244.0.1".parse().unwrap());
        view.put_link(LinkFacts {
            master: 4,
            peer: 2,
            peer_netns: Some(1),
            ..link(5, "veth5", "veth")
        });
        assert_eq!(role(&view, 4), None);
        let pod = view.wanted(5, &Patterns::default()).unwrap();
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
        view.set_default_routes(vec![2]);
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
        view.set_default_routes(vec![3]);
        let uplink = view.wanted(3, &Patterns::default()).unwrap();
        assert_eq!(uplink.iface.bridge, 0);
    }

    #[test]
    fn addresses_come_and_go_with_their_device() {
        let mut view = View::default();
        let address = "192.0.2.7".parse().unwrap();
        view.put_link(link(3, "eth1", ""));
        view.put_address(3, address);
        assert_eq!(role(&view, 3), Some(Role::Uplink));
        view.remove_address(3, address);
        assert_eq!(role(&view, 3), None);
        view.put_address(3, address);
        view.remove_link(3);
        view.put_link(link(3, "eth1", ""));
        assert_eq!(role(&view, 3), None);
    }

    #[test]
    fn addresses_that_ipvs_bound_are_not_the_nodes_own() {
        let mut view = View::default();
        view.put_link(link(3, "eth0", ""));
        view.put_link(link(4, "kube-ipvs0", "dummy"));
        let own: IpAddr = "192.0.2.7".parse().unwrap();
        view.put_address(3, own);
        view.put_address(4, "10.0.0.10".parse().unwrap());
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
