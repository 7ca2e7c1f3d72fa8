// SPDX-License-Identifier: MIT OR Apache-2.0
//! `sessionAffinity: ClientIP` for processes of a node.
//!
//! Such a client has no address yet when it dials; the node's own stands for it, whatever it dials.
//! **Invariant:** affinity is a service port's and not an address's. Read next: `lasting.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_lab::{Host, HttpClient, UdpClient};

use super::{Unconnected, callers, forms, loopback};
use crate::cluster::{CONNECT_MAX, Cluster, in_default_and_routed, pause};
use crate::external::External;

/// How many answers in a row must be the same, at each address.
const IN_A_ROW: usize = 15;
/// Longer than the second that an entry lives for in these tests.
const EXPIRED: Duration = Duration::from_millis(1_400);
/// How often an entry may expire and the same one of three backends be chosen again.
const EXPIRIES: usize = 12;

/// The names that answer connections, and those that answer datagrams.
fn names(caller: &Host, remotes: &[SocketAddr], count: usize) -> [BTreeSet<String>; 2] {
    let dial = || {
        let mut names = [BTreeSet::new(), BTreeSet::new()];
        for remote in (0..count).flat_map(|_| remotes) {
            let reply = HttpClient::new(*remote).get("/").unwrap();
            assert!(reply.connect_time < CONNECT_MAX, "{remote}");
            names[0].insert(reply.text().to_owned());
            let connected = UdpClient::bind(*remote, None).unwrap();
            names[1].insert(connected.ask("hostname").unwrap());
            let free = Unconnected::open(*remote).unwrap();
            names[1].insert(free.ask(*remote, "hostname").unwrap().0);
        }
        names
    };
    caller.run(dial).unwrap()
}

/// The node's own addresses of a Service in one family, in every form.
fn everywhere(cluster: &Cluster, service: &External, family: usize) -> Vec<SocketAddr> {
    let remotes = service.remotes(cluster, 0, family);
    let port = remotes[0].port();
    let inside = [service.vip.remotes()[family], loopback(family, port)];
    let all = remotes.into_iter().chain(inside);
    all.flat_map(forms).collect()
}

/// Three backends on two nodes.
fn start(cluster: &mut Cluster, service: &External) {
    let pods = [(0, "a"), (1, "b"), (1, "c")].map(|(node, name)| cluster.web(node, name));
    cluster.publish(&service.vip, &pods.each_ref());
    cluster.start_agents();
}

#[test]
fn all_addresses_of_a_service_port_lead_a_node_to_the_same_backend() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let service = External::new("web", 1).spec("sessionAffinity: ClientIP");
        start(&mut cluster, &service);
        let callers = callers(&cluster, 0);
        for family in [0, 1] {
            let remotes = everywhere(&cluster, &service, family);
            let all = callers.each_ref().map(|caller| {
                let names = names(caller, &remotes, IN_A_ROW);
                let counts = names.each_ref().map(BTreeSet::len);
                assert_eq!(counts, [1, 1], "{caller:?}: {names:?}");
                names
            });
            assert_eq!(all[0], all[1], "a hostNetwork pod is the same client");
        }
        // Without it, every backend has its turn.
        let plain = External::new("web", 1);
        cluster.change(|manifests| manifests.service(&plain.vip.service));
        for family in [0, 1] {
            let remotes = everywhere(&cluster, &plain, family);
            let names = names(&callers[0], &remotes, IN_A_ROW);
            assert_eq!(names.each_ref().map(BTreeSet::len), [3, 3], "{names:?}");
        }
    });
}

#[test]
fn a_node_that_has_not_dialled_for_the_timeout_may_meet_another_backend() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let service = External::new("web", 1)
            .spec("sessionAffinity: ClientIP")
            .spec("sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}");
        start(&mut cluster, &service);
        let process = cluster.node(0).process();
        // One round of both families; a round that took as long as an entry lives is done again.
        let round = || loop {
            let began = Instant::now();
            let names = [0, 1].map(|family| {
                let remotes = everywhere(&cluster, &service, family);
                names(&process, &remotes, 1)
            });
            if began.elapsed() < Duration::from_secs(1) {
                return names.concat();
            }
        };
        let first = round();
        let mut changed = [false; 4];
        for _ in 0..EXPIRIES {
            pause(EXPIRED);
            let now = round();
            for (place, (now, first)) in now.iter().zip(&first).enumerate() {
                assert_eq!(now.len(), 1, "{now:?}");
                changed[place] |= now != first;
            }
            if changed == [true; 4] {
                break;
            }
        }
        assert_eq!(changed, [true; 4], "always {first:?}");
    });
}
