// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent as the container that its DaemonSet describes: it serves, and can do nothing else.
//!
//! Objects come from the lab's API server, as in a cluster; the program is the one that all tests run,
//! or the image's own (`cargo xtask image --check`).
//! **Invariant:** what the container may do is read of the kernel, and what it may not is tried.
//! Read next: `lb-lab/src/container/mod.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use lb_lab::agent::{READY_MAX, find_binary};
use lb_lab::{Agent, ApiServer, Container, DaemonSet, Host, HttpClient, Lab, LabError, Place, Pod};

use crate::cluster::{Cluster, Vip, get};
use crate::common::can_run;
use crate::nodeport::{ask, node_address};

const NODE_PORT: u16 = 30_080;
/// What the agent may write to: its maps, and what it remembers.
const WRITABLE: [&str; 2] = ["/run/lb-agent/bpf", "/var/lib/lb-agent"];

/// What the chart renders with the values that it comes with.
fn daemon_set() -> DaemonSet {
    let room = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rendered = room.join("../helm/lb-agent/tests/golden/default.yaml");
    DaemonSet::read(&rendered).unwrap()
}

/// A cluster whose first node has the container, and a server that tells it what the manifests say.
struct World {
    cluster: Cluster,
    server: ApiServer,
    container: Container,
    client: Pod,
    outside: Host,
    vips: [Vip; 2],
}

impl World {
    fn new() -> Self {
        let mut cluster = Cluster::new(Lab::builder());
        let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
        let client = cluster.pod(0, "client");
        let pods = [cluster.web(0, "near"), cluster.web(1, "far")];
        let vips = [("near", 1), ("far", 2)].map(|(name, number)| Vip::new(name, number));
        for ((vip, pod), port) in vips.iter().zip(&pods).zip(NODE_PORT..) {
            let mut vip = vip.clone();
            vip.service = vip.service.node_port(port);
            cluster.publish(&vip, &[pod]);
        }
        let start = || ApiServer::start("127.0.0.1:0".parse().unwrap());
        let server = cluster.node(0).netns().run(start).unwrap().unwrap();
        for file in fs::read_dir(cluster.manifests.dir()).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            server.apply_yaml(&text).unwrap();
        }
        let container = Container::new(cluster.node(0), "lb-agent").unwrap();
        Self {
            cluster,
            server,
            container,
            client,
            outside,
            vips,
        }
    }

    fn spawn(&self, daemon_set: &DaemonSet) -> Agent {
        let (program, url) = (find_binary().unwrap(), self.server.url());
        let further = ["--api-server", url.as_str()];
        self.container
            .start(daemon_set, &program, &further)
            .unwrap()
    }

    fn start(&self, daemon_set: &DaemonSet) -> Agent {
        let mut agent = self.spawn(daemon_set);
        agent.wait_ready(READY_MAX).unwrap();
        agent
    }

    /// Every way to every Service, in both families: who answers, and whom the server sees.
    fn assert_served(&self) {
        let node = self.cluster.node(0).process();
        for (vip, name) in self.vips.iter().zip(["near", "far"]) {
            for (remote, source) in vip.remotes().into_iter().zip(self.client.addresses()) {
                let source = source.to_string();
                assert_eq!(ask(&self.client, remote), [name, name, &source, &source]);
                assert_eq!(get(&node, remote, "/").text(), name, "from the node itself");
                assert_eq!(node.udp_ask(remote, "hostname").unwrap(), name);
            }
        }
        for family in [0, 1] {
            let source = self.outside.addresses()[family].to_string();
            let remote = node_address(&self.cluster, 0, family, NODE_PORT);
            assert_eq!(
                ask(&self.outside, remote),
                ["near", "near", &source, &source]
            );
            let remote = node_address(&self.cluster, 0, family, NODE_PORT + 1);
            let [web, udp, tcp_source, udp_source] = ask(&self.outside, remote);
            assert_eq!((&*web, &*udp), ("far", "far"));
            let addresses = self.cluster.node(0).output("ip -o address").unwrap();
            for seen in [tcp_source, udp_source] {
                assert!(
                    addresses.contains(&format!(" {seen}/")),
                    "{seen} is no node's"
                );
            }
        }
    }
}

/// A line of what the kernel says about a process.
fn status(agent: &Agent, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().to_owned()
}

/// Asserts that the process has the DaemonSet's rights and no other.
fn assert_confined(agent: &Agent, daemon_set: &DaemonSet) {
    let all = format!("{:016x}", daemon_set.capabilities().unwrap().bits());
    for (set, expected) in [
        ("CapPrm:", all.as_str()),
        ("CapEff:", &all),
        ("CapBnd:", &all),
        ("CapInh:", "0000000000000000"),
        ("CapAmb:", "0000000000000000"),
        ("NoNewPrivs:", "1"),
        ("Seccomp:", "2"),
    ] {
        assert_eq!(status(agent, set), expected, "{set}");
    }
    // By its root the kernel looks at its mounts, whose flags hold for us too.
    let root = format!("/proc/{}/root", agent.pid());
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", agent.pid())).unwrap();
    let writable: BTreeSet<_> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields[5].split(',').any(|option| option == "rw"))
        .map(|fields| fields[4])
        .filter(|place| *place != "/proc" && !place.starts_with("/dev/"))
        .collect();
    assert_eq!(writable, BTreeSet::from(WRITABLE), "{mounts}");
    for folder in [
        "",
        "/etc/lb-agent",
        "/run",
        "/run/lb-agent",
        "/var/lib",
        "/dev",
    ] {
        let refused = fs::write(format!("{root}{folder}/probe"), "").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem, "{folder}");
    }
    for file in [
        "/proc/sys/net/ipv4/ip_forward",
        "/run/lb-agent/cgroup/cgroup.procs",
    ] {
        let opened = fs::File::options()
            .append(true)
            .open(format!("{root}{file}"));
        assert_eq!(
            opened.unwrap_err().kind(),
            ErrorKind::ReadOnlyFilesystem,
            "{file}"
        );
    }
    for folder in WRITABLE {
        let probe = format!("{root}{folder}/probe");
        fs::create_dir(&probe).unwrap();
        fs::remove_dir(&probe).unwrap();
    }
}

#[test]
fn the_daemonsets_container_serves_and_can_do_nothing_else() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let daemon_set = daemon_set();
    // Each capability is needed, and its lack is told by its name.
    for name in ["NET_ADMIN", "BPF", "PERFMON"] {
        let mut agent = world.spawn(&daemon_set.clone().without_capability(name));
        let ended = agent.wait_ready(READY_MAX);
        let log = agent.log();
        assert!(matches!(ended, Err(LabError::Ended { .. })), "{ended:?}");
        assert!(log.contains(&format!("lacks CAP_{name};")), "{log}");
    }
    let agent = world.start(&daemon_set);
    assert_confined(&agent, &daemon_set);
    world.assert_served();
    // A restart is another container, which finds the maps and what was remembered.
    let connect = || HttpClient::new(world.vips[1].v4).connect();
    let mut connection = world.client.run(connect).unwrap().unwrap();
    assert_eq!(connection.get("/").unwrap().text(), "far");
    agent.kill().unwrap();
    let agent = world.start(&daemon_set);
    assert_eq!(connection.get("/").unwrap().text(), "far");
    connection.upload(1 << 20).unwrap();
    world.assert_served();
    let log = agent.log();
    assert!(!log.contains("not permitted"), "{log}");
    let state = world.container.host_path(Path::new("/var/lib/lb-agent"));
    assert!(
        fs::read_dir(state).unwrap().count() > 0,
        "nothing is remembered"
    );
    assert!(agent.stop().unwrap().success());
}
