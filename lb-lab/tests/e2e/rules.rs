// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules of the packet filter that people should know of are found and told: what kube-proxy has left
//! behind, and a policy that drops what is forwarded.
//!
//! **Invariant:** by each of the two kinds of iptables, and by nftables; nothing is said on a node that has
//! none of them. Read next: `marks.rs`, what happens beside them.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::time::{Duration, Instant};

use lb_lab::{Lab, Node, agent};

use crate::cluster::{Cluster, pause};
use crate::common::can_run;

/// What each tool leaves, and how it is called then.
const LEFT: [(&[&str], &str); 4] = [
    (
        &["iptables-nft -t nat -N KUBE-POSTROUTING"],
        "KUBE-POSTROUTING (ip table nat)",
    ),
    (
        &["ip6tables-nft -t nat -N KUBE-POSTROUTING"],
        "KUBE-POSTROUTING (ip6 table nat)",
    ),
    (
        &["iptables-legacy -t nat -N KUBE-POSTROUTING"],
        "KUBE-POSTROUTING (iptables-legacy table nat)",
    ),
    (
        &[
            "nft add table ip kube-proxy",
            "nft add chain ip kube-proxy masquerading",
        ],
        "kube-proxy (ip table kube-proxy)",
    ),
];
/// How long the agent may take to look again: its audit is every 30 s.
const HEARD_MAX: Duration = Duration::from_secs(45);

/// The line of `lb-agent doctor` about something, without its blanks.
pub(crate) fn doctor(node: &Node, what: &str) -> String {
    let binary = agent::find_binary().unwrap();
    let command = format!(
        "{} doctor --bpffs {} --cgroup {}",
        binary.display(),
        node.bpffs().display(),
        node.cgroup().display()
    );
    let text = node.output(&command).unwrap();
    let line = text.lines().find(|line| line.contains(what)).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn quiet() -> Cluster {
    let builder = Lab::builder().masquerade(false).forward_drop(false);
    Cluster::of_nodes(builder.invalid_drop(false), 1)
}

#[test]
fn what_kube_proxy_has_left_is_told_by_the_doctor_and_in_the_log() {
    if !can_run() {
        return;
    }
    let mut cluster = quiet();
    cluster.start_agents();
    let node = cluster.node(0);
    assert_eq!(
        doctor(node, "rules of kube-proxy"),
        "ok rules of kube-proxy none"
    );
    for (commands, place) in LEFT {
        for command in commands {
            node.output(command).unwrap();
        }
        let line = doctor(node, "rules of kube-proxy");
        assert!(line.starts_with("less") && line.contains(place), "{line}");
        assert!(line.contains("kube-proxy --cleanup"), "{line}");
    }
    let began = Instant::now();
    while !LEFT
        .iter()
        .all(|(_, place)| cluster.agents[0].log().contains(place))
    {
        assert!(began.elapsed() < HEARD_MAX, "{}", cluster.agents[0].log());
        pause(Duration::from_millis(200));
    }
}

#[test]
fn a_policy_that_drops_what_is_forwarded_is_told() {
    if !can_run() {
        return;
    }
    let mut cluster = Cluster::of_nodes(Lab::builder().forward_drop(true), 1);
    cluster.start_agents();
    let node = cluster.node(0);
    let line = doctor(node, "forwarding");
    assert!(
        line.starts_with("less") && line.contains("is DROP"),
        "{line}"
    );
    let log = cluster.agents[0].log();
    assert!(log.contains("forwarding: the policy of"), "{log}");
    let quiet = quiet();
    assert_eq!(
        doctor(quiet.node(0), "forwarding"),
        "ok forwarding no policy drops it"
    );
}
