// SPDX-License-Identifier: MIT OR Apache-2.0
//! What goes takes nothing with it that belongs to another.
//!
//! A node port, a Service that shares its pods with another, a backend whose id is given again.
//! **Invariant:** the neighbour is asked before and after, on the same connection where there is
//! one. Read next: `updates.rs`, where endpoints come and go.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::{IpAddr, SocketAddr};

use lb_lab::{Builder, Host, HttpClient, HttpConnection, Place, UdpClient};
use serde_json::Value;

use crate::cluster::{Cluster, Vip, get, in_default_and_routed};
use crate::load::assert_no_retransmission;
use crate::nodeport::{node_address, refused};

const NODE_PORT: u16 = 30_060;

fn connect(client: &Host, remote: SocketAddr) -> HttpConnection {
    let connect = || HttpClient::new(remote).connect();
    client.run(connect).unwrap().unwrap()
}

/// Asserts that an open connection is still whole.
fn assert_alive(connections: &mut [HttpConnection], name: &str) {
    for connection in connections {
        assert_eq!(connection.get("/").unwrap().text(), name);
        connection.upload(200_000).unwrap();
        connection.download(200_000).unwrap();
    }
}

#[test]
fn a_node_port_that_is_removed_is_refused_at_once_and_its_neighbours_are_not() {
    in_default_and_routed(remove_a_node_port);
}

fn remove_a_node_port(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pod = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let [going, staying] = [("going", 1), ("staying", 2)].map(|(name, number)| {
        let mut vip = Vip::new(name, number);
        vip.service = vip.service.node_port(NODE_PORT + u16::from(number));
        vip
    });
    cluster.publish(&going, &[&far]);
    cluster.publish(&staying, &[&near]);
    cluster.start_agents();
    let at = |number| [0, 1].map(|family| node_address(&cluster, 0, family, NODE_PORT + number));
    let (gone, stays) = (at(1), at(2));
    let sockets = outside
        .run(|| gone.map(|remote| UdpClient::bind(remote, Some(40_060))))
        .unwrap()
        .map(Result::unwrap);
    let mut open: Vec<_> = gone.map(|remote| connect(&outside, remote)).into();
    let mut neighbours: Vec<_> = stays.map(|remote| connect(&outside, remote)).into();
    for (socket, remote) in sockets.iter().zip(gone) {
        assert_eq!(get(&outside, remote, "/").text(), "far");
        assert_eq!(socket.ask("hostname").unwrap(), "far");
    }
    let without = Vip::new("going", 1);
    cluster.change(|manifests| manifests.service(&without.service));
    for (socket, remote) in sockets.iter().zip(gone) {
        refused(&outside, remote);
        refused(&pod, remote);
        assert!(socket.ask("hostname").is_err(), "{remote} over UDP");
        assert!(outside.udp_ask(remote, "hostname").is_err());
    }
    for remote in without.remotes() {
        assert_eq!(get(&pod, remote, "/").text(), "far", "its cluster address");
        assert_eq!(pod.udp_ask(remote, "hostname").unwrap(), "far");
    }
    for remote in stays.into_iter().chain(staying.remotes()) {
        let client: &Host = if stays.contains(&remote) {
            &outside
        } else {
            &pod
        };
        assert_eq!(get(client, remote, "/").text(), "near");
        assert_eq!(client.udp_ask(remote, "hostname").unwrap(), "near");
    }
    assert_alive(&mut neighbours, "near");
    assert_alive(&mut open, "far");
}

#[test]
fn of_two_services_with_the_same_pods_one_outlives_the_other() {
    in_default_and_routed(|builder| {
        let mut cluster = Cluster::new(builder);
        let client = cluster.pod(0, "client");
        let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
        let [going, staying] =
            [("going", 1), ("staying", 2)].map(|(name, number)| Vip::new(name, number));
        for server in [&near, &far] {
            if cluster.agents.is_empty() {
                cluster.publish(&going, &[server]);
                cluster.publish(&staying, &[server]);
                cluster.start_agents();
            } else {
                // The last round has deleted one.
                cluster.set_endpoints(&staying, &[server]);
                cluster.change(|manifests| {
                    manifests.endpoints(&going.service, &[server])?;
                    manifests.service(&going.service)
                });
            }
            let capture = client.capture("eth0").unwrap();
            let mut of_going: Vec<_> = going.remotes().map(|it| connect(&client, it)).into();
            let mut of_staying: Vec<_> = staying.remotes().map(|it| connect(&client, it)).into();
            let sockets = staying.remotes().map(|remote| {
                let bind = || UdpClient::bind(remote, Some(40_061));
                client.run(bind).unwrap().unwrap()
            });
            let whole = |of_staying: &mut [HttpConnection]| {
                assert_alive(of_staying, server.name());
                for (socket, remote) in sockets.iter().zip(staying.remotes()) {
                    assert_eq!(socket.ask("hostname").unwrap(), server.name());
                    assert_eq!(get(&client, remote, "/").text(), server.name());
                }
            };
            assert_alive(&mut of_going, server.name());
            whole(&mut of_staying);
            cluster.change(|manifests| manifests.delete(&going.service));
            whole(&mut of_staying);
            // TCP to a pod that is still there goes on, also without its Service.
            assert_alive(&mut of_going, server.name());
            assert_no_retransmission(&capture.stop().unwrap());
        }
    });
}

/// The ids of the backends with this address, over all services.
fn backend_ids(cluster: &Cluster, address: IpAddr) -> Vec<u64> {
    let map = if address.is_ipv4() {
        "BACKENDS_V4"
    } else {
        "BACKENDS_V6"
    };
    let path = cluster.node(0).bpffs().join(map);
    let dump = format!("bpftool -j map dump pinned {}", path.display());
    let dump: Value = serde_json::from_str(&cluster.node(0).output(&dump).unwrap()).unwrap();
    let octets: Vec<u64> = match address {
        IpAddr::V4(address) => address.octets().map(u64::from).into(),
        IpAddr::V6(address) => address.octets().map(u64::from).into(),
    };
    let of_address = |entry: &&Value| {
        let found = entry["formatted"]["value"]["address"].as_array().unwrap();
        found
            .iter()
            .map(|octet| octet.as_u64().unwrap())
            .eq(octets.iter().copied())
    };
    let entries = dump.as_array().unwrap().iter().filter(of_address);
    entries
        .map(|entry| entry["formatted"]["key"].as_u64().unwrap())
        .collect()
}

#[test]
fn a_client_with_affinity_never_follows_an_id_to_another_services_backend() {
    in_default_and_routed(reuse_an_id);
}

fn reuse_an_id(builder: Builder) {
    let mut cluster = Cluster::new(builder);
    let client = cluster.pod(0, "client");
    let [near, far, third] =
        [(0, "near"), (1, "far"), (0, "third")].map(|(node, name)| cluster.web(node, name));
    let [kept, other] = [("kept", 1), ("other", 2)].map(|(name, number)| {
        let mut vip = Vip::new(name, number);
        vip.service = vip.service.spec("sessionAffinity: ClientIP");
        vip
    });
    cluster.publish(&kept, &[&near]);
    cluster.publish(&other, &[]);
    cluster.start_agents();
    let assert_kept_by = |vip: &Vip, name: &str, when: &str| {
        for remote in vip.remotes() {
            for _ in 0..5 {
                let (tcp, udp) = (
                    get(&client, remote, "/"),
                    client.udp_ask(remote, "hostname"),
                );
                assert_eq!(
                    (tcp.text(), &*udp.unwrap()),
                    (name, name),
                    "{when}: {remote}"
                );
            }
        }
    };
    assert_kept_by(&kept, "near", "the only endpoint");
    let before = near
        .addresses()
        .map(|address| backend_ids(&cluster, address));
    cluster.set_endpoints(&kept, &[&far]);
    cluster.set_endpoints(&other, &[&third]);
    for (address, before) in third.addresses().into_iter().zip(before) {
        let ids = backend_ids(&cluster, address);
        let reused = ids.iter().any(|id| before.contains(id));
        assert!(
            reused,
            "no id was given again, so this shows nothing: {before:?} {ids:?}"
        );
    }
    assert_kept_by(&kept, "far", "its endpoint's id is another Service's");
    assert_kept_by(&other, "third", "it has an id that was another Service's");
    // The first one is back, with another id; the client stays where it went.
    cluster.set_endpoints(&kept, &[&near, &far]);
    assert_kept_by(&kept, "far", "it was kept there");
    // Ids within one Service: whoever has the id of the one that was removed is not it.
    cluster.set_endpoints(&kept, &[&near]);
    cluster.set_endpoints(&kept, &[&near, &third]);
    let names = kept
        .remotes()
        .map(|remote| get(&client, remote, "/").text().to_owned());
    for (remote, name) in kept.remotes().into_iter().zip(names) {
        for _ in 0..5 {
            assert_eq!(get(&client, remote, "/").text(), name, "{remote}");
        }
    }
}
