// SPDX-License-Identifier: MIT OR Apache-2.0
//! An iptables rule set of the shape that kube-proxy's has.
//!
//! A chain with one rule for each Service is gone through from the top; the Service's chain draws an
//! endpoint by probabilities, whose chain translates. Node ports come after all Services.
//! **Invariant:** what is written is the whole of two tables for an empty namespace, and only shape
//! is taken over: the words are our own. Comments are where kube-proxy has them in a large cluster
//! too: they make the rules that are gone through several times as large. Read next: `nftables`.

use std::fmt::Write as _;

use super::services::Service;
use crate::topology::CLUSTER_CIDR_V4;
use crate::underlay::line;

/// The tables filter and nat, for `iptables-restore`.
pub(super) fn tables(services: &[Service]) -> String {
    let mut chains = String::new();
    let mut to_services = String::new();
    let mut to_node_ports = String::new();
    let mut rules = String::new();
    for service in services {
        let name = format!("KUBE-SVC-{:016}", service.index);
        let (address, port) = (service.cluster.ip(), service.cluster.port());
        let matched = format!("-d {address}/32 -p tcp -m tcp --dport {port}");
        let comment = format!(
            "-m comment --comment \"default/svc-{}:line\"",
            service.index
        );
        line!(chains, ":{name} - [0:0]");
        line!(
            to_services,
            "-A KUBE-SERVICES {comment} {matched} -j {name}"
        );
        if let Some(node_port) = service.node_port {
            let external = format!("KUBE-EXT-{:016}", service.index);
            line!(chains, ":{external} - [0:0]");
            line!(
                to_node_ports,
                "-A KUBE-NODEPORTS {comment} -p tcp -m tcp --dport {node_port} -j {external}"
            );
            line!(
                rules,
                "-A {external} -j KUBE-MARK-MASQ\n-A {external} -j {name}"
            );
        }
        line!(
            rules,
            "-A {name} {matched} ! -s {CLUSTER_CIDR_V4} -j KUBE-MARK-MASQ"
        );
        endpoints(service, &name, &mut chains, &mut rules);
    }
    format!(
        "{FILTER}{NAT}{chains}{NAT_HOOKS}{to_services}{LAST_RULE}{to_node_ports}{rules}COMMIT\n"
    )
}

/// The chains of a Service's endpoints, and the draw among them.
fn endpoints(service: &Service, name: &str, chains: &mut String, rules: &mut String) {
    let count = service.endpoints.len();
    for (number, endpoint) in service.endpoints.iter().enumerate() {
        let chain = format!("KUBE-SEP-{:014}{number:02}", service.index);
        line!(chains, ":{chain} - [0:0]");
        let left = u32::try_from(count - number).unwrap_or(u32::MAX);
        if left > 1 {
            let share = 1.0 / f64::from(left);
            let drawn = format!("-m statistic --mode random --probability {share:.10}");
            line!(rules, "-A {name} {drawn} -j {chain}");
        } else {
            line!(rules, "-A {name} -j {chain}");
        }
        line!(
            rules,
            "-A {chain} -s {}/32 -j KUBE-MARK-MASQ\n\
             -A {chain} -p tcp -m tcp -j DNAT --to-destination {endpoint}",
            endpoint.ip()
        );
    }
}

const FILTER: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

const NAT: &str = "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
";

const NAT_HOOKS: &str = "-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
";

/// Behind all Services.
const LAST_RULE: &str = "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::connections::services::tests::four;

    #[test]
    fn services_are_in_order_and_node_ports_behind_them() {
        let text = tables(&four());
        let at = |wanted: &str| text.find(wanted).unwrap_or_else(|| panic!("{wanted}"));
        let first = at("svc-0:line\" -d 10.96.0.10/32");
        let last = at("svc-3:line\" -d 10.96.0.13/32");
        assert!(first < last && last < at("--dst-type LOCAL"));
        assert_eq!(text.matches("-A KUBE-NODEPORTS -m").count(), 2);
        assert_eq!(text.matches("--probability 0.3333333333").count(), 4);
        assert_eq!(text.matches("--probability 0.5000000000").count(), 4);
        assert_eq!(
            text.matches("DNAT --to-destination 10.244.0.6:9376")
                .count(),
            2
        );
    }
}
