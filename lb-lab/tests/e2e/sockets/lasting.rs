// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets of a node that outlive the backends they were led to, and the agent.
//!
//! **Invariant:** a socket that names its peer with every datagram follows with the first one after a
//! change; one that named it once is told that it must name it again. Read next: `pods.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::io::ErrorKind;
use std::net::SocketAddr;

use lb_lab::{Builder, Host, HttpClient, Pod, UdpClient};

use super::{Unconnected, callers, forms, loopback, refusal};
use crate::cluster::{Cluster, TARGET, Vip, in_default_and_routed, own};
use crate::external::External;

/// Sockets that last, each with the address that it asks.
struct Lasting(Vec<(SocketAddr, Unconnected)>);

impl Lasting {
    /// One for each form of each address.
    fn open(caller: &Host, remotes: impl IntoIterator<Item = SocketAddr>) -> Self {
        let remotes: Vec<_> = remotes.into_iter().flat_map(forms).collect();
        let open = || remotes.iter().map(|remote| Unconnected::open(*remote));
        let opened: Vec<_> = caller.run(|| open().collect()).unwrap();
        let opened = opened.into_iter().map(Result::unwrap);
        Self(remotes.iter().copied().zip(opened).collect())
    }

    /// All are answered by this server under the address that they ask, at the first datagram.
    fn assert_answered_by(&self, name: &str, when: &str) {
        for (remote, socket) in &self.0 {
            for _ in 0..2 {
                socket.assert_answered_by(*remote, name, &format!("{when}: {remote}"));
            }
        }
    }

    /// None can send.
    fn assert_refused(&self, expected: ErrorKind, when: &str) {
        for (remote, socket) in &self.0 {
            let sent = socket.0.send_to(b"hostname", remote);
            let kind = sent.map_err(|error| error.kind());
            assert_eq!(kind, Err(expected), "{when}: {remote}");
        }
    }
}

/// Every address that the first node serves.
fn everywhere(cluster: &Cluster, service: &External) -> Vec<SocketAddr> {
    let of_family = |family| {
        let remotes = service.remotes(cluster, 0, family);
        let port = remotes[0].port();
        let inside = [service.vip.remotes()[family], loopback(family, port)];
        remotes.into_iter().chain(inside)
    };
    [0, 1].into_iter().flat_map(of_family).collect()
}

#[test]
fn a_socket_that_is_not_connected_follows_every_replacement_with_its_first_datagram() {
    in_default_and_routed(follow_every_replacement);
}

fn follow_every_replacement(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let third = cluster.web(1, "third");
    let service = External::new("dns", 1);
    let vip = &service.vip;
    cluster.publish(vip, &[&near]);
    cluster.start_agents();
    let remotes = everywhere(&cluster, &service);
    let callers = callers(&cluster, 0);
    let sockets = callers.map(|caller| Lasting::open(&caller, remotes.iter().copied()));
    let all_by = |name: &str, when: &str| {
        for sockets in &sockets {
            sockets.assert_answered_by(name, when);
        }
    };
    all_by("near", "at first");
    for (pod, when) in [(&far, "first"), (&third, "second"), (&near, "third")] {
        cluster.set_endpoints(vip, &[pod]);
        all_by(pod.name(), &format!("{when} replacement"));
    }
    // As pods leave in Kubernetes: one more comes before the old one goes.
    cluster.set_endpoints(vip, &[&near, &far]);
    cluster.set_endpoints(vip, &[&far]);
    all_by("far", "the other one went");
    cluster.set_endpoints(vip, &[]);
    let refusal = refusal(cluster.node(0));
    for sockets in &sockets {
        sockets.assert_refused(refusal, "scaled to nothing");
    }
    cluster.set_endpoints(vip, &[&third]);
    all_by("third", "scaled up again");
    cluster.change(|manifests| manifests.delete(&vip.service));
    cluster.change(|manifests| {
        manifests.endpoints(&vip.service, &[&near])?;
        manifests.service(&vip.service)
    });
    all_by("near", "deleted and made again");
    outlive_the_agents(&mut cluster, vip, [&near, &far], &sockets);
}

/// The programs stay while no agent runs, and so does what they have told the sockets.
fn outlive_the_agents(
    cluster: &mut Cluster,
    vip: &Vip,
    [near, far]: [&Pod; 2],
    sockets: &[Lasting; 2],
) {
    for killed in [true, false] {
        cluster.end_agents(killed);
        for sockets in sockets {
            sockets.assert_answered_by(near.name(), "without agents");
        }
        let process = cluster.node(0).process();
        for remote in vip.remotes() {
            assert_eq!(process.udp_ask(remote, "hostname").unwrap(), near.name());
        }
        cluster.start_agents();
        for sockets in sockets {
            sockets.assert_answered_by(near.name(), "with agents again");
        }
    }
    cluster.end_agents(true);
    cluster.publish(vip, &[far]);
    cluster.start_agents();
    for sockets in sockets {
        sockets.assert_answered_by(far.name(), "replaced without agents");
    }
}

#[test]
fn one_socket_that_asks_two_services_of_one_backend_is_answered_by_each() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let web = cluster.web(1, "web");
        let vips = [Vip::new("one", 1), Vip::new("two", 2)];
        for vip in &vips {
            cluster.publish(vip, &[&web]);
        }
        cluster.start_agents();
        for family in [0, 1] {
            let remotes = vips.each_ref().map(|vip| vip.remotes()[family]);
            let open = || Unconnected::open(remotes[0]).unwrap();
            let socket = cluster.node(0).process().run(open).unwrap();
            for round in 0..3 {
                for remote in remotes {
                    socket.assert_answered_by(remote, "web", &format!("round {round}"));
                }
            }
        }
    });
}

#[test]
fn a_connected_socket_is_told_that_its_backend_is_gone_and_can_be_connected_again() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
        let vip = Vip::new("dns", 1);
        cluster.publish(&vip, &[&near]);
        cluster.start_agents();
        let mut sockets = Vec::new();
        for caller in &callers(&cluster, 0) {
            for remote in vip.remotes().into_iter().flat_map(forms) {
                let bind = || UdpClient::bind(remote, None).unwrap();
                sockets.push((remote, caller.run(bind).unwrap()));
            }
        }
        for [leaving, coming] in [[&near, &far], [&far, &near]] {
            for (_, socket) in &sockets {
                assert_eq!(socket.ask("hostname").unwrap(), leaving.name());
            }
            cluster.set_endpoints(&vip, &[coming]);
            for (remote, socket) in &sockets {
                let told = socket.socket().recv(&mut [0; 64]);
                let told = told.map_err(|error| error.kind());
                assert_eq!(told, Err(ErrorKind::ConnectionAborted), "{remote}");
                socket.socket().connect(remote).unwrap();
                assert_eq!(socket.ask("hostname").unwrap(), coming.name());
                assert_eq!(socket.socket().peer_addr().unwrap(), *remote);
            }
        }
    });
}

/// Wrong, and left so: the answer of a backend that is asked itself is shown as the Service's, once the
/// same socket has asked the Service. To tell the two apart, each datagram of the node would have to be
/// looked up, whoever it is for.
#[test]
fn one_socket_that_asks_a_service_and_its_backend_is_shown_the_service_for_both() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let web = cluster.web(0, "web");
        let vip = Vip::new("web", 1);
        cluster.publish(&vip, &[&web]);
        cluster.start_agents();
        let process = cluster.node(0).process();
        for remote in vip.remotes() {
            let pod = own(&web, remote, TARGET);
            let open = || Unconnected::open(remote).unwrap();
            let [first, second] = [0, 1].map(|_| process.run(open).unwrap());
            for (socket, asked, shown) in [
                (&first, pod, pod),
                (&first, remote, remote),
                (&first, pod, remote),
                (&second, pod, pod),
            ] {
                let answer = socket.ask(asked, "hostname").unwrap();
                assert_eq!(answer, ("web".to_owned(), shown), "{asked}");
            }
        }
    });
}

#[test]
fn a_socket_that_connects_elsewhere_is_led_and_shown_anew() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        // On one node, because the socket keeps the source address of its first connect.
        let (first, second) = (cluster.web(0, "first"), cluster.web(0, "second"));
        let services = [(Vip::new("one", 1), &first), (Vip::new("two", 2), &second)];
        let both = Vip::new("both", 3);
        for (vip, pod) in &services {
            cluster.publish(vip, &[pod]);
        }
        cluster.publish(&both, &[&first]);
        cluster.start_agents();
        let process = cluster.node(0).process();
        for family in [0, 1] {
            let [(one, _), (two, _)] = &services;
            let [one, two, both] = [one, two, &both].map(|vip| vip.remotes()[family]);
            let pod = own(&second, one, TARGET);
            let open = || UdpClient::bind(one, None).unwrap();
            let socket = process.run(open).unwrap();
            for (remote, name) in [
                (one, "first"),
                (pod, "second"),
                (both, "first"),
                (two, "second"),
                (one, "first"),
            ] {
                socket.socket().connect(remote).unwrap();
                assert_eq!(socket.socket().peer_addr().unwrap(), remote);
                assert_eq!(socket.ask("hostname").unwrap(), name, "{remote}");
            }
        }
    });
}

#[test]
fn a_connection_to_a_removed_backend_goes_on() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
        let vip = Vip::new("web", 1);
        cluster.publish(&vip, &[&near]);
        cluster.start_agents();
        let process = cluster.node(0).process();
        for remote in vip.remotes() {
            let connect = || HttpClient::new(remote).connect();
            let mut connection = process.run(connect).unwrap().unwrap();
            assert_eq!(connection.get("/").unwrap().text(), "near");
            cluster.set_endpoints(&vip, &[&far]);
            assert_eq!(process.http_get(remote, "/").unwrap().text(), "far");
            connection.download(100_000).unwrap();
            assert_eq!(connection.stream().peer_addr().unwrap(), remote);
            cluster.set_endpoints(&vip, &[&near]);
        }
    });
}
