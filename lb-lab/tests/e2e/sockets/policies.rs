// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who is served at a socket, and what becomes of who is not.
//!
//! **Invariant:** what would be refused by an ICMP error is `ECONNREFUSED`, what would be dropped is
//! `EPERM`, as when a packet is dropped on its way out; both at once. Read next: `affinity.rs`.

use std::io::ErrorKind;

use lb_common::Reason;
use lb_lab::Host;

use super::addresses::seen_on_itself;
use super::{assert_fails, assert_met, callers, loopback, refusal};
use crate::cluster::{Cluster, in_default_and_routed};
use crate::external::{External, towards_other_nodes};
use crate::inspect;

/// Sockets that each address is tried with, over [`assert_fails`]: three of IPv4, three of IPv6 with
/// IPv4 within, three of IPv6.
const SOCKETS: u64 = 9;

#[test]
fn processes_of_a_node_are_refused_at_once_without_endpoints() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let web = cluster.web(0, "web");
        let service = External::new("web", 1);
        cluster.publish(&service.vip, &[]);
        cluster.start_agents();
        let callers = callers(&cluster, 0);
        let refusal = refusal(cluster.node(0));
        let refused = |cluster: &Cluster, caller: &Host| {
            for family in [0, 1] {
                let remotes = service.remotes(cluster, 0, family);
                let port = remotes[0].port();
                let inside = [service.vip.remotes()[family], loopback(family, port)];
                for remote in remotes.into_iter().chain(inside) {
                    assert_fails(caller, remote, refusal);
                }
            }
        };
        for caller in &callers {
            let before = inspect::reason(cluster.node(0), Reason::NoBackend);
            refused(&cluster, caller);
            let after = inspect::reason(cluster.node(0), Reason::NoBackend);
            assert_eq!(after - before, 5 * SOCKETS, "{caller:?}");
        }
        cluster.set_endpoints(&service.vip, &[&web]);
        let own = seen_on_itself(cluster.node(0));
        for caller in &callers {
            for remote in service.vip.remotes() {
                assert_met(caller, remote, "web", &own);
            }
        }
        cluster.set_endpoints(&service.vip, &[]);
        refused(&cluster, &callers[0]);
    });
}

#[test]
fn the_internal_policy_local_is_an_error_on_a_node_without_a_local_backend() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let web = cluster.web(0, "web");
        let service = External::new("web", 1).spec("internalTrafficPolicy: Local");
        cluster.publish(&service.vip, &[&web]);
        cluster.start_agents();
        let here = seen_on_itself(cluster.node(0));
        for caller in &callers(&cluster, 0) {
            for remote in service.vip.remotes() {
                assert_met(caller, remote, "web", &here);
            }
        }
        for caller in &callers(&cluster, 1) {
            let before = inspect::reason(cluster.node(1), Reason::PolicyDrop);
            for (family, remote) in service.vip.remotes().into_iter().enumerate() {
                assert_fails(caller, remote, ErrorKind::PermissionDenied);
                // The other addresses have nothing to do with that policy.
                let own = towards_other_nodes(&cluster, 1, family);
                for remote in service.remotes(&cluster, 1, family) {
                    assert_met(caller, remote, "web", &[own]);
                }
            }
            let after = inspect::reason(cluster.node(1), Reason::PolicyDrop);
            assert_eq!(after - before, SOCKETS, "{caller:?}");
        }
    });
}

#[test]
fn the_external_policy_local_lets_a_node_reach_the_backends_of_others() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
        let service = External::new("local", 1).spec("externalTrafficPolicy: Local");
        cluster.publish(&service.vip, &[]);
        cluster.start_agents();
        let callers = callers(&cluster, 0);
        for (pod, name) in [(&far, "far"), (&near, "near")] {
            cluster.set_endpoints(&service.vip, &[pod]);
            for family in [0, 1] {
                let own = match name {
                    "near" => seen_on_itself(cluster.node(0)),
                    _ => vec![towards_other_nodes(&cluster, 0, family)],
                };
                let remotes = service.remotes(&cluster, 0, family);
                let port = remotes[0].port();
                let inside = [service.vip.remotes()[family], loopback(family, port)];
                for caller in &callers {
                    for remote in remotes.into_iter().chain(inside) {
                        assert_met(caller, remote, name, &own);
                    }
                }
            }
        }
    });
}

#[test]
fn source_ranges_hold_for_the_node_that_dials_the_load_balancer() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let web = cluster.web(0, "web");
        let [v4, v6] = cluster.node(0).addresses();
        let ranges = |list: &str| {
            let line = format!("loadBalancerSourceRanges: [{list}]");
            External::new("web", 1).spec(&line)
        };
        let inside = ranges(&format!("{v4}/32, \"{v6}/128\""));
        let outside = ranges("203.0.113.0/24, 10.244.0.0/16, \"2001:db8:203::/64\"");
        // Ranges of one family say nothing about the other.
        let of_v4 = ranges("203.0.113.0/24");
        cluster.publish(&inside.vip, &[&web]);
        cluster.start_agents();
        let callers = callers(&cluster, 0);
        let own = seen_on_itself(cluster.node(0));
        let rounds = [
            (&inside, [true, true]),
            (&outside, [false, false]),
            (&of_v4, [false, true]),
            (&inside, [true, true]),
        ];
        for (round, (service, admitted)) in rounds.into_iter().enumerate() {
            if round > 0 {
                cluster.change(|manifests| manifests.service(&service.vip.service));
            }
            for caller in &callers {
                for (family, admitted) in admitted.into_iter().enumerate() {
                    let balancer = service.balancer(family);
                    if admitted {
                        assert_met(caller, balancer, "web", &own);
                    } else {
                        assert_fails(caller, balancer, ErrorKind::PermissionDenied);
                    }
                    let node_port = service.node_port(&cluster, 0, family);
                    let cluster_ip = service.vip.remotes()[family];
                    for remote in [node_port, service.external(family), cluster_ip] {
                        assert_met(caller, remote, "web", &own);
                    }
                }
            }
        }
        let counted = inspect::reason(cluster.node(0), Reason::SourceRange);
        // Both families once, and IPv4 alone once, by each caller.
        assert_eq!(counted, 2 * (SOCKETS + 6));
    });
}
