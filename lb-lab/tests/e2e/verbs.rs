// SPDX-License-Identifier: MIT OR Apache-2.0
//! The verbs that look at a node, asked while no agent runs: what they tell is what was served.
//!
//! **Invariant:** nothing but the pinned maps and the manifests is there to be told from.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::SocketAddr;
use std::process::Output;

use lb_lab::agent::find_binary;
use lb_lab::{HttpClient, HttpConnection, Lab, Place};
use serde_json::Value;

use crate::cluster::{Cluster, TARGET, Vip, own};
use crate::common::can_run;
use crate::inspect::bpftool;

const NODE_PORT: u16 = 30_080;

/// The agent's program, run on node 0 with these words behind the verb.
fn ask(cluster: &Cluster, verb: &str, words: &[&str]) -> Output {
    let node = cluster.node(0);
    let mut command = node.command(find_binary().unwrap()).unwrap();
    command.arg(verb).arg("--bpffs").arg(node.bpffs());
    command.arg("--manifests").arg(cluster.manifests.dir());
    command.args(["--node", node.name()]).args(words);
    if verb == "check" {
        command.arg("--cgroup").arg(node.cgroup());
    }
    command.output().unwrap()
}

fn text(cluster: &Cluster, verb: &str, words: &[&str]) -> String {
    let output = ask(cluster, verb, words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{verb}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(cluster: &Cluster, verb: &str, words: &[&str]) -> Value {
    let words = [words, &["-o", "json"]].concat();
    serde_json::from_str(&text(cluster, verb, &words)).unwrap()
}

/// The rows of a list whose fields have these values.
fn rows<'a>(told: &'a Value, list: &str, wanted: &[(&str, Value)]) -> Vec<&'a Value> {
    let rows = told[list].as_array().unwrap().iter();
    let fits = |row: &&Value| wanted.iter().all(|(field, value)| row[*field] == *value);
    rows.filter(fits).collect()
}

/// A connection of `client`, kept open after one answer.
fn keep(client: &lb_lab::Host, remote: SocketAddr) -> (HttpConnection, SocketAddr) {
    client
        .run(|| {
            let mut open = HttpClient::new(remote).connect().unwrap();
            open.get("/").unwrap();
            let local = open.stream().local_addr().unwrap();
            (open, local)
        })
        .unwrap()
}

#[test]
fn a_dead_agents_maps_tell_what_is_served() {
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::new(Lab::builder());
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let client = cluster.pod(0, "client");
    let mut web = Vip::new("web", 1);
    web.service = web.service.node_port(NODE_PORT);
    cluster.publish(&web, &[&near, &far]);
    let lone = Vip::new("lone", 2);
    cluster.publish(&lone, &[&far]);
    let empty = Vip::new("empty", 3);
    cluster.publish(&empty, &[]);
    cluster.start_agents();
    let process = cluster.node(0).process();
    // A pod by both families, a client outside by a node port, a process of the node.
    let open = web.remotes().map(|remote| keep(&client, remote));
    let node_port = SocketAddr::new(cluster.node(0).addresses()[0], NODE_PORT);
    let from_outside = [keep(&outside, node_port), keep(&outside, node_port)];
    let at_socket = keep(&process, lone.v4);
    assert!(client.http_get(empty.v4, "/").is_err());
    cluster.end_agents(true);

    services_are_told(&cluster, &web, &empty);
    backends_are_named(&cluster, &web, [&near, &far]);
    connections_are_told(&cluster, &web, &open.each_ref().map(|(_, local)| *local));
    let ports = from_outside.each_ref().map(|(_, local)| local.port());
    node_port_and_socket_are_told(&cluster, ports, at_socket.1, &lone);
    counters_and_maps_are_told(&cluster);
    a_changed_slot_is_found(&cluster);
    drop((open, from_outside, at_socket));
}

fn services_are_told(cluster: &Cluster, web: &Vip, empty: &Vip) {
    let services = json(cluster, "services", &["--namespace", "default"]);
    for remote in web.remotes() {
        let wanted = [
            ("address", remote.ip().to_string().into()),
            ("protocol", "TCP".into()),
        ];
        let [row] = rows(&services, "frontends", &wanted)[..] else {
            unreachable!("{services}");
        };
        assert_eq!(row["service"], "default/web");
        assert_eq!(
            (&row["kind"], &row["port"]),
            (&"ClusterIP".into(), &80.into())
        );
        assert_eq!(
            (&row["backends"], &row["localBackends"]),
            (&2.into(), &0.into())
        );
        // Cluster address and node port share the counters; the one of IPv4 was dialled three times.
        let dialled = if remote.is_ipv4() { 3 } else { 1 };
        assert_eq!(row["opened"], dialled, "{row}");
    }
    let node_ports = rows(&services, "frontends", &[("kind", "NodePort".into())]);
    assert!(node_ports.iter().all(|row| row["service"] == "default/web"));
    let refused = text(
        cluster,
        "services",
        &["--name", "empty", "--address", &empty.v4.to_string()],
    );
    let refused: Vec<&str> = refused.lines().collect();
    assert!(
        refused[1].starts_with("default/empty tcp-80 "),
        "{refused:?}"
    );
}

fn backends_are_named(cluster: &Cluster, web: &Vip, pods: [&lb_lab::Pod; 2]) {
    let told = json(cluster, "backends", &["--service", "default/web"]);
    assert_eq!(rows(&told, "backends", &[]).len(), 8, "{told}");
    for (number, pod) in pods.into_iter().enumerate() {
        for like in web.remotes() {
            let address = own(pod, like, TARGET).ip().to_string();
            let wanted = [("address", address.into()), ("protocol", "TCP".into())];
            let [row] = rows(&told, "backends", &wanted)[..] else {
                unreachable!("{told}");
            };
            assert_eq!(
                (&row["pod"], &row["node"]),
                (&pod.name().into(), &cluster.node(number).name().into())
            );
            assert_eq!(
                (&row["local"], &row["state"]),
                (&(number == 0).into(), &"serving".into())
            );
            assert_eq!((&row["slots"], &row["port"]), (&1.into(), &TARGET.into()));
        }
    }
    let flows = rows(&told, "backends", &[("protocol", "TCP".into())]);
    let flows: u64 = flows.iter().map(|row| row["flows"].as_u64().unwrap()).sum();
    assert_eq!(flows, 4, "two of a pod, two from outside: {told}");
}

fn connections_are_told(cluster: &Cluster, web: &Vip, clients: &[SocketAddr; 2]) {
    let told = json(cluster, "connections", &["--service", "default/web"]);
    for (client, remote) in clients.iter().zip(web.remotes()) {
        let wanted = [
            ("clientAddress", client.ip().to_string().into()),
            ("clientPort", client.port().into()),
        ];
        let [row] = rows(&told, "connections", &wanted)[..] else {
            unreachable!("{told}");
        };
        assert_eq!(row["frontendAddress"], remote.ip().to_string());
        assert_eq!(
            (&row["state"], &row["protocol"]),
            (&"established".into(), &"TCP".into())
        );
        assert_eq!(row["backendPort"], TARGET);
        // A request and an answer, and what it takes to open.
        for field in ["sentPackets", "receivedPackets"] {
            assert!(row[field].as_u64().unwrap() >= 2, "{field} of {row}");
        }
        for field in ["sentBytes", "receivedBytes"] {
            assert!(row[field].as_u64().unwrap() > 100, "{field} of {row}");
        }
    }
    let total = &told["total"];
    assert_eq!(
        (&total["established"], &total["sockets"]),
        (&4.into(), &0.into())
    );
    let limited = text(cluster, "connections", &["--limit", "1"]);
    assert!(limited.contains("--limit 1"), "{limited}");
}

/// Connections of these client ports to the node port, and one of a process to `lone`.
fn node_port_and_socket_are_told(
    cluster: &Cluster,
    ports: [u16; 2],
    at_socket: SocketAddr,
    lone: &Vip,
) {
    let outside_rows = json(cluster, "connections", &["--service", "default/web"]);
    for port in ports {
        let of_client = [("clientPort", port.into())];
        let [row] = rows(&outside_rows, "connections", &of_client)[..] else {
            unreachable!("{outside_rows}");
        };
        assert_eq!(row["frontendPort"], NODE_PORT);
        // Only what goes to another node gets another source.
        assert_eq!(row["pod"] == "far", row["masqueradePort"].is_u64(), "{row}");
    }
    let sockets = json(cluster, "connections", &["--service", "default/lone"]);
    let [row] = rows(&sockets, "sockets", &[])[..] else {
        unreachable!("{sockets}");
    };
    assert_eq!(row["clientPort"], at_socket.port());
    assert_eq!(
        (&row["pod"], &row["frontendAddress"]),
        (&"far".into(), &lone.v4.ip().to_string().into())
    );
}

fn counters_and_maps_are_told(cluster: &Cluster) {
    let told = json(cluster, "stats", &[]);
    let [refused] = rows(&told, "reasons", &[("name", "no-backend".into())])[..] else {
        unreachable!("{told}");
    };
    assert!(refused["count"].as_u64().unwrap() >= 1, "{refused}");
    let [flows] = rows(&told, "maps", &[("name", "CONNS_V4".into())])[..] else {
        unreachable!("{told}");
    };
    // Two entries for each flow, four if it is masqueraded.
    assert!(flows["entries"].as_u64().unwrap() >= 6, "{flows}");
    let [masquerade] = rows(&told, "masquerades", &[])[..] else {
        unreachable!("{told}");
    };
    assert_eq!(
        masquerade["flows"], 1,
        "one of two from outside goes to the other node"
    );
    let text = text(cluster, "stats", &[]);
    assert!(
        text.contains("The frontend exists and has no backend"),
        "{text}"
    );
}

/// What bpftool has changed in a list is found, and told with the name of its Service.
fn a_changed_slot_is_found(cluster: &Cluster) {
    let whole = json(cluster, "check", &[]);
    assert_eq!(whole["differences"], Value::Array(Vec::new()));
    let node = cluster.node(0);
    let slots = node.bpffs().join("SLOTS");
    let dump = bpftool(node, &format!("map dump pinned {}", slots.display()));
    let told = json(cluster, "backends", &["--service", "default/web"]);
    let wanted = [("protocol", "TCP".into()), ("pod", "near".into())];
    let near = rows(&told, "backends", &wanted)[0];
    let entry = dump.as_array().unwrap().iter();
    let entry = entry.map(|entry| &entry["formatted"]);
    let mut of_near = entry.filter(|entry| entry["value"] == near["backendId"]);
    let key = &of_near.next().unwrap()["key"];
    let number = |field: &str| u32::try_from(key[field].as_u64().unwrap()).unwrap();
    let (list, slot) = (number("list"), number("slot"));
    let key = [number("service"), list | slot << 16].map(u32::to_ne_bytes);
    let decimal = |bytes: &[u8]| -> String {
        let bytes: Vec<String> = bytes.iter().map(u8::to_string).collect();
        bytes.join(" ")
    };
    let (key, value) = (
        decimal(key.as_flattened()),
        decimal(&4_000_000_u32.to_ne_bytes()),
    );
    let update = format!(
        "bpftool map update pinned {} key {key} value {value}",
        slots.display()
    );
    node.output(&update).unwrap();

    let output = ask(cluster, "check", &["-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [row] = rows(&found, "differences", &[])[..] else {
        unreachable!("{found}");
    };
    assert_eq!(
        (&row["service"], &row["object"]),
        (&"default/web".into(), &"cluster list".into())
    );
    let address = near["address"].as_str().unwrap();
    let detail = row["detail"].as_str().unwrap();
    assert!(
        detail.contains("backend 4000000, which is not there"),
        "{detail}"
    );
    assert!(
        detail.contains(address) && detail.contains("0 slots instead of 1"),
        "{detail}"
    );
    // A person reads the same.
    let text = String::from_utf8(ask(cluster, "check", &[]).stdout).unwrap();
    assert!(
        text.contains("default/web") && text.contains("cluster list"),
        "{text}"
    );
    // Mended, nothing is left to tell.
    let id = u32::try_from(near["backendId"].as_u64().unwrap()).unwrap();
    let value = decimal(&id.to_ne_bytes());
    let update = format!(
        "bpftool map update pinned {} key {key} value {value}",
        slots.display()
    );
    node.output(&update).unwrap();
    assert!(ask(cluster, "check", &[]).status.success());
}

#[test]
fn a_node_without_maps_says_what_to_do() {
    if !can_run() {
        return;
    }
    let cluster = Cluster::of_nodes(Lab::builder(), 1);
    for verb in ["services", "backends", "connections", "stats", "check"] {
        let output = ask(&cluster, verb, &[]);
        assert_eq!(output.status.code(), Some(1), "{verb}");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(
            errors.contains("nothing is pinned there; start `lb-agent run`"),
            "{errors}"
        );
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}
