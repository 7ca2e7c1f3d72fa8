// SPDX-License-Identifier: MIT OR Apache-2.0
//! A UDP client that never changes its port, while everything behind the Service does.
//!
//! Conntrack would keep such a client at a backend that is gone, for as long as it sends.
//! **Invariant:** the sockets are the same from the first question to the last, and the first
//! datagram after a change reaches the right server. Read next: `updates.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_lab::{Builder, Host, Place, ServerOptions, Service, UdpClient};

use crate::cluster::{Cluster, TARGET, Vip, in_default_and_routed};
use crate::external::towards_other_nodes;
use crate::nodeport::node_address;

const NODE_PORT: u16 = 30_070;
/// Where the pods have their second server.
const OTHER_TARGET: u16 = TARGET + 1;

/// One socket, and what is known of it.
struct Asking {
    /// What it is called when it fails.
    what: String,
    socket: UdpClient,
    /// Whom a server on the node that is dialled sees, and one on another node.
    sources: [IpAddr; 2],
}

struct Sockets(Vec<Asking>);

impl Sockets {
    /// One for each family. What goes to another node is masqueraded with these addresses, if at all.
    fn add(
        &mut self,
        client: &Host,
        remotes: [SocketAddr; 2],
        port: u16,
        masqueraded: Option<[IpAddr; 2]>,
    ) {
        let own = client.addresses();
        let far = masqueraded.unwrap_or(own);
        for (family, remote) in remotes.into_iter().enumerate() {
            let bind = || UdpClient::bind(remote, Some(port));
            self.0.push(Asking {
                what: format!("{client:?} to {remote}"),
                socket: client.run(bind).unwrap().unwrap(),
                sources: [own[family], far[family]],
            });
        }
    }

    /// All must be answered by this server, at the first datagram and then.
    fn assert_answered_by(&self, name: &str, when: &str) {
        for Asking {
            what,
            socket,
            sources,
        } in &self.0
        {
            // An error about an earlier datagram may still wait.
            drop(socket.socket().take_error());
            for _ in 0..2 {
                let answer = socket.ask("hostname").map_err(|error| error.to_string());
                assert_eq!(answer.as_deref(), Ok(name), "{when}: {what}");
            }
            let source = socket.ask("source").unwrap();
            let expected = sources[usize::from(name.starts_with("far"))].to_string();
            let seen = source.split(' ').next();
            assert_eq!(seen, Some(&*expected), "{when}: {what}");
        }
    }

    /// None may be answered.
    fn assert_unanswered(&self, when: &str) {
        for Asking { what, socket, .. } in &self.0 {
            drop(socket.socket().take_error());
            socket.set_timeout(Duration::from_millis(100)).unwrap();
            let answer = socket.ask("hostname");
            assert!(answer.is_err(), "{when}: {what}: {answer:?}");
            socket.set_timeout(lb_lab::client::TIMEOUT).unwrap();
        }
    }
}

/// The Service with another target port.
fn service(vip: &Vip, target: u16) -> Service {
    let addresses = vip.remotes().map(|remote| remote.ip());
    Service::new("dns", &addresses)
        .tcp(80, target)
        .udp(80, target)
        .node_port(NODE_PORT)
}

#[test]
fn a_udp_client_with_a_fixed_port_follows_every_change_with_its_first_datagram() {
    in_default_and_routed(follow_every_change);
}

fn follow_every_change(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let _others = [(&near, "near-other"), (&far, "far-other")].map(|(pod, name)| {
        let options = ServerOptions::new(name, &[OTHER_TARGET]);
        pod.serve_with(&options).unwrap()
    });
    let mut vip = Vip::new("dns", 53);
    vip.service = service(&vip, TARGET);
    cluster.publish(&vip, &[]);
    cluster.start_agents();
    let mut sockets = Sockets(Vec::new());
    let node_ports = [0, 1].map(|family| node_address(&cluster, 0, family, NODE_PORT));
    let node = [0, 1].map(|family| towards_other_nodes(&cluster, 0, family));
    sockets.add(&client, vip.remotes(), 40_053, None);
    sockets.add(&client, node_ports, 40_054, Some(node));
    sockets.add(&outside, node_ports, 40_055, Some(node));

    sockets.assert_unanswered("no endpoint yet");
    cluster.set_endpoints(&vip, &[&near]);
    sockets.assert_answered_by("near", "the first endpoint");
    cluster.set_endpoints(&vip, &[&far]);
    sockets.assert_answered_by("far", "the endpoint was replaced");
    cluster.set_endpoints(&vip, &[]);
    sockets.assert_unanswered("scaled to nothing");
    cluster.set_endpoints(&vip, &[&far]);
    sockets.assert_answered_by("far", "scaled up again");

    for (target, name) in [(OTHER_TARGET, "far-other"), (TARGET, "far")] {
        vip.service = service(&vip, target);
        cluster.change(|manifests| {
            manifests.service(&vip.service)?;
            manifests.endpoints(&vip.service, &[&far])
        });
        sockets.assert_answered_by(name, "the target port changed");
    }

    for (pod, name) in [(&near, "near"), (&far, "far")] {
        cluster.change(|manifests| manifests.delete(&vip.service));
        sockets.assert_unanswered("deleted");
        cluster.change(|manifests| {
            manifests.endpoints(&vip.service, &[pod])?;
            manifests.service(&vip.service)
        });
        sockets.assert_answered_by(name, "made again at the same address");
    }
    change_without_agents(&mut cluster, &mut vip, [&near, &far], &sockets);
}

/// The same changes while no agent runs.
fn change_without_agents(
    cluster: &mut Cluster,
    vip: &mut Vip,
    [near, far]: [&lb_lab::Pod; 2],
    sockets: &Sockets,
) {
    cluster.end_agents(true);
    cluster.publish(vip, &[near]);
    cluster.start_agents();
    sockets.assert_answered_by("near", "replaced without an agent");

    cluster.end_agents(true);
    vip.service = service(vip, OTHER_TARGET);
    cluster.publish(vip, &[near]);
    cluster.start_agents();
    sockets.assert_answered_by("near-other", "target port changed without an agent");

    cluster.end_agents(false);
    cluster.publish(vip, &[]);
    cluster.start_agents();
    sockets.assert_unanswered("scaled to nothing without an agent");

    cluster.end_agents(true);
    cluster.publish(vip, &[far]);
    cluster.start_agents();
    sockets.assert_answered_by("far-other", "scaled up without an agent");

    cluster.end_agents(true);
    cluster.manifests.delete(&vip.service).unwrap();
    cluster.start_agents();
    sockets.assert_unanswered("deleted without an agent");
    vip.service = service(vip, TARGET);
    cluster.change(|manifests| {
        manifests.endpoints(&vip.service, &[near])?;
        manifests.service(&vip.service)
    });
    sockets.assert_answered_by("near", "made again later");
}
