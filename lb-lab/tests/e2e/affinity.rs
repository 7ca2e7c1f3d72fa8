// SPDX-License-Identifier: MIT OR Apache-2.0
//! `sessionAffinity: ClientIP` across the addresses of a service port, and for how long.
//!
//! **Invariant:** affinity is a service port's, not an address's: whatever a client dials on a node, it
//! meets the same backend. Read next: `sockets/affinity.rs`, the same for processes of a node.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_lab::{Host, Place, Pod};

use crate::cluster::{Cluster, get, in_default_and_routed, pause};
use crate::external::{External, routed_to_node_0};

/// How many times each address is dialled.
const ROUNDS: usize = 15;
/// How long a client keeps its backend in the test of that, and the rest between its connections: two
/// of them are longer than that.
const TIMEOUT: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_millis(1_200);
/// How often the time may be over and the same one of three backends be chosen again.
const EXPIRIES: usize = 12;

/// Who answers connections, and who answers datagrams.
fn names(client: &Host, remotes: &[SocketAddr], rounds: usize) -> [BTreeSet<String>; 2] {
    let mut names = [BTreeSet::new(), BTreeSet::new()];
    for remote in (0..rounds).flat_map(|_| remotes) {
        names[0].insert(get(client, *remote, "/").text().to_owned());
        names[1].insert(client.udp_ask(*remote, "hostname").unwrap());
    }
    names
}

/// Three backends on two nodes.
fn start(cluster: &mut Cluster, service: &External) {
    let pods: [Pod; 3] = [(0, "a"), (1, "b"), (1, "c")].map(|(node, name)| cluster.web(node, name));
    cluster.publish(&service.vip, &pods.each_ref());
    cluster.start_agents();
}

#[test]
fn all_addresses_of_a_service_port_lead_a_client_to_the_same_backend() {
    in_default_and_routed(|builder| {
        let mut cluster = routed_to_node_0(builder);
        let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
        let pod = cluster.pod(0, "client");
        let service = External::new("web", 1).spec("sessionAffinity: ClientIP");
        start(&mut cluster, &service);
        let plain = External::new("web", 1);
        for backends in [1, 3] {
            for family in [0, 1] {
                let external = service.remotes(&cluster, 0, family);
                let inside = [service.vip.remotes()[family]];
                let everywhere = [&inside[..], &external].concat();
                for (client, remotes) in [(&*pod, &everywhere[..]), (&outside, &external)] {
                    let names = names(client, remotes, ROUNDS);
                    let counts = names.each_ref().map(BTreeSet::len);
                    assert_eq!(counts, [backends; 2], "{client:?}: {names:?}");
                }
            }
            if backends == 1 {
                // Without it, every backend has its turn.
                cluster.change(|manifests| manifests.service(&plain.vip.service));
            }
        }
    });
}

#[test]
fn each_connection_to_any_address_gives_a_client_the_whole_time_again() {
    in_default_and_routed(|builder| {
        let mut cluster = routed_to_node_0(builder);
        let client = cluster.pod(0, "client");
        let timeout = TIMEOUT.as_secs();
        let service = External::new("web", 1)
            .spec("sessionAffinity: ClientIP")
            .spec(&format!(
                "sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {timeout}}}}}"
            ));
        start(&mut cluster, &service);
        for family in [0, 1] {
            let external = service.remotes(&cluster, 0, family);
            let addresses = [&[service.vip.remotes()[family]][..], &external].concat();
            kept(&client, &addresses);
        }
    });
}

/// The addresses are dialled one after the other, with rests that only together are too long.
fn kept(client: &Pod, addresses: &[SocketAddr]) {
    let mut dialled = Instant::now();
    let mut first = names(client, &addresses[..1], 1);
    for remote in addresses.iter().cycle().skip(1).take(addresses.len() + 1) {
        pause(REST);
        let now = names(client, &[*remote], 1);
        // A machine that was busy for so long lets the time be over.
        if dialled.elapsed() < TIMEOUT {
            assert_eq!(now, first, "{remote}");
        }
        (first, dialled) = (now, Instant::now());
    }
    for _ in 0..EXPIRIES {
        pause(TIMEOUT + REST / 4);
        if names(client, &addresses[..1], 1)[0] != first[0] {
            return;
        }
    }
    unreachable!("always {first:?}, long after its time");
}
