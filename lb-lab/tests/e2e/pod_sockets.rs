// SPDX-License-Identifier: MIT OR Apache-2.0
//! `--socket-lb=all`: sockets of pods are told a backend when they connect, but for pods left out.
//!
//! What a socket was told is in its own kernel's list of connections: the backend, where a program has
//! led it there, and the frontend, where packets are rewritten.
//! **Invariant:** a pod is served either way; which way is nothing that it can see by the answer.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::{IpAddr, SocketAddr};
use std::process::Child;
use std::time::{Duration, Instant};

use lb_lab::{Lab, Pod};

use crate::cluster::{Cluster, TARGET, Vip, own, pause};
use crate::common::can_run;
use crate::inspect::entries;

/// How long the agent may take to find a pod or to follow its object.
const FOUND_MAX: Duration = Duration::from_secs(15);

/// Connects from a process of a pod; gives the answer's last line and whom the socket talks to.
fn dial(pod: &Pod, remote: SocketAddr) -> (String, Vec<SocketAddr>) {
    let script = format!(
        "exec 3<>/dev/tcp/{}/{}; cat /proc/self/net/tcp; \
         printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3",
        remote.ip(),
        remote.port()
    );
    let mut command = pod.command("bash").unwrap();
    let done = command.args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    let peers = text.lines().filter_map(established).collect();
    let answer = text.lines().last().unwrap_or_default().trim();
    (answer.to_owned(), peers)
}

/// The peer of an established connection of IPv4, from a line of the kernel's list.
fn established(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(2);
    let (address, port) = fields.next()?.split_once(':')?;
    if fields.next()? != "01" {
        return None;
    }
    let address = u32::from_str_radix(address, 16).ok()?;
    let address = IpAddr::from(address.to_ne_bytes());
    Some(SocketAddr::new(
        address,
        u16::from_str_radix(port, 16).ok()?,
    ))
}

/// What keeps a pod's namespace, as the first container of every pod does.
struct Pause(Child);

impl Pause {
    fn start(pod: &Pod) -> Self {
        let mut command = pod.command("sleep").unwrap();
        Self(command.arg("600").spawn().unwrap())
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn wait_for_namespaces(cluster: &Cluster, count: usize) {
    let begun = Instant::now();
    while entries(cluster.node(0), "NAMESPACES").len() != count {
        let log = cluster.agents[0].log();
        assert!(
            begun.elapsed() < FOUND_MAX,
            "not {count} namespaces:\n{log}"
        );
        pause(Duration::from_millis(20));
    }
}

fn pod_object(name: &str, word: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: default\n  uid: {name}\n  \
         annotations: {{lb-agent/socket-lb: \"{word}\"}}\n"
    )
}

#[test]
fn pods_are_led_to_a_backend_at_their_sockets_unless_they_or_their_namespace_say_no() {
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::new(Lab::builder());
    let client = cluster.web(0, "client");
    let mesh = cluster.web(0, "mesh");
    let backend = cluster.web(1, "backend");
    let _pauses = [&client, &mesh].map(Pause::start);
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&backend]);
    let manifests = &cluster.manifests;
    manifests
        .write("pod.yaml", &pod_object("mesh", "off"))
        .unwrap();
    cluster.start_agents_with(&["--socket-lb", "all"]);
    wait_for_namespaces(&cluster, 1);
    let at_backend = vec![own(&backend, vip.v4, TARGET)];
    let answered = |peers| ("backend".to_owned(), peers);
    assert_eq!(dial(&client, vip.v4), answered(at_backend.clone()));
    assert_eq!(dial(&mesh, vip.v4), answered(vec![vip.v4]));

    let manifests = &cluster.manifests;
    manifests
        .write("pod.yaml", &pod_object("mesh", "on"))
        .unwrap();
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n";
    manifests.write("namespace.yaml", namespace).unwrap();
    wait_for_namespaces(&cluster, 2);
    assert_eq!(dial(&mesh, vip.v4), answered(at_backend.clone()));

    let off = "  annotations: {lb-agent/socket-lb: \"off\"}\n";
    let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n{off}");
    cluster
        .manifests
        .write("namespace.yaml", &namespace)
        .unwrap();
    wait_for_namespaces(&cluster, 1);
    assert_eq!(dial(&mesh, vip.v4), answered(vec![vip.v4]));
    // Of this pod there is no object that would say which Namespace it is in.
    assert_eq!(dial(&client, vip.v4), answered(at_backend));
}
