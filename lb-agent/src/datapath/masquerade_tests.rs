// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which address is chosen, on nodes of many kinds.

use super::*;
use crate::datapath::devices::LinkFacts;

/// A node in words, one fact a line: `link N NAME KIND [MASTER]`, `addr N ADDRESS/BITS [unfit |
/// secondary | peer SUBNET]`, `route N PREFIX [src A] [via A] [metric M] [aside]`, `service A`.
struct Node {
    view: View,
    services: BTreeSet<IpAddr>,
}

impl Node {
    fn new(text: &str) -> Self {
        let mut view = View::default();
        let mut services = BTreeSet::new();
        let mut routes = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["link", index, name, rest @ ..] => view.put_link(LinkFacts {
                    index: index.parse().unwrap(),
                    name: (*name).to_owned(),
                    kind: rest.first().unwrap_or(&"").to_string(),
                    master: rest.get(1).map_or(0, |master| master.parse().unwrap()),
                    ..LinkFacts::default()
                }),
                ["addr", index, text, rest @ ..] => {
                    let (address, _) = text.split_once('/').unwrap();
                    let subnet = match rest {
                        ["peer", subnet] => subnet,
                        _ => text,
                    };
                    view.add_listed(AddressFacts {
                        device: index.parse().unwrap(),
                        address: address.parse().unwrap(),
                        subnet: subnet.parse().unwrap(),
                        secondary: rest.contains(&"secondary"),
                        unfit: rest.contains(&"unfit"),
                    });
                }
                ["route", index, destination, rest @ ..] => {
                    let after = |word: &str| {
                        let at = rest.iter().position(|w| *w == word)?;
                        rest.get(at + 1)
                    };
                    routes.push(RouteFacts {
                        device: index.parse().unwrap(),
                        destination: destination.parse().unwrap(),
                        aside: rest.contains(&"aside"),
                        metric: after("metric").map_or(0, |metric| metric.parse().unwrap()),
                        source: after("src").map(|source| source.parse().unwrap()),
                        gateway: after("via").map(|gateway| gateway.parse().unwrap()),
                    });
                }
                ["service", address] => {
                    services.insert(address.parse().unwrap());
                }
                [] => {}
                other => panic!("{other:?}"),
            }
        }
        view.set_routes(routes);
        Self { view, services }
    }

    fn table(&self, device: u32) -> String {
        show(&Masquerade::new(&self.view, &self.services).device(device))
    }

    fn own(&self) -> String {
        show(&Masquerade::new(&self.view, &self.services).own())
    }
}

fn show(table: &Table) -> String {
    let entries = table
        .iter()
        .map(|(prefix, address)| format!("{prefix}={address}"));
    entries.collect::<Vec<_>>().join(" ")
}

const NODE: &str = "link 2 eth0
    addr 2 192.0.2.10/24
    route 2 0.0.0.0/0 via 192.0.2.1
    route 2 192.0.2.0/24 src 192.0.2.10";

#[test]
fn one_address_is_one_entry() {
    assert_eq!(Node::new(NODE).table(2), "0.0.0.0/0=192.0.2.10");
}

#[test]
fn a_thousand_routes_by_the_same_router_are_no_entries() {
    let routes = (0..1000).map(|pod| {
        let (high, low) = (pod / 250, pod % 250);
        format!(
            "
route 2 10.{high}.{low}.0/24 via 192.0.2.77"
        )
    });
    let text = NODE.to_owned() + &routes.collect::<String>();
    assert_eq!(Node::new(&text).table(2), "0.0.0.0/0=192.0.2.10");
}

#[test]
fn the_address_in_the_subnet_of_the_next_hop_is_chosen_else_the_first() {
    let node = Node::new(
        "link 2 eth0
        addr 2 10.0.0.2/24
        addr 2 192.0.2.10/24
        addr 2 198.51.100.3/24
        route 2 0.0.0.0/0 via 192.0.2.1
        route 2 172.16.0.0/12 via 198.51.100.1
        route 2 172.17.0.0/16 via 203.0.113.1",
    );
    assert_eq!(
        node.table(2),
        "0.0.0.0/0=192.0.2.10 10.0.0.0/24=10.0.0.2 172.16.0.0/12=198.51.100.3 \
         198.51.100.0/24=198.51.100.3"
    );
    let without_default = Node::new("link 2 eth0\n addr 2 10.0.0.2/24\n addr 2 192.0.2.10/24");
    assert_eq!(
        without_default.table(2),
        "0.0.0.0/0=10.0.0.2 192.0.2.0/24=192.0.2.10"
    );
}

#[test]
fn a_preferred_source_comes_first_if_it_is_one_of_this_node() {
    let with = |route: &str| {
        let lo = "link 1 lo\n addr 1 10.9.9.9/32\n addr 1 10.9.9.8/32 unfit";
        Node::new(&format!("{lo}\nlink 2 eth0\naddr 2 192.0.2.10/24\n{route}")).table(2)
    };
    assert_eq!(
        with("route 2 0.0.0.0/0 src 10.9.9.9"),
        "0.0.0.0/0=10.9.9.9 192.0.2.0/24=192.0.2.10"
    );
    assert_eq!(
        with("route 2 10.8.0.0/16 src 10.9.9.9"),
        "0.0.0.0/0=192.0.2.10 10.8.0.0/16=10.9.9.9"
    );
    assert_eq!(
        with("route 2 10.8.0.0/16 src 10.9.9.8"),
        "0.0.0.0/0=192.0.2.10",
        "deprecated"
    );
    assert_eq!(
        with("route 2 10.8.0.0/16 src 10.9.9.7"),
        "0.0.0.0/0=192.0.2.10",
        "a stranger's"
    );
    assert_eq!(
        with("route 2 10.8.0.0/16 src 169.254.1.1"),
        "0.0.0.0/0=192.0.2.10"
    );
}

#[test]
fn of_two_routes_to_one_prefix_the_better_one_counts() {
    let node = |first: &str, second: &str| {
        let addresses = "addr 2 10.0.0.2/24\n addr 2 192.0.2.10/24";
        Node::new(&format!("link 2 eth0\n{addresses}\n{first}\n{second}")).table(2)
    };
    let worse = "route 2 10.8.0.0/16 src 10.0.0.2 metric 20";
    let better = "route 2 10.8.0.0/16 src 192.0.2.10 metric 10";
    let wanted = "0.0.0.0/0=10.0.0.2 10.8.0.0/16=192.0.2.10 192.0.2.0/24=192.0.2.10";
    assert_eq!(node(worse, better), wanted);
    assert_eq!(node(better, worse), wanted);
    let aside = "route 2 10.8.0.0/16 src 10.0.0.2 aside";
    assert_eq!(node(aside, better), wanted);
}

#[test]
fn an_overlay_device_has_its_own_address() {
    let node = Node::new(&format!(
        "{NODE}\nlink 4 flannel.1 vxlan\naddr 4 10.244.1.0/32\n\
         route 4 10.244.2.0/24 via 10.244.2.0"
    ));
    assert_eq!(node.table(4), "0.0.0.0/0=10.244.1.0");
}

#[test]
fn a_port_has_the_addresses_and_routes_of_its_bridge() {
    let node = Node::new(&format!(
        "{NODE}\nlink 5 cni0 bridge\nlink 6 veth1 veth 5\nlink 7 veth2 veth 8\nlink 8 bond0 bond\n\
         addr 5 10.244.1.1/24\nroute 5 10.7.0.0/16 src 192.0.2.10"
    ));
    assert_eq!(node.table(6), "0.0.0.0/0=10.244.1.1 10.7.0.0/16=192.0.2.10");
    assert_eq!(node.table(7), "0.0.0.0/0=192.0.2.10", "a bond is no bridge");
}

#[test]
fn a_device_without_addresses_has_what_its_routes_prefer_else_the_nodes() {
    let pods = "link 6 cali1 veth\nlink 7 cali2 veth\nroute 7 10.244.0.5/32 src 10.9.9.9\n\
        link 1 lo\naddr 1 10.9.9.9/32";
    let node = Node::new(&format!("{NODE}\n{pods}"));
    assert_eq!(node.table(6), "0.0.0.0/0=192.0.2.10");
    assert_eq!(node.table(7), "0.0.0.0/0=10.9.9.9");
    // Of several uplinks the one with the best default route has the node's address.
    let second = "link 3 eth1\naddr 3 198.51.100.3/24\nroute 3 0.0.0.0/0 via 198.51.100.1 metric";
    for (metric, address) in [(5, "192.0.2.10"), (0, "192.0.2.10")] {
        let node = Node::new(&format!("{NODE}\n{second} {metric}\n{pods}"));
        assert_eq!(node.table(6), format!("0.0.0.0/0={address}"));
    }
    let best = NODE.replace("via 192.0.2.1", "via 192.0.2.1 metric 100");
    let node = Node::new(&format!("{best}\n{second} 5\n{pods}"));
    assert_eq!(node.table(6), "0.0.0.0/0=198.51.100.3");
}

#[test]
fn without_a_default_route_the_first_device_with_an_address_tells_the_nodes() {
    let node = Node::new("link 3 eth1\naddr 3 198.51.100.3/24\nlink 6 cali1 veth");
    assert_eq!(node.table(6), "0.0.0.0/0=198.51.100.3");
    assert_eq!(Node::new("link 6 cali1 veth").table(6), "");
}

#[test]
fn a_default_route_by_a_device_without_addresses_prefers_a_loopback_address() {
    let node = Node::new(
        "link 1 lo\naddr 1 127.0.0.1/8\naddr 1 10.9.9.9/32\nlink 2 swp1\n\
         route 2 0.0.0.0/0 src 10.9.9.9",
    );
    assert_eq!(node.table(2), "0.0.0.0/0=10.9.9.9");
    assert_eq!(node.own(), "10.9.9.9/32=10.9.9.9");
}

#[test]
fn services_links_and_deprecated_addresses_are_never_chosen() {
    let node = Node::new(
        "link 2 eth0
        addr 2 203.0.113.7/32
        addr 2 169.254.3.3/16
        addr 2 10.0.0.9/24 unfit
        addr 2 10.0.0.2/24
        addr 2 fe80::2/64
        link 9 kube-ipvs0 dummy
        addr 9 10.96.0.1/32
        route 2 0.0.0.0/0 via 10.0.0.1 src 203.0.113.7
        service 203.0.113.7",
    );
    assert_eq!(node.table(2), "0.0.0.0/0=10.0.0.2");
    assert_eq!(node.own(), "10.0.0.2/32=10.0.0.2 10.0.0.9/32=10.0.0.9");
}

#[test]
fn a_secondary_address_counts_only_where_nothing_else_is_left() {
    let node = |services: &str| {
        let addresses = "addr 2 10.0.0.2/24\naddr 2 10.0.0.3/24 secondary";
        Node::new(&format!("link 2 eth0\n{addresses}\n{services}")).table(2)
    };
    assert_eq!(node(""), "0.0.0.0/0=10.0.0.2");
    assert_eq!(node("service 10.0.0.2"), "0.0.0.0/0=10.0.0.3");
}

#[test]
fn a_device_of_a_vrf_has_the_addresses_of_the_vrf_if_it_has_none() {
    let links = "link 8 red vrf\nlink 3 eth1 - 8\nlink 4 eth2 - 8";
    let node = Node::new(&format!(
        "{NODE}\n{links}\naddr 8 10.5.0.1/32\naddr 4 10.6.0.1/24"
    ));
    assert_eq!(node.table(3), "0.0.0.0/0=10.5.0.1");
    assert_eq!(node.table(4), "0.0.0.0/0=10.6.0.1");
}

#[test]
fn a_far_end_is_its_own_subnet() {
    let node =
        Node::new("link 4 tun0 tun\naddr 4 10.8.0.1/32 peer 10.8.0.2/32\naddr 4 10.7.0.1/24");
    assert_eq!(node.table(4), "0.0.0.0/0=10.8.0.1 10.7.0.0/24=10.7.0.1");
}

#[test]
fn of_ipv6_the_address_with_most_bits_in_common_is_chosen() {
    let node = Node::new(
        "link 2 eth0
        addr 2 2001:db8:0:1::2/64
        addr 2 fd00:1::2/64
        addr 2 2001:db8:0:1::9/64 secondary
        route 2 ::/0 via fe80::1
        link 6 cali1 veth",
    );
    // The first bits of 2000::/3 and fc00::/7 differ already.
    assert_eq!(node.table(2), "::/0=2001:db8:0:1::2 8000::/1=fd00:1::2");
    assert_eq!(node.table(6), "::/0=2001:db8:0:1::2");
    let near = Node::new("link 2 eth0\naddr 2 fd00:2::2/64\naddr 2 fd00:1::2/64");
    // 1 and 2 part at the 15th bit of the second group: 0b01 and 0b10.
    assert_eq!(near.table(2), "::/0=fd00:2::2 fd00::/31=fd00:1::2");
}

#[test]
fn of_ipv6_a_router_says_nothing_about_the_source_but_a_preferred_one_does() {
    let node = Node::new(
        "link 2 eth0
        addr 2 fd00:2::2/64
        addr 2 fd00:1::2/64
        route 2 fd77::/16 via fd00:1::1
        route 2 fd78::/16 via fd00:1::1 src fd00:1::2",
    );
    assert_eq!(
        node.table(2),
        "::/0=fd00:2::2 fd00::/31=fd00:1::2 fd78::/16=fd00:1::2"
    );
}

#[test]
fn both_families_are_in_one_table_and_neither_hides_the_other() {
    let node = Node::new(&format!("{NODE}\naddr 2 2001:db8::2/64"));
    assert_eq!(node.table(2), "0.0.0.0/0=192.0.2.10 ::/0=2001:db8::2");
    assert_eq!(
        node.own(),
        "192.0.2.10/32=192.0.2.10 2001:db8::2/128=2001:db8::2"
    );
}
