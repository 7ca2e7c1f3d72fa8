// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs as people run them on a node: `curl` and `kdig`.
//!
//! **Invariant:** they are processes of their own, in the node's cgroup from their first instruction.
//! Read next: `../dns.rs`, for the same from pods.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::SocketAddr;

use lb_lab::Host;

use super::{callers, loopback};
use crate::cluster::{Cluster, Vip, in_default_and_routed};
use crate::dns::{kube_dns, records, resolve_both, serve_zone};
use crate::external::External;

/// What `curl` is answered, and by whom according to it.
fn curl(caller: &Host, remote: SocketAddr) -> String {
    let options = "--globoff --silent --show-error --noproxy * --max-time 2";
    let written = "%{remote_ip}|%{remote_port}";
    let line = format!("curl {options} --write-out {written} http://{remote}/");
    caller.output(&line).unwrap()
}

#[test]
fn curl_on_a_node_reaches_a_cluster_address_and_a_node_port_of_localhost() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let pods = [cluster.web(0, "near"), cluster.web(1, "far")];
        let services = [External::new("near", 1), External::new("far", 2)];
        for (service, pod) in services.iter().zip(&pods) {
            cluster.publish(&service.vip, &[pod]);
        }
        cluster.start_agents();
        for caller in &callers(&cluster, 0) {
            for (service, pod) in services.iter().zip(&pods) {
                for (family, cluster_ip) in service.vip.remotes().into_iter().enumerate() {
                    let node_port = service.node_port(&cluster, 0, family);
                    let localhost = loopback(family, node_port.port());
                    for remote in [cluster_ip, node_port, localhost] {
                        let expected = format!("{}\n{}|{}", pod.name(), remote.ip(), remote.port());
                        assert_eq!(curl(caller, remote), expected, "{caller:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn kdig_on_a_node_resolves_through_the_dns_service_over_udp_and_tcp() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let servers = [cluster.pod(0, "dns-0"), cluster.pod(1, "dns-1")];
        let (web, dns) = (Vip::new("web", 1), kube_dns());
        cluster.publish(&dns, &[&servers[0], &servers[1]]);
        let zone = [
            records("ns.dns", &dns.remotes().map(|remote| remote.ip())),
            records("web.default.svc", &web.remotes().map(|remote| remote.ip())),
        ]
        .concat();
        let start = |pod| serve_zone(pod, &cluster, &zone);
        let [gone, _stays] = servers.each_ref().map(start);
        cluster.start_agents();
        let callers = callers(&cluster, 0);
        let all_resolve = || {
            for (caller, server) in callers.iter().flat_map(|caller| {
                let servers = dns.remotes().into_iter();
                servers.map(move |server| (caller, server))
            }) {
                for options in ["+notcp", "+tcp"] {
                    // Two questions each, so that both servers have their turns.
                    let addresses = resolve_both(caller, server, options, "web.default.svc");
                    assert_eq!(addresses, web.remotes().map(|remote| remote.ip()));
                }
            }
        };
        all_resolve();
        cluster.set_endpoints(&dns, &[&servers[1]]);
        drop(gone);
        all_resolve();
    });
}
