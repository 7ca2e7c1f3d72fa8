// SPDX-License-Identifier: MIT OR Apache-2.0
//! Datagrams of UDP that are longer than the path is wide, through a Service and back.
//!
//! With the nodes' conntrack on, they are put together and cut anew between our hooks; with it off,
//! every fragment passes alone. **Invariant:** no datagram is lost, and none is sent twice.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use lb_common::Reason;
use lb_lab::{Builder, Pod, Topology, UdpClient};

use crate::cluster::{Cluster, Vip};
use crate::inspect;

in_every_topology!(
    long_datagrams_pass_both_ways_put_together_on_the_way,
    long_datagrams_pass_both_ways_in_fragments,
);

/// Bytes in a datagram: three fragments on an MTU of 1500, one more on less, and the longest.
const LENGTHS: [usize; 5] = [1473, 2960, 4000, 9001, 60_000];

/// Asks for an echo of each length, on one socket.
fn echo(client: &Pod, vip: &Vip) {
    for remote in vip.remotes() {
        let talk = || {
            let socket = UdpClient::bind(remote, None).unwrap();
            // The first packet of the flow is the first of several fragments.
            for length in LENGTHS {
                let bytes = "long".repeat(length / 4 + 1);
                let sent = &bytes.as_bytes()[..length];
                let answer = socket.exchange(sent).unwrap();
                assert!(answer == sent, "{length} bytes, {remote}");
            }
            let source = socket.ask("source").unwrap();
            let own = client.addresses().map(|own| own.to_string());
            assert!(own.iter().any(|own| source.starts_with(own)), "{source}");
        };
        client.run(talk).unwrap();
    }
}

fn talk(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let vips = [Vip::new("near", 1), Vip::new("far", 2)];
    cluster.publish(&vips[0], &[&near]);
    cluster.publish(&vips[1], &[&far]);
    cluster.start_agents();
    for vip in &vips {
        echo(&client, vip);
    }
    // Until a backend's link-layer address is known, requests to it are routed back into the bridge
    // that they came from, and the host would have the client go there by itself.
    let bridged = matches!(cluster.lab.topology(), Topology::Bridge { .. });
    let reasons = inspect::reasons(cluster.node(0));
    let unexpected = |(reason, _): &&(Reason, u64)| !(bridged && *reason == Reason::Redirect);
    assert_eq!(reasons.iter().find(unexpected), None);
}

fn long_datagrams_pass_both_ways_put_together_on_the_way(builder: Builder) {
    talk(builder);
}

fn long_datagrams_pass_both_ways_in_fragments(builder: Builder) {
    talk(
        builder
            .masquerade(false)
            .forward_drop(false)
            .invalid_drop(false),
    );
}
