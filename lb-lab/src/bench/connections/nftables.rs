// SPDX-License-Identifier: MIT OR Apache-2.0
//! An nftables rule set of the shape that kube-proxy's has.
//!
//! One lookup in a map from address, protocol and port to a verdict finds the Service's chain; that
//! one draws an endpoint's chain, which translates. Filter chains look at new connections as well.
//! **Invariant:** what is written is a whole table for an empty namespace, and only shape is taken
//! over: the words are our own. Read next: `iptables`, the same in its other shape.

use std::fmt::Write as _;

use super::services::Service;
use crate::node::Node;
use crate::topology::CLUSTER_CIDR_V4;
use crate::underlay::line;

/// The table, for `nft -f`.
pub(super) fn ruleset(services: &[Service], node: &Node) -> String {
    table(services, &node.v4().to_string())
}

fn table(services: &[Service], node: &str) -> String {
    let mut text = String::from("table ip kube-proxy {\n");
    sets(&mut text, services, node);
    text += HOOKS;
    for service in services {
        chains(&mut text, service);
    }
    text + "}\n"
}

/// What is the same for every cluster.
const HOOKS: &str = "  chain nat-prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }
  chain nat-output {
    type nat hook output priority -100; policy accept;
    jump services
  }
  chain nat-postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    jump masquerading
  }
  chain filter-prerouting {
    type filter hook prerouting priority dstnat - 10; policy accept;
    ct state new jump firewall-check
  }
  chain filter-input {
    type filter hook input priority -110; policy accept;
    ct state new jump node-port-endpoints-check
    ct state new jump service-endpoints-check
  }
  chain filter-forward {
    type filter hook forward priority -110; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-address-check
  }
  chain filter-output {
    type filter hook output priority -110; policy accept;
    ct state new jump firewall-check
  }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @node-addresses meta l4proto . th dport vmap @service-nodeports
  }
  chain firewall-check {
    ip daddr . meta l4proto . th dport vmap @firewall-ips
  }
  chain service-endpoints-check {
    ip daddr . meta l4proto . th dport vmap @no-endpoint-services
  }
  chain node-port-endpoints-check {
    ip daddr @node-addresses meta l4proto . th dport vmap @no-endpoint-nodeports
  }
  chain cluster-address-check {
    ip daddr @cluster-addresses reject
  }
  chain mark-for-masquerade {
    meta mark set meta mark or 0x4000
  }
  chain masquerading {
    meta mark & 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }
";

fn sets(text: &mut String, services: &[Service], node: &str) {
    let addresses = services
        .iter()
        .map(|service| service.cluster.ip().to_string());
    set(text, "set cluster-addresses", "ipv4_addr", addresses);
    set(text, "set node-addresses", "ipv4_addr", [node.to_owned()]);
    let service_ips = services.iter().map(|service| {
        let (address, port) = (service.cluster.ip(), service.cluster.port());
        format!(
            "{address} . tcp . {port} : goto {}",
            chain("service", service)
        )
    });
    let key = "ipv4_addr . inet_proto . inet_service : verdict";
    set(text, "map service-ips", key, service_ips);
    let node_ports = services.iter().filter_map(|service| {
        let port = service.node_port?;
        Some(format!(
            "tcp . {port} : goto {}",
            chain("external", service)
        ))
    });
    let node_port_key = "inet_proto . inet_service : verdict";
    set(text, "map service-nodeports", node_port_key, node_ports);
    set(text, "map firewall-ips", key, []);
    set(text, "map no-endpoint-services", key, []);
    set(text, "map no-endpoint-nodeports", node_port_key, []);
}

/// A set or a map with its elements.
fn set(text: &mut String, name: &str, key: &str, elements: impl IntoIterator<Item = String>) {
    line!(text, "  {name} {{\n    type {key}");
    let elements: Vec<_> = elements.into_iter().collect();
    if !elements.is_empty() {
        line!(text, "    elements = {{ {} }}", elements.join(",\n      "));
    }
    line!(text, "  }}");
}

/// The chains of one Service and of its endpoints.
fn chains(text: &mut String, service: &Service) {
    let (address, port) = (service.cluster.ip(), service.cluster.port());
    let count = service.endpoints.len();
    line!(
        text,
        "  chain {} {{\n    ip daddr {address} tcp dport {port} ip saddr != {CLUSTER_CIDR_V4} \
         jump mark-for-masquerade",
        chain("service", service)
    );
    let verdicts: Vec<_> = (0..count)
        .map(|number| format!("{number} : goto {}", endpoint_chain(service, number)))
        .collect();
    let verdicts = verdicts.join(", ");
    line!(
        text,
        "    numgen random mod {count} vmap {{ {verdicts} }}\n  }}"
    );
    if service.node_port.is_some() {
        line!(
            text,
            "  chain {} {{\n    jump mark-for-masquerade\n    goto {}\n  }}",
            chain("external", service),
            chain("service", service)
        );
    }
    for (number, endpoint) in service.endpoints.iter().enumerate() {
        line!(
            text,
            "  chain {} {{\n    ip saddr {} jump mark-for-masquerade\n    meta l4proto tcp dnat to \
             {endpoint}\n  }}",
            endpoint_chain(service, number),
            endpoint.ip()
        );
    }
}

fn chain(kind: &str, service: &Service) -> String {
    format!(
        "{kind}-{:08}-default/svc-{}/tcp/line",
        service.index, service.index
    )
}

fn endpoint_chain(service: &Service, number: usize) -> String {
    format!(
        "endpoint-{:06}{number:02}-default/svc-{}/tcp/line",
        service.index, service.index
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::connections::services::tests::four;

    #[test]
    fn a_service_is_one_element_and_its_chains() {
        let text = table(&four(), "192.168.50.10");
        for wanted in [
            "10.96.0.11 . tcp . 80 : goto service-00000001-default/svc-1/tcp/line",
            "tcp . 30001 : goto external-00000003-default/svc-3/tcp/line",
            "elements = { 192.168.50.10 }",
            "dnat to 10.244.0.7:9376",
        ] {
            assert_eq!(
                text.matches(wanted).count(),
                wanted.matches("dnat").count() + 1,
                "{wanted}"
            );
        }
        assert_eq!(text.matches("numgen random mod 3 vmap").count(), 4);
        assert_eq!(text.matches("chain external-").count(), 2);
    }
}
