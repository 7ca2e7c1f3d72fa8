// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent ends, comes back, meets bad manifests and new pods; the traffic must not notice.
//!
//! **Invariant:** an agent that is not there is no failure; its programs and tables stay.
//! Read next: `inspect.rs`, which reads the tables and counters.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_common::Reason;
use lb_lab::{Builder, Host, HttpClient, Lab, LabError, UdpClient};

use crate::cluster::{Cluster, Vip, get, in_default_and_routed, pause, soak};
use crate::common::can_run;
use crate::inspect;
use crate::load::{
    assert_even, assert_no_failure, assert_no_retransmission, during, sequential, tally,
};

#[test]
fn traffic_goes_on_without_an_agent_after_sigterm_and_after_sigkill() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let client = cluster.pod(0, "client");
        let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
        let vip = Vip::new("web", 1);
        cluster.publish(&vip, &[&near, &far]);
        for killed in [false, true] {
            cluster.start_agents();
            let ((), requests) = during(&client, vip.remotes(), 2, || {
                for agent in cluster.agents.drain(..) {
                    let status = if killed { agent.kill() } else { agent.stop() };
                    assert_eq!(status.unwrap().success(), !killed);
                }
                pause(Duration::from_millis(300));
            });
            assert_no_failure(&requests);
            for remote in vip.remotes() {
                let requests = sequential(&client, remote, 100);
                assert_no_failure(&requests);
                assert_even(&tally(&requests, remote), 2, 100, "without an agent");
                client.udp_ask(remote, "hostname").unwrap();
            }
        }
    });
}

#[test]
fn a_restarted_agent_takes_over_without_a_failed_request_and_keeps_every_id() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let client = cluster.pod(0, "client");
        let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
        let vips = [
            Vip::new("web", 1),
            Vip::new("other", 2),
            Vip::new("third", 3),
        ];
        for vip in &vips {
            cluster.publish(vip, &[&near, &far]);
        }
        cluster.start_agents();
        // Ids that were given in this order only; a restarted agent sees them all at once.
        cluster.set_endpoints(&vips[0], &[&far]);
        cluster.set_endpoints(&vips[0], &[&near, &far]);
        cluster.change(|manifests| manifests.delete(&vips[1].service));
        let before = inspect::programmed(cluster.node(0));
        assert!(
            before.iter().all(|(_, entries)| !entries.is_empty()),
            "{before:?}"
        );
        let connect = || {
            vips[0]
                .remotes()
                .map(|remote| HttpClient::new(remote).connect())
        };
        let mut connections = client.run(connect).unwrap().map(Result::unwrap);
        let names = connections
            .each_mut()
            .map(|connection| connection.get("/").unwrap().body);
        let capture = client.capture("eth0").unwrap();
        let ((), requests) = during(&client, vips[0].remotes(), 2, || {
            for round in 0..soak(2) {
                for number in 0..2 {
                    let agent = cluster.agents.remove(0);
                    let ended = if round % 2 == 0 {
                        agent.stop()
                    } else {
                        agent.kill()
                    };
                    ended.unwrap();
                    let agent = cluster.start_agent(number);
                    cluster.agents.push(agent);
                }
            }
        });
        assert_no_failure(&requests);
        assert_no_retransmission(&capture.stop().unwrap());
        assert_eq!(inspect::programmed(cluster.node(0)), before);
        for (connection, name) in connections.iter_mut().zip(names) {
            assert_eq!(connection.get("/").unwrap().body, name);
            connection.upload(1 << 20).unwrap();
        }
    });
}

#[test]
fn what_changed_while_the_agent_was_down_is_in_force_once_it_is_ready_again() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let client = cluster.pod(0, "client");
        let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
        let [kept, gone, new] =
            [("kept", 1), ("gone", 2), ("new", 3)].map(|(name, number)| Vip::new(name, number));
        cluster.publish(&kept, &[&near]);
        cluster.publish(&gone, &[&near]);
        cluster.start_agents();
        let sockets = client
            .run(|| {
                kept.remotes()
                    .map(|remote| UdpClient::bind(remote, Some(40_030)))
            })
            .unwrap()
            .map(Result::unwrap);
        for socket in &sockets {
            assert_eq!(socket.ask("hostname").unwrap(), "near");
        }
        for agent in cluster.agents.drain(..) {
            agent.kill().unwrap();
        }
        cluster.manifests.endpoints(&kept.service, &[&far]).unwrap();
        cluster.manifests.delete(&gone.service).unwrap();
        cluster.publish(&new, &[&near]);
        cluster.start_agents();
        for ((kept, new), socket) in kept.remotes().into_iter().zip(new.remotes()).zip(&sockets) {
            assert_eq!(socket.ask("hostname").unwrap(), "far", "the same socket");
            assert_eq!(get(&client, kept, "/").text(), "far");
            assert_eq!(get(&client, new, "/").text(), "near");
        }
        let entries = inspect::entries(cluster.node(0), "FRONTENDS_V4");
        assert_eq!(
            entries.len(),
            4,
            "two Services over TCP and UDP: {entries:#?}"
        );
    });
}

/// Between the moment when a CNI plugin makes a pod's device and the first packet of the pod lies
/// the start of its container, which takes longer than this. The agent needs some 50 ms, most of
/// it the kernel's own waiting for a grace period at each attachment.
const CONTAINER_START: Duration = Duration::from_millis(500);

#[test]
fn a_pod_that_appears_later_is_served_at_its_first_syn() {
    in_default_and_routed(serve_late_pods);
}

fn serve_late_pods(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&near, &far]);
    cluster.start_agents();
    // A node has addresses for some 150 more pods.
    for number in 0..soak(3).min(100) {
        let client = cluster.pod(number % 2, &format!("late-{number}"));
        // No capture: its start would give the agent time that a pod does not.
        pause(CONTAINER_START);
        for remote in vip.remotes() {
            get(&client, remote, "/");
            client.udp_ask(remote, "hostname").unwrap();
        }
    }
    // A new backend too, from its first connection on.
    let client = cluster.pod(0, "client");
    let late = cluster.web(0, "late-web");
    cluster.set_endpoints(&vip, &[&late]);
    for remote in vip.remotes() {
        assert_eq!(get(&client, remote, "/").text(), "late-web");
    }
}

#[test]
fn broken_manifests_are_reported_and_everything_else_goes_on() {
    if !can_run() {
        return;
    }
    let broken = [
        (
            "broken.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: [\n",
        ),
        (
            "unknown.yaml",
            "apiVersion: v1\nkind: Gadget\nmetadata:\n  name: a\n",
        ),
        (
            "invalid.yaml",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: bad\n  namespace: default\nspec:\n  \
             clusterIP: 10.0.1.300\n  clusterIPs: [10.0.1.300]\n  ports:\n  - port: 80\n",
        ),
    ];
    let mut cluster = Cluster::new(Lab::builder());
    let client = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&near]);
    for (name, text) in &broken[..2] {
        cluster.manifests.write(name, text).unwrap();
    }
    cluster.start_agents();
    assert_eq!(get(&client, vip.v4, "/").text(), "near");
    let (name, text) = broken[2];
    cluster.manifests.write(name, text).unwrap();
    cluster.set_endpoints(&vip, &[&far]);
    assert_eq!(get(&client, vip.v6, "/").text(), "far");
    for agent in &cluster.agents {
        let log = agent.log();
        for (name, _) in broken {
            assert!(log.contains(name), "{name} is not in the log:\n{log}");
        }
        assert!(log.contains("10.0.1.300"), "{log}");
    }
    // Mended, it counts.
    let mended = text.replace("300", "30");
    cluster.change(|manifests| manifests.write("invalid.yaml", &mended));
    let entries = inspect::entries(cluster.node(0), "FRONTENDS_V4");
    assert_eq!(entries.len(), 3, "{entries:#?}");
}

/// A connect that must not succeed, and how it ended.
fn refused(client: &Host, remote: SocketAddr) -> ErrorKind {
    let connect = || {
        HttpClient::new(remote)
            .timeout(Duration::from_millis(300))
            .connect()
    };
    match client.run(connect).unwrap() {
        Err(LabError::Io { source, .. }) => source.kind(),
        other => {
            assert!(other.is_err(), "{remote} answered");
            ErrorKind::Other
        }
    }
}

#[test]
fn a_syn_to_a_service_without_endpoints_is_refused_and_counted() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let client = cluster.pod(0, "client");
        let near = cluster.web(0, "near");
        let vip = Vip::new("web", 1);
        cluster.publish(&vip, &[]);
        cluster.start_agents();
        let uplink = cluster.node(0).capture("eth0").unwrap();
        for (remote, expected) in vip.remotes().into_iter().zip(1..) {
            assert_eq!(refused(&client, remote), ErrorKind::ConnectionRefused);
            assert_eq!(
                inspect::reason(cluster.node(0), Reason::NoBackend),
                expected
            );
        }
        let leaked = |from: IpAddr, to: IpAddr| {
            vip.remotes()
                .iter()
                .any(|remote| remote.ip() == from || remote.ip() == to)
        };
        let leaked = uplink
            .stop()
            .unwrap()
            .count(|from, _, to, _| leaked(from, to));
        assert_eq!(leaked, 0, "the SYN went on to the uplink");
        // The first endpoint ends it.
        cluster.set_endpoints(&vip, &[&near]);
        for remote in vip.remotes() {
            assert_eq!(get(&client, remote, "/").text(), "near");
        }
        assert_eq!(inspect::reason(cluster.node(0), Reason::NoBackend), 2);
    });
}
