// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pods below the same cgroup: their calls are left as they are, and their packets are translated.
//!
//! **Invariant:** the pod's sockets are in the pod's cgroup, so the programs run for them too.
//! Read next: `programs.rs`.

use std::net::IpAddr;

use lb_lab::Recording;

use super::{assert_met, callers};
use crate::cluster::{Cluster, Vip, in_default_and_routed};
use crate::external::towards_other_nodes;
use crate::inspect;

/// The tables of what sockets were told.
const SOCKETS: [&str; 2] = ["SOCKETS_V4", "SOCKETS_V6"];

/// Packets in a recording to or from one of these addresses.
fn packets(recording: &Recording, addresses: &[IpAddr]) -> usize {
    recording.count(|from, _, to, _| addresses.contains(&from) || addresses.contains(&to))
}

#[test]
fn what_a_pod_dials_is_translated_in_its_packets_and_what_its_node_dials_at_the_socket() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let (web, client) = (cluster.web(1, "web"), cluster.pod(0, "client"));
        let vip = Vip::new("web", 1);
        cluster.publish(&vip, &[&web]);
        cluster.start_agents();
        let (frontends, backends) = (vip.remotes().map(|remote| remote.ip()), web.addresses());
        let told = || SOCKETS.map(|map| inspect::entries(cluster.node(0), map).len());

        let capture = client.capture("eth0").unwrap();
        for (remote, own) in vip.remotes().into_iter().zip(client.addresses()) {
            assert_met(&client.process(), remote, "web", &[own]);
        }
        let recording = capture.stop().unwrap();
        assert!(packets(&recording, &frontends) > 20);
        let early = packets(&recording, &backends);
        assert_eq!(early, 0, "translated at the socket");
        assert_eq!(told(), [0, 0]);

        for caller in &callers(&cluster, 0) {
            let capture = cluster.node(0).capture("any").unwrap();
            for (family, remote) in vip.remotes().into_iter().enumerate() {
                let own = towards_other_nodes(&cluster, 0, family);
                assert_met(caller, remote, "web", &[own]);
            }
            let recording = capture.stop().unwrap();
            assert!(packets(&recording, &backends) > 20);
            let late = packets(&recording, &frontends);
            assert_eq!(late, 0, "not translated at the socket");
        }
        assert!(told().iter().all(|count| *count > 0), "{:?}", told());
    });
}
