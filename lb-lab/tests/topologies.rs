// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lab itself: every topology carries direct traffic, and nothing is left behind.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends at the first failure"
)]

use std::net::SocketAddr;

use lb_lab::{Host, Lab, topology};

fn both_ways(from: &Host, to: &Host, port: u16) {
    for (address, own) in to.addresses().into_iter().zip(from.addresses()) {
        let remote = SocketAddr::new(address, port);
        let what = format!("{from:?} to {remote}");
        let reply = from.http_get(remote, "/").expect(&what);
        assert_eq!(reply.text(), to.name(), "{what}");
        assert!(
            reply.connect_time.as_millis() < 500,
            "{what}: {:?}",
            reply.connect_time
        );
        let source = from.http_get(remote, "/source").expect(&what);
        assert_eq!(
            source.text(),
            format!("{own} {}", source.local.port()),
            "{what}"
        );
        assert_eq!(
            from.udp_ask(remote, "hostname").expect(&what),
            to.name(),
            "{what}"
        );
        let source = from.udp_ask(remote, "source").expect(&what);
        assert_eq!(source.split(' ').next().unwrap(), own.to_string(), "{what}");
    }
}

#[test]
fn pods_reach_each_other_directly_in_every_topology() {
    for (topology, underlay) in topology::EVERY {
        let lab = Lab::builder()
            .topology(topology)
            .underlay(underlay)
            .nodes(2)
            .build()
            .unwrap();
        let a = lab.node(0).pod("a", 5).unwrap();
        let b = lab.node(0).pod("b", 6).unwrap();
        let c = lab.node(1).pod("c", 5).unwrap();
        let _servers = [&a, &b, &c].map(|pod| pod.serve(9376).unwrap());
        for (from, to) in [(&a, &b), (&a, &c), (&c, &a)] {
            both_ways(from, to, 9376);
        }
        let reply = lab
            .node(0)
            .http_get(SocketAddr::new(a.v4().into(), 9376), "/")
            .unwrap();
        assert_eq!(reply.text(), "a");
        drop(lab);
    }
}
