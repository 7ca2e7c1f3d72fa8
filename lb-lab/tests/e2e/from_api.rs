// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects from an API server: served, followed, and remembered when nobody can be asked.
//!
//! The server is the lab's own, in the node's namespace; the agent's client, the maps and the
//! traffic are the real ones.
//! **Invariant:** waiting is for what a client of the Service sees, with a bound. Read next:
//! `lifecycle.rs`, which does the like with manifests.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]
#![expect(clippy::print_stderr, reason = "what was measured is worth seeing")]

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lb_lab::agent::find_binary;
use lb_lab::{Agent, ApiServer, Lab, Node, Pod};
use serde_json::json;

use crate::cluster::{TARGET, get, pause};
use crate::common::can_run;

pub(crate) const VIPS: [&str; 2] = ["10.0.1.1", "fd00:10:0:1::1"];
/// How long a change may take to be seen by a client, an outage of the server behind it included.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// How long an agent may take to be ready.
const READY_MAX: Duration = Duration::from_secs(15);
/// How long a rebooted node may take to forward again by what it remembers, the start of its agent
/// included.
const REBOOT_MAX: Duration = Duration::from_secs(1);
/// Reboots of which the fastest counts: a start is the work of one processor, which may have more to do.
const REBOOTS: u32 = 6;

/// Starts a server in the node's namespace, where its agent reaches it.
pub(crate) fn api_server(node: &Node) -> ApiServer {
    let start = || ApiServer::start("127.0.0.1:0".parse().unwrap());
    node.netns().run(start).unwrap().unwrap()
}

pub(crate) fn publish(server: &ApiServer, node: &Node, backends: &[&Pod]) {
    server
        .apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()}}))
        .unwrap();
    server
        .apply(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": VIPS[0], "clusterIPs": VIPS, "ipFamilyPolicy": "RequireDualStack",
                     "ports": [{"name": "tcp", "port": 80, "protocol": "TCP"},
                               {"name": "udp", "port": 80, "protocol": "UDP"}]},
        }))
        .unwrap();
    for (family, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let endpoints: Vec<_> = backends
            .iter()
            .map(|pod| {
                let address = pod.addresses()[family].to_string();
                json!({"addresses": [address], "nodeName": node.name()})
            })
            .collect();
        server
            .apply(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("web-{family}"), "namespace": "default",
                             "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": kind,
                "ports": [{"name": "tcp", "port": TARGET, "protocol": "TCP"},
                          {"name": "udp", "port": TARGET, "protocol": "UDP"}],
                "endpoints": endpoints,
            }))
            .unwrap();
    }
}

/// Waits until the pod that answers a new connection is `wanted`.
pub(crate) fn wait_for_answer(client: &Pod, wanted: &str) {
    let until = Instant::now() + SEEN_WITHIN;
    for vip in VIPS {
        let vip = SocketAddr::new(vip.parse().unwrap(), 80);
        while get(client, vip, "/").text() != wanted
            || client.udp_ask(vip, "hostname").unwrap() != wanted
        {
            assert!(Instant::now() < until, "{wanted} never answered at {vip}");
            pause(Duration::from_millis(5));
        }
    }
}

/// A reboot: programs, maps and flows are gone, the state directory is there. The agent that `start`
/// starts, and how long it took from there until a client was served.
fn reboot(node: &Node, client: &Pod, start: impl FnOnce() -> Agent) -> (Agent, Duration) {
    std::fs::remove_dir_all(node.bpffs()).unwrap();
    std::fs::create_dir(node.bpffs()).unwrap();
    let vip = SocketAddr::new(VIPS[0].parse().unwrap(), 80);
    // Not longer: a SYN that came too early is sent again after a second only.
    let dial = || TcpStream::connect_timeout(&vip, Duration::from_millis(50));
    // The kernel lets go of programs a little later.
    let until = Instant::now() + SEEN_WITHIN;
    while client.run(dial).unwrap().is_ok() {
        assert!(Instant::now() < until, "somebody still forwards");
    }
    let begun = Instant::now();
    let agent = start();
    while client.run(dial).unwrap().is_err() {
        let log = agent.log();
        assert!(begun.elapsed() < READY_MAX, "nothing forwards:\n{log}");
    }
    (agent, begun.elapsed())
}

#[test]
fn objects_of_an_api_server_are_served_followed_and_remembered() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let client = node.pod("client", 2).unwrap();
    let (first, second) = (
        node.pod("first", 5).unwrap(),
        node.pod("second", 6).unwrap(),
    );
    let _servers = [first.serve(TARGET).unwrap(), second.serve(TARGET).unwrap()];
    let server = api_server(node);
    publish(&server, node, &[&first]);

    let binary = find_binary().unwrap();
    let state = tempfile::tempdir().unwrap();
    let (url, folder) = (server.url(), state.path().display().to_string());
    let args = ["--api-server", url.as_str(), "--state-dir", folder.as_str()];
    let mut agent = Agent::spawn_with(node, &binary, &args).unwrap();
    agent.wait_ready(READY_MAX).unwrap();
    wait_for_answer(&client, "first");
    publish(&server, node, &[&second]);
    wait_for_answer(&client, "second");

    let look = |verb: &str, source: [&str; 2]| {
        let mut command = node.command(&binary).unwrap();
        command.arg(verb).arg("--bpffs").arg(node.bpffs());
        let output = command.args(["--node", node.name()]).args(source).output();
        let output = output.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let checked = look("check", ["--api-server", &url]);
    assert!(checked.starts_with("the maps hold what 1 Services ask for"));

    // Neither the server nor the agent is needed for what is in force, nor for its names.
    server.pause();
    agent.kill().unwrap();
    wait_for_answer(&client, "second");
    let named = look("services", ["--state-dir", &folder]);
    assert!(
        named.contains("\ndefault/web tcp  10.0.1.1:80 TCP"),
        "{named}"
    );

    let (mut best, mut reboots) = (Duration::MAX, 0);
    let mut agent = loop {
        let (agent, took) = reboot(node, &client, || {
            Agent::spawn_with(node, &binary, &args).unwrap()
        });
        eprintln!("a rebooted node forwards after {took:?}");
        best = best.min(took);
        reboots += 1;
        if best < REBOOT_MAX || reboots == REBOOTS {
            break agent;
        }
        agent.kill().unwrap();
    };
    assert!(best < REBOOT_MAX, "after {best:?}:\n{}", agent.log());
    agent.wait_ready(READY_MAX).unwrap();
    wait_for_answer(&client, "second");

    // What the server says when it is back is what counts.
    publish(&server, node, &[&first]);
    node.netns().run(|| server.resume()).unwrap().unwrap();
    wait_for_answer(&client, "first");
    assert!(agent.stop().unwrap().success());
}
