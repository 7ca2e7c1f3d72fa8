// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end-to-end tests of Kubernetes (`test/e2e/network`, 1.36) that a Service proxy answers for.
//!
//! Each test bears the words of the one it stands for; the README's table has them all. What a
//! controller would do there (slices, conditions, hints, a balancer's addresses) is written here.
//! **Invariant:** where Kubernetes tries again until it works, here the first try counts.
//! Read next: `services.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

mod affinity;
mod conntrack;
mod invalid;
mod loadbalancer;
mod networking;
mod policies;
mod restarts;
mod rolling;
mod services;
mod terminating;
mod topology;
mod types;
mod unready;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_lab::{Endpoint, Host, HttpClient, Lab, LabError, UdpClient};

use crate::cluster::{Cluster, Vip, get, pause};
use crate::common::can_run;

/// The node port of every Service that has one; the next ones are for further ports.
const NODE_PORT: u16 = 30_180;
/// Where load balancers ask for a node's health.
const HEALTH_PORT: u16 = 30_999;
/// How long a server of health checks may take to come, to go or to change its mind.
const HEALTH_MAX: Duration = Duration::from_secs(1);
/// How long a refusal may take.
const REFUSED_MAX: Duration = Duration::from_millis(500);
/// How long nothing must come back where packets are dropped.
const SILENCE: Duration = Duration::from_millis(400);
/// Connections that meet every one of a few backends by turns.
const TURNS: usize = 12;

/// Two nodes of the default lab without agents; `None` where no lab can be made.
fn cluster() -> Option<Cluster> {
    can_run().then(|| Cluster::new(Lab::builder()))
}

/// Both addresses of a host with a port.
fn at(host: &Host, port: u16) -> [SocketAddr; 2] {
    host.addresses()
        .map(|address| SocketAddr::new(address, port))
}

/// Both addresses with a port.
fn on(addresses: [IpAddr; 2], port: u16) -> [SocketAddr; 2] {
    addresses.map(|address| SocketAddr::new(address, port))
}

/// The names that answer over TCP and over UDP must both be `names`, at each of the addresses.
fn answered_by(client: &Host, remotes: [SocketAddr; 2], names: &[&str]) {
    tcp_answered_by(client, remotes, names);
    udp_answered_by(client, remotes, names);
}

/// The names that answer over TCP.
fn tcp_answered_by(client: &Host, remotes: [SocketAddr; 2], names: &[&str]) {
    for remote in remotes {
        let turns = 0..if names.len() == 1 { 3 } else { TURNS };
        let seen: BTreeSet<_> = turns.map(|_| get(client, remote, "/").body).collect();
        let seen: BTreeSet<_> = seen.iter().map(|name| name.trim_end()).collect();
        assert_eq!(seen, set(names), "TCP, {client:?} to {remote}");
    }
}

/// The names that answer over UDP.
fn udp_answered_by(client: &Host, remotes: [SocketAddr; 2], names: &[&str]) {
    for remote in remotes {
        let turns = 0..if names.len() == 1 { 3 } else { TURNS };
        let ask = |_| client.udp_ask(remote, "hostname").unwrap();
        let seen: BTreeSet<String> = turns.map(ask).collect();
        let seen: BTreeSet<_> = seen.iter().map(String::as_str).collect();
        assert_eq!(seen, set(names), "UDP, {client:?} to {remote}");
    }
}

fn set<'a>(names: &[&'a str]) -> BTreeSet<&'a str> {
    names.iter().copied().collect()
}

/// The address that the server sees, over TCP and over UDP.
fn source(client: &Host, remote: SocketAddr) -> [IpAddr; 2] {
    let address = |text: &str| text.split(' ').next().unwrap().parse().unwrap();
    [
        address(&get(client, remote, "/source").body),
        address(&client.udp_ask(remote, "source").unwrap()),
    ]
}

/// The server must see the client itself at each of the addresses.
fn source_is_kept(client: &Host, remotes: [SocketAddr; 2]) {
    for (remote, own) in remotes.into_iter().zip(client.addresses()) {
        assert_eq!(source(client, remote), [own; 2], "{client:?} to {remote}");
    }
}

/// How a connection and a datagram fail, and after how long.
fn failures(client: &Host, remote: SocketAddr) -> [(ErrorKind, Duration); 2] {
    let tcp = || HttpClient::new(remote).timeout(SILENCE).connect().map(drop);
    let udp = || {
        let socket = UdpClient::bind(remote, None)?;
        socket.set_timeout(SILENCE)?;
        socket.ask("hostname").map(drop)
    };
    let fails = |attempt: Result<(), LabError>, began: Instant| match attempt {
        Err(LabError::Io { source, .. }) => (source.kind(), began.elapsed()),
        other => {
            assert!(other.is_err(), "{client:?} to {remote} was answered");
            (ErrorKind::Other, began.elapsed())
        }
    };
    let began = Instant::now();
    let tcp = fails(client.run(tcp).unwrap(), began);
    let began = Instant::now();
    [tcp, fails(client.run(udp).unwrap(), began)]
}

/// Connections and datagrams must be refused, and soon.
fn refused(client: &Host, remotes: [SocketAddr; 2]) {
    for remote in remotes {
        for (kind, took) in failures(client, remote) {
            let what = format!("{client:?} to {remote}");
            assert_eq!(kind, ErrorKind::ConnectionRefused, "{what}");
            assert!(took < REFUSED_MAX, "{what}: {took:?}");
        }
    }
}

/// Connections and datagrams must get no answer at all.
fn dropped(client: &Host, remotes: [SocketAddr; 2]) {
    for remote in remotes {
        let [(tcp, _), (udp, _)] = failures(client, remote);
        assert_eq!(tcp, ErrorKind::TimedOut, "{client:?} to {remote}");
        assert_eq!(udp, ErrorKind::WouldBlock, "{client:?} to {remote}");
    }
}

/// Sockets of a node must be told at once that they may not, where pods would wait in vain.
fn barred(client: &Host, remotes: [SocketAddr; 2]) {
    for remote in remotes {
        for (kind, took) in failures(client, remote) {
            let what = format!("{client:?} to {remote}");
            assert_eq!(kind, ErrorKind::PermissionDenied, "{what}");
            assert!(took < REFUSED_MAX, "{what}: {took:?}");
        }
    }
}

/// Nobody must answer; whether it is said or not is another's to decide.
fn unreachable(client: &Host, remotes: [SocketAddr; 2]) {
    for remote in remotes {
        failures(client, remote);
    }
}

/// A Service under the policy Local whose health load balancers ask for at [`HEALTH_PORT`].
fn with_health_checks(mut vip: Vip) -> Vip {
    vip.service = vip.service.load_balancer(&[]);
    let vip = with_spec(vip, "externalTrafficPolicy: Local");
    with_spec(vip, &format!("healthCheckNodePort: {HEALTH_PORT}"))
}

/// A health check must be answered with this status before long, at both of the node's addresses;
/// none stands for a port that nobody listens at.
fn health_is(client: &Host, node: &Host, status: Option<u16>) {
    for remote in at(node, HEALTH_PORT) {
        let asked = Instant::now();
        loop {
            let answer = client.http_get(remote, "/").ok().map(|reply| reply.status);
            if answer == status {
                break;
            }
            assert!(
                asked.elapsed() < HEALTH_MAX,
                "{remote}: {answer:?} and not {status:?}"
            );
            pause(Duration::from_millis(10));
        }
    }
}

/// Writes a Service with endpoints; for use before agents run.
fn publish_with(cluster: &Cluster, vip: &Vip, endpoints: &[Endpoint]) {
    let manifests = &cluster.manifests;
    manifests.service(&vip.service).unwrap();
    manifests.endpoints_with(&vip.service, endpoints).unwrap();
}

/// The Service `web` at 10.0.1.1 with a node port for TCP and UDP.
fn with_node_port() -> Vip {
    let mut vip = Vip::new("web", 1);
    vip.service = vip.service.node_port(NODE_PORT);
    vip
}

/// The same Service with one more line in its spec.
fn with_spec(mut vip: Vip, line: &str) -> Vip {
    vip.service = vip.service.spec(line);
    vip
}
