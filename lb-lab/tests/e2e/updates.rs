// SPDX-License-Identifier: MIT OR Apache-2.0
//! Endpoints come and go while connections are made and while others last.
//!
//! A removed pod's server goes on for a while, as a terminating pod's does.
//! **Invariant:** times are the client's own: what began after a change was applied must
//! follow it. Read next: `load.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::time::{Duration, Instant};

use lb_lab::{Builder, Endpoint, HttpClient, Pod, UdpClient};

use crate::cluster::{Cluster, Vip, in_default_and_routed, pause, soak};
use crate::load::{assert_no_failure, assert_no_retransmission, during};

in_every_topology!(no_request_fails_and_none_reaches_a_removed_backend_while_endpoints_come_and_go);

/// For how long a backend was out, by the clock of the clients: applied until given back.
struct Absence {
    name: String,
    from: Instant,
    until: Instant,
}

/// Takes one pod after the other out and in again.
fn take_turns(cluster: &mut Cluster, vip: &Vip, pods: &[Pod], rounds: usize) -> Vec<Absence> {
    let mut absences = Vec::new();
    for round in 0..rounds {
        let leaving = &pods[round % pods.len()];
        let staying: Vec<_> = pods
            .iter()
            .filter(|pod| pod.name() != leaving.name())
            .collect();
        if round % 2 == 0 {
            cluster.set_endpoints(vip, &staying);
        } else {
            // As Kubernetes does it: first terminating, later gone.
            let mut endpoints: Vec<_> = staying.iter().map(|pod| Endpoint::from(*pod)).collect();
            endpoints.push(Endpoint::from(leaving).terminating());
            cluster.change(|manifests| manifests.endpoints_with(&vip.service, &endpoints));
        }
        let from = Instant::now();
        pause(Duration::from_millis(60));
        if round % 2 == 1 {
            cluster.set_endpoints(vip, &staying);
        }
        let until = Instant::now();
        absences.push(Absence {
            name: leaving.name().to_owned(),
            from,
            until,
        });
        cluster.set_endpoints(vip, &pods.iter().collect::<Vec<_>>());
    }
    absences
}

fn no_request_fails_and_none_reaches_a_removed_backend_while_endpoints_come_and_go(
    builder: Builder,
) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let pods =
        [(0, "web-a"), (0, "web-b"), (1, "web-c")].map(|(node, name)| cluster.web(node, name));
    let vip = Vip::new("hostnames", 175);
    cluster.publish(&vip, &[&pods[0], &pods[1], &pods[2]]);
    cluster.start_agents();
    let capture = client.capture("eth0").unwrap();
    let (absences, requests) = during(&client, vip.remotes(), 4, || {
        take_turns(&mut cluster, &vip, &pods, soak(9))
    });
    assert_no_failure(&requests);
    assert_no_retransmission(&capture.stop().unwrap());
    assert!(requests.len() > 500, "only {} requests", requests.len());
    for absence in &absences {
        let meanwhile = |request: &&crate::load::Request| {
            request.began >= absence.from && request.began < absence.until
        };
        let during: Vec<_> = requests.iter().filter(meanwhile).collect();
        assert!(during.len() > 4, "only {} requests", during.len());
        let strays = during.iter().filter(|request| request.is_by(&absence.name));
        assert_eq!(strays.count(), 0, "{} was removed", absence.name);
    }
    for pod in &pods {
        let served = requests.iter().filter(|request| request.is_by(pod.name()));
        assert!(served.count() > 10, "{pod:?} never came back");
    }
}

#[test]
fn a_tcp_connection_to_a_removed_backend_goes_on() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let client = cluster.pod(0, "client");
        let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
        let vip = Vip::new("web", 1);
        for (leaving, staying) in [(&near, &far), (&far, &near)] {
            cluster.publish(&vip, &[leaving]);
            if cluster.agents.is_empty() {
                cluster.start_agents();
            } else {
                cluster.set_endpoints(&vip, &[leaving, staying]);
                cluster.set_endpoints(&vip, &[leaving]);
            }
            let connect = || {
                vip.remotes()
                    .map(|remote| HttpClient::new(remote).connect())
            };
            let mut connections = client.run(connect).unwrap().map(Result::unwrap);
            for connection in &mut connections {
                assert_eq!(connection.get("/").unwrap().text(), leaving.name());
            }
            cluster.set_endpoints(&vip, &[staying]);
            for (connection, remote) in connections.iter_mut().zip(vip.remotes()) {
                let others = crate::load::sequential(&client, remote, 100);
                assert_no_failure(&others);
                assert!(others.iter().all(|request| request.is_by(staying.name())));
                assert_eq!(connection.get("/").unwrap().text(), leaving.name());
                connection.upload(1 << 20).unwrap();
                connection.download(1 << 20).unwrap();
            }
            // Also when the whole Service is gone.
            cluster.change(|manifests| manifests.delete(&vip.service));
            for connection in &mut connections {
                assert_eq!(connection.get("/").unwrap().text(), leaving.name());
            }
        }
    });
}

#[test]
fn a_udp_client_with_a_fixed_port_moves_at_once_when_the_only_backend_is_replaced() {
    in_default_and_routed(replace_the_only_backend);
}

fn replace_the_only_backend(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let pods =
        [(0, "near"), (1, "far"), (0, "near-too")].map(|(node, name)| cluster.web(node, name));
    let vip = Vip::new("dns", 53);
    cluster.publish(&vip, &[&pods[2]]);
    cluster.start_agents();
    let bind = || {
        vip.remotes()
            .map(|remote| UdpClient::bind(remote, Some(40_053)))
    };
    let sockets = client.run(bind).unwrap().map(Result::unwrap);
    for socket in &sockets {
        assert_eq!(socket.ask("hostname").unwrap(), "near-too");
    }
    for _ in 0..soak(2) {
        for pod in &pods {
            cluster.set_endpoints(&vip, &[pod]);
            for socket in &sockets {
                // The very first datagram: DNS clients wait seconds before they repeat one.
                assert_eq!(socket.ask("hostname").unwrap(), pod.name());
                assert_eq!(socket.ask("hostname").unwrap(), pod.name());
            }
        }
    }
}
