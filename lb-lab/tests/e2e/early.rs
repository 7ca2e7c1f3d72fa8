// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a client sent to a Service before it was there must not stand in its way later.
//!
//! The first packet leaves an entry in conntrack without a translation, which lasts two minutes
//! and takes in every later packet with the same ports. Our programs come before conntrack.
//! **Invariant:** the client's ports are the same before and after. Read next: `lifecycle.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::time::Duration;

use lb_lab::{Builder, HttpClient, UdpClient};

use crate::cluster::{CONNECT_MAX, Cluster, Vip, fail, in_default_and_routed};
use crate::load::assert_no_retransmission;

#[test]
fn a_port_that_dialled_a_service_too_early_reaches_it_as_soon_as_it_is_there() {
    in_default_and_routed(dial_too_early);
}

fn dial_too_early(builder: Builder) {
    const PORT: u16 = 40_020;
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let pods = [cluster.web(0, "near"), cluster.web(1, "far")];
    let vips = [Vip::new("near", 1), Vip::new("far", 2)];
    cluster.start_agents();
    let mut sockets = Vec::new();
    for remote in vips.iter().flat_map(Vip::remotes) {
        let early = HttpClient::new(remote)
            .source_port(PORT)
            .timeout(Duration::from_millis(200));
        assert!(client.run(|| early.connect()).unwrap().is_err(), "{remote}");
        let bind = || UdpClient::bind(remote, Some(PORT));
        let socket = client.run(bind).unwrap().unwrap();
        socket.set_timeout(Duration::from_millis(100)).unwrap();
        assert!(socket.ask("hostname").is_err(), "{remote}");
        sockets.push(socket);
    }
    let node = cluster.node(0);
    let conntrack = node
        .output("conntrack -L -p tcp --orig-port-src 40020")
        .unwrap();
    assert!(
        conntrack.contains("dst=10.0.1.1"),
        "no entry stands in the way, so this shows nothing: {conntrack}"
    );
    cluster.change(|manifests| {
        for (vip, pod) in vips.iter().zip(&pods) {
            manifests.endpoints(&vip.service, &[pod])?;
            manifests.service(&vip.service)?;
        }
        Ok(())
    });
    let capture = client.capture("eth0").unwrap();
    let remotes = vips.iter().flat_map(Vip::remotes);
    for (number, (remote, socket)) in remotes.zip(&sockets).enumerate() {
        let name = pods[number / 2].name();
        let connect = || HttpClient::new(remote).source_port(PORT).get("/");
        let reply = client.run(connect).unwrap();
        let reply = reply.unwrap_or_else(|error| fail(&remote.to_string(), &error));
        assert_eq!(reply.text(), name, "{remote}");
        assert!(reply.connect_time < CONNECT_MAX, "{:?}", reply.connect_time);
        // An error about the early datagram may still wait in the socket.
        drop(socket.socket().take_error());
        socket.set_timeout(Duration::from_secs(2)).unwrap();
        assert_eq!(socket.ask("hostname").unwrap(), name, "{remote}");
    }
    assert_no_retransmission(&capture.stop().unwrap());
}
