// SPDX-License-Identifier: MIT OR Apache-2.0
//! `--socket-lb=all`: sockets of pods are told a backend when they connect, but for pods left out.
//!
//! What a socket was told is in its own kernel's list of connections: the backend, where a program has
//! led it there, and the frontend, where packets are rewritten.
//! Sockets of UDP that are connected end with their backend, there and on nodes.
//! **Invariant:** a pod is served either way; which way is nothing that it can see by the answer.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use lb_lab::{Host, Lab, Pod};

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

/// A process that asks over one connected socket of UDP whenever it is told to.
struct Asker {
    child: Child,
    told: BufReader<ChildStdout>,
}

impl Asker {
    fn start(host: &Host, remote: SocketAddr) -> Self {
        let script = format!(
            "exec 3<>/dev/udp/{}/{}; while read -r question; do \
             if printf %s \"$question\" >&3 && answer=$(timeout 5 dd bs=512 count=1 status=none <&3); \
             then echo \"$answer\"; else echo ended; fi; done",
            remote.ip(),
            remote.port()
        );
        let mut command = host.command("bash").unwrap();
        let mut child = command
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let told = BufReader::new(child.stdout.take().unwrap());
        Self { child, told }
    }

    /// The answer, or `ended`.
    fn ask(&mut self) -> String {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(b"hostname\n").unwrap();
        let mut answer = String::new();
        self.told.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_connected_socket_of_udp_ends_with_its_backend_in_pods_and_on_nodes() {
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::new(Lab::builder());
    let client = cluster.web(0, "client");
    let _pause = Pause::start(&client);
    let first = cluster.web(1, "first");
    let second = cluster.web(1, "second");
    let vip = Vip::new("web", 1);
    cluster.publish(&vip, &[&first]);
    cluster.start_agents_with(&["--socket-lb", "all"]);
    wait_for_namespaces(&cluster, 1);
    let node = cluster.node(0).clone();
    let mut askers = [
        ("a pod", Asker::start(&client, vip.v4)),
        ("a node", Asker::start(&node, vip.v4)),
        ("a pod, IPv6", Asker::start(&client, vip.v6)),
        ("a node, IPv6", Asker::start(&node, vip.v6)),
    ];
    let mut direct = Asker::start(&client, own(&first, vip.v4, TARGET));
    for (who, asker) in &mut askers {
        assert_eq!(asker.ask(), "first", "{who}");
    }
    assert_eq!(direct.ask(), "first");
    // The server lives on: nothing but the agent's doing ends a socket.
    cluster.set_endpoints(&vip, &[&second]);
    pause(Duration::from_secs(1));
    for (who, asker) in &mut askers {
        assert_eq!(asker.ask(), "ended", "{who}");
    }
    assert_eq!(direct.ask(), "first", "it dialled the pod itself");
    let mut anew = Asker::start(&client, vip.v4);
    assert_eq!(anew.ask(), "second");
    // A change that takes nothing away ends nothing.
    cluster.set_endpoints(&vip, &[&second, &first]);
    pause(Duration::from_secs(1));
    assert_eq!(anew.ask(), "second");
}
