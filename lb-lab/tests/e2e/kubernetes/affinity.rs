// SPDX-License-Identifier: MIT OR Apache-2.0
//! `service.go`, `networking.go`, `loadbalancer.go`: `sessionAffinity: ClientIP`.
//!
//! Timeouts are a second where Kubernetes waits for minutes. **Invariant:** a client with an
//! entry meets its backend in each of 15 connections. Read next: `loadbalancer.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_lab::{Host, Place};

use super::loadbalancer::{balanced, lead_to};
use super::{NODE_PORT, answered_by, at, cluster, with_node_port, with_spec};
use crate::cluster::{Cluster, Vip, get, pause};

/// How many answers in a row must be the same.
const IN_A_ROW: usize = 15;
/// The timeout of the tests' Services.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Longer than that.
const EXPIRED: Duration = Duration::from_millis(1_400);
/// How often an entry may expire and the same one of three backends be chosen again.
const EXPIRIES: usize = 8;

fn with_affinity(vip: Vip) -> Vip {
    with_spec(vip, "sessionAffinity: ClientIP")
}

fn short(vip: Vip) -> Vip {
    let line = "sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}";
    with_spec(with_affinity(vip), line)
}

/// The one name that answers all connections and all datagrams of a client.
fn one_name(client: &Host, remote: SocketAddr) -> [String; 2] {
    let connect = || get(client, remote, "/").body;
    let ask = || client.udp_ask(remote, "hostname").unwrap();
    let (tcp, udp) = (names(connect), names(ask));
    assert_eq!((tcp.len(), udp.len()), (1, 1), "{remote}: {tcp:?} {udp:?}");
    [tcp, udp].map(|names| names.first().unwrap().trim_end().to_owned())
}

/// The names in a row of answers; a row that took as long as an entry may live is done again.
fn names(mut ask: impl FnMut() -> String) -> BTreeSet<String> {
    loop {
        let begun = Instant::now();
        let names = (0..IN_A_ROW).map(|_| ask()).collect();
        if begun.elapsed() < TIMEOUT {
            return names;
        }
    }
}

/// One name answers all connections, and one all datagrams, at each of the addresses.
fn meets_one(client: &Host, remotes: [SocketAddr; 2]) {
    for remote in remotes {
        one_name(client, remote);
    }
}

/// Once nobody has asked for the timeout, another backend may answer, and does before long.
fn changes_after_the_timeout(client: &Host, remote: SocketAddr) {
    let before = one_name(client, remote);
    let mut changed = [false; 2];
    for _ in 0..EXPIRIES {
        pause(EXPIRED);
        let now = one_name(client, remote);
        for (changed, (now, before)) in changed.iter_mut().zip(now.iter().zip(&before)) {
            *changed |= now != before;
        }
        if changed == [true; 2] {
            return;
        }
    }
    assert_eq!(changed, [true; 2], "{remote}: always {before:?}");
}

/// Three backends, a pod that asks and a client outside.
fn start(vip: &Vip) -> Option<(Cluster, Host, Host)> {
    let mut cluster = cluster()?;
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pods = [(0, "a"), (1, "b"), (1, "c")].map(|(node, name)| cluster.web(node, name));
    let client = Host::clone(&cluster.pod(0, "client"));
    cluster.publish(vip, &pods.each_ref());
    cluster.start_agents();
    Some((cluster, client, outside))
}

#[test]
fn should_have_session_affinity_work_for_service_with_type_cluster_ip() {
    let vip = with_affinity(Vip::new("web", 1));
    let Some((_cluster, client, _)) = start(&vip) else {
        return;
    };
    meets_one(&client, vip.remotes());
}

#[test]
fn should_have_session_affinity_timeout_work_for_service_with_type_cluster_ip() {
    let vip = short(Vip::new("web", 1));
    let Some((_cluster, client, _)) = start(&vip) else {
        return;
    };
    for remote in vip.remotes() {
        changes_after_the_timeout(&client, remote);
    }
}

#[test]
fn should_be_able_to_switch_session_affinity_for_service_with_type_cluster_ip() {
    let (plain, vip) = (Vip::new("web", 1), with_affinity(Vip::new("web", 1)));
    let Some((mut cluster, client, _)) = start(&plain) else {
        return;
    };
    answered_by(&client, vip.remotes(), &["a", "b", "c"]);
    cluster.change(|manifests| manifests.service(&vip.service));
    meets_one(&client, vip.remotes());
    cluster.change(|manifests| manifests.service(&plain.service));
    answered_by(&client, vip.remotes(), &["a", "b", "c"]);
}

#[test]
fn should_have_session_affinity_work_for_node_port_service() {
    let vip = with_affinity(with_node_port());
    let Some((cluster, client, outside)) = start(&vip) else {
        return;
    };
    let remotes = at(cluster.node(0), NODE_PORT);
    meets_one(&client, remotes);
    meets_one(&outside, remotes);
}

#[test]
fn should_have_session_affinity_timeout_work_for_node_port_service() {
    let vip = short(with_node_port());
    let Some((cluster, client, outside)) = start(&vip) else {
        return;
    };
    let [v4, v6] = at(cluster.node(0), NODE_PORT);
    changes_after_the_timeout(&client, v4);
    changes_after_the_timeout(&outside, v6);
}

#[test]
fn should_be_able_to_switch_session_affinity_for_node_port_service() {
    let (plain, vip) = (with_node_port(), with_affinity(with_node_port()));
    let Some((mut cluster, client, outside)) = start(&plain) else {
        return;
    };
    let remotes = at(cluster.node(0), NODE_PORT);
    for (round, vip) in [&plain, &vip, &plain].into_iter().enumerate() {
        if round > 0 {
            cluster.change(|manifests| manifests.service(&vip.service));
        }
        for client in [&client, &outside] {
            if vip.service.to_yaml().contains("ClientIP") {
                meets_one(client, remotes);
            } else {
                answered_by(client, remotes, &["a", "b", "c"]);
            }
        }
    }
}

/// Affinity works, is switched off, and on again, at the address of a load balancer.
fn at_a_load_balancer(policy: &str, names: &[&str]) {
    let plain = with_spec(balanced(), &format!("externalTrafficPolicy: {policy}"));
    let vip = with_affinity(plain.clone());
    let Some((mut cluster, _, outside)) = start(&vip) else {
        return;
    };
    // With `Local`, the node of two of the three backends.
    let remotes = lead_to(&cluster, 1);
    meets_one(&outside, remotes);
    cluster.change(|manifests| manifests.service(&plain.service));
    answered_by(&outside, remotes, names);
    cluster.change(|manifests| manifests.service(&vip.service));
    meets_one(&outside, remotes);
}

#[test]
fn should_be_able_to_switch_session_affinity_for_load_balancer_service_with_local_external_traffic_policy()
 {
    at_a_load_balancer("Local", &["b", "c"]);
}

#[test]
fn should_be_able_to_switch_session_affinity_for_load_balancer_service_with_cluster_external_traffic_policy()
 {
    at_a_load_balancer("Cluster", &["a", "b", "c"]);
}
