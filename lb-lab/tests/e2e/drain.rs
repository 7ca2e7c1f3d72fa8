// SPDX-License-Identifier: MIT OR Apache-2.0
//! Taking lb off a node on which kube-proxy runs beside it, without losing a byte.
//!
//! Its rules are there from the begin, so they serve whatever we let pass. Programs, filters and pins
//! of others are there too.
//! **Invariant:** data flows on every connection from its begin to its end, whoever translates it; at
//! the end there is nothing of ours, and everything of theirs. Read next: `handover.rs`, the way there.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lb_lab::agent::{READY_MAX, find_binary};
use lb_lab::{Agent, Lab, Node, Place, Pod};
use serde_json::Value;

use crate::cluster::{Cluster, Vip, get, pause};
use crate::common::can_run;
use crate::handover::{End, Flows, Way, counts, kube_proxy, translated_by_rules};
use crate::load::assert_no_retransmission;
use crate::nodeport::node_address;
use crate::rules::doctor;

const NODE_PORT: u16 = 30_045;

/// `lb-agent cleanup` on a node.
fn cleanup(node: &Node, arguments: &[&str]) -> Command {
    let mut command = node.command(find_binary().unwrap()).unwrap();
    command
        .args(["cleanup", "-o", "json", "--bpffs"])
        .arg(node.bpffs());
    command.arg("--cgroup").arg(node.cgroup()).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a cleanup that succeeded says of what it did.
fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", errors(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A process that is called kube-proxy.
struct Proxy(Child);

impl Proxy {
    fn start(node: &Node) -> Self {
        let program = node.bpffs().parent().unwrap().with_file_name("kube-proxy");
        symlink("/bin/sleep", &program).unwrap();
        Self(node.command(program).unwrap().arg("600").spawn().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

/// Filters on both sides of a device that pass everything on, and a pin beside the agent's.
fn place_strangers(node: &Node, device: &str) {
    node.output(&format!("tc qdisc add dev {device} clsact"))
        .unwrap();
    for hook in ["ingress", "egress"] {
        let mut filter = node.command("tc").unwrap();
        filter.args([
            "filter",
            "add",
            "dev",
            device,
            hook,
            "pref",
            "5",
            "bpf",
            "bytecode",
            "1,6 0 0 0,",
        ]);
        assert!(filter.status().unwrap().success(), "{hook}");
    }
    node.output(&format!(
        "bpftool map create {}/stranger type array key 4 value 4 entries 1 name stranger",
        node.bpffs().display()
    ))
    .unwrap();
}

fn assert_strangers_stand(node: &Node, device: &str) {
    for hook in ["ingress", "egress"] {
        let shown = node
            .output(&format!("tc filter show dev {device} {hook}"))
            .unwrap();
        assert!(shown.contains("bytecode"), "{hook}: {shown}");
    }
    let pins = fs::read_dir(node.bpffs()).unwrap();
    let pins: Vec<_> = pins.map(|pin| pin.unwrap().file_name()).collect();
    assert_eq!(pins, ["stranger"]);
}

/// Commands of bpftool that show one thing of ours each, for as long as it is there.
fn ours(node: &Node) -> Vec<String> {
    let mut shown = Vec::new();
    let bpffs = node.bpffs();
    let links = fs::read_dir(bpffs.join("links")).unwrap();
    for link in links.map(|link| link.unwrap().path()) {
        let text = node.output(&format!("bpftool -j link show pinned {}", link.display()));
        let link: Value = serde_json::from_str(&text.unwrap()).unwrap();
        shown.push(format!("link show id {}", link["id"]));
        shown.push(format!("prog show id {}", link["prog_id"]));
    }
    let maps = fs::read_dir(bpffs).unwrap().map(|pin| pin.unwrap().path());
    for map in
        maps.filter(|map| map.is_file() && !map.ends_with("stranger") && !map.ends_with("clock"))
    {
        let text = node.output(&format!("bpftool -j map show pinned {}", map.display()));
        let map: Value = serde_json::from_str(&text.unwrap()).unwrap();
        shown.push(format!("map show id {}", map["id"]));
    }
    assert!(shown.len() > 30, "{shown:?}");
    shown
}

/// Nothing of ours is in the kernel any more.
fn assert_gone(node: &Node, ours: &[String]) {
    // KERNEL: what nobody holds is freed a moment later.
    let there = || {
        let shows = |command: &&String| node.output(&format!("bpftool {command}")).is_ok();
        ours.iter().filter(shows).collect::<Vec<_>>()
    };
    for _ in 0..100 {
        if there().is_empty() {
            break;
        }
        pause(Duration::from_millis(50));
    }
    assert_eq!(there(), Vec::<&String>::new());
    let net = node.output("bpftool net show").unwrap();
    assert!(!net.contains("lb_"), "{net}");
    let filters = node.output("tc filter show dev cni0 ingress");
    assert!(filters.is_ok_and(|text| !text.contains("lb_tc")));
}

/// Nobody else gets the pins while an agent has them, and an agent's end gives them to who waits.
fn contend(cluster: &mut Cluster) {
    let node = cluster.node(0).clone();
    let owner = format!("process {} (lb-agent run)", cluster.agents[0].pid());
    let refused = cleanup(&node, &[]).output().unwrap();
    assert!(
        !refused.status.success() && errors(&refused).contains(&owner),
        "{}",
        errors(&refused)
    );
    let binary = find_binary().unwrap();
    let spawn = |wait| {
        let arguments = ["--owner-wait", wait, "--metrics-bind-address", "none"];
        Agent::spawn(&node, &binary, cluster.manifests.dir(), &arguments).unwrap()
    };
    let mut second = spawn("0");
    let ended = second.wait_ready(READY_MAX).unwrap_err().to_string();
    assert!(
        second.ended().is_some_and(|status| !status.success()),
        "{ended}"
    );
    let log = second.log();
    assert!(
        log.contains(&owner) && log.contains("let --bpffs name another directory"),
        "{log}"
    );
    let mut third = spawn("30");
    while !third.log().contains("waiting for its end") {
        assert!(third.ended().is_none(), "{}", third.log());
        pause(Duration::from_millis(20));
    }
    let first = cluster.agents.remove(0);
    assert!(!first.kill().unwrap().success());
    third.wait_ready(READY_MAX).unwrap();
    assert!(third.log().contains("taking over"), "{}", third.log());
    cluster.agents.insert(0, third);
}

#[test]
fn a_drain_beside_kube_proxy_cuts_nothing_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::new(Lab::builder());
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pod = cluster.pod(0, "client");
    let pods = [cluster.web(0, "near"), cluster.web(1, "far")];
    let mut vips = [Vip::new("near", 1), Vip::new("far", 2)];
    let mut services = Vec::new();
    for ((vip, pod), node_port) in vips.iter_mut().zip(&pods).zip(NODE_PORT..) {
        vip.service = vip.service.clone().node_port(node_port);
        cluster.publish(vip, &[pod]);
        services.push((&*vip, pod, node_port));
    }
    let node = cluster.node(0).clone();
    let rules = cluster.lab.dir().join("kube-proxy.nft");
    fs::write(&rules, kube_proxy(&node, &services)).unwrap();
    node.output(&format!("nft -f {}", rules.display())).unwrap();
    let _proxy = Proxy::start(&node);
    place_strangers(&node, pod.device());
    let far = node_address(&cluster, 0, 1, NODE_PORT + 1);
    let process = node.process();
    let ways = [
        (&*pod, vips[0].v4, "near"),
        (&*pod, vips[1].v6, "far"),
        (&outside, far, "far"),
        (&process, vips[0].v6, "near"),
    ];
    let ways = ways.map(|(client, remote, name)| Way {
        client,
        remote,
        name,
    });
    come_and_go(&mut cluster, &ways, &pod);
}

/// The node's states, and what must flow in each.
fn come_and_go(cluster: &mut Cluster, ways: &[Way], pod: &Pod) {
    let node = cluster.node(0).clone();
    let (stop, end) = (AtomicBool::new(false), AtomicBool::new(false));
    let (before, later) = (counts(ways), counts(ways));
    thread::scope(|scope| {
        let _ends = [End(&stop), End(&end)];
        let old = Flows::start(scope, ways, &before, &stop);
        cluster.start_agents();
        let line = doctor(&node, "runs here");
        let running = "ok kube-proxy runs here (process ";
        assert!(line.starts_with(running), "{line}");
        let by_rules = translated_by_rules(&node);
        assert_eq!(by_rules, ways.len() as u64);
        let capture = pod.capture("eth0").unwrap();
        let new = Flows::start(scope, ways, &later, &end);
        contend(cluster);
        for agent in cluster.agents.drain(..) {
            assert!(agent.stop().unwrap().success());
        }
        old.assert_flowing("without an agent, by the rules");
        new.assert_flowing("without an agent, by programs and filters");
        assert_eq!(translated_by_rules(&node), by_rules, "new ones are ours");
        let filters = format!("tc filter show dev {} egress", pod.device());
        assert!(node.output(&filters).unwrap().contains("lb_tc_egress"));
        let ours = ours(&node);

        let command = cleanup(&node, &["--drain", "--timeout", "60"]).spawn();
        pass_on(&node, ways);
        old.assert_flowing("while we drain, by the rules");
        new.assert_flowing("while we drain, by us");
        end.store(true, Ordering::Relaxed);
        let drained = command.unwrap().wait_with_output().unwrap();
        assert_drained(&drained, pod.device());

        old.assert_flowing("without us");
        pass_on(&node, ways);
        assert_no_retransmission(&capture.stop().unwrap());
        assert_gone(&node, &ours);
        assert_strangers_stand(&node, pod.device());
        let again = report(&cleanup(&node, &[]).output().unwrap());
        assert_eq!(again["removed"].as_array().unwrap().len(), 0, "{again}");
        assert_eq!(again["left"].as_array().unwrap().len(), 1, "{again}");
    });
}

/// Waits until new connections come to the rules; from then on all do.
fn pass_on(node: &Node, ways: &[Way]) {
    let mut passed = translated_by_rules(node);
    let mut began = 0;
    while translated_by_rules(node) == passed {
        began += 1;
        assert!(began < 100, "new connections still are ours");
        let way = &ways[0];
        assert_eq!(get(way.client, way.remote, "/").text(), way.name);
        pause(Duration::from_millis(20));
    }
    passed += 1;
    for way in ways {
        assert_eq!(get(way.client, way.remote, "/").text(), way.name);
        passed += 1;
        assert_eq!(translated_by_rules(node), passed, "{}", way.remote);
    }
}

/// Nothing was cut, what was left was told, and the filter behind that of others is gone, too.
fn assert_drained(drained: &Output, device: &str) {
    let (done, progress) = (report(drained), errors(drained));
    let cut = ["tcp", "udp", "sctp", "sockets"].map(|kind| done["drained"]["cut"][kind].as_u64());
    assert_eq!(cut, [Some(0); 4], "{done}");
    let counts = progress.lines().filter_map(|line| {
        let count = line.strip_prefix("draining: ")?.split(' ').next()?;
        count.parse::<u64>().ok()
    });
    // A process of the node is connected to its backend itself; and requests may just have ended.
    assert!(counts.max().is_some_and(|most| most >= 3), "{progress}");
    assert!(progress.contains("draining: no flow left"), "{progress}");
    let removed = done["removed"].as_array().unwrap();
    let filter = removed.iter().find(|thing| thing["what"] == "filter");
    assert_eq!(filter.unwrap()["name"], *format!("{device} egress"));
}
