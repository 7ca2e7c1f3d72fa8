// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the READMEs tell a reader to type is typed here, as far as it needs no cluster.
//!
//! A block marked `sh` is what a reader types. `helm` and `kubectl` need a cluster, `docker` an engine;
//! what goes on until it is ended, and what is for the workspace, must be a verb with those flags; the
//! rest runs on a node with its agent.
//! **Invariant:** a command that is none of these, or whose exit code is not 0, is a failure.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::collections::BTreeSet;
use std::process::Command;

use lb_lab::agent::{READY_MAX, find_binary};
use lb_lab::{Agent, Lab, Node};

use crate::cluster::get;
use crate::common::can_run;
use crate::from_api::{api_server, publish};

const PAGES: [(&str, &str); 5] = [
    ("README.md", include_str!("../../../README.md")),
    (
        "CONTRIBUTING.md",
        include_str!("../../../.github/CONTRIBUTING.md"),
    ),
    ("helm/README.md", include_str!("../../../helm/README.md")),
    (
        "lb-agent/README.md",
        include_str!("../../../lb-agent/README.md"),
    ),
    (
        "lb-ebpf/README.md",
        include_str!("../../../lb-ebpf/README.md"),
    ),
];
/// Where the pages say that maps are pinned.
const PINS: &str = "/sys/fs/bpf/lb";

/// Who carries a command out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    Workspace,
    /// A cluster, or an engine for containers.
    Elsewhere,
    /// The agent itself, which ends with a signal only.
    Agent,
    /// While the agent runs.
    Node,
    /// After its end.
    NodeAlone,
}

/// The commands of a page, each on one line and without its comment.
fn commands(page: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut blocks = page.split("\n```");
    blocks.next();
    for block in blocks.step_by(2) {
        let Some(text) = block.strip_prefix("sh\n") else {
            continue;
        };
        for line in text.replace("\\\n", " ").lines() {
            let command = line.split(" #").next().unwrap_or_default();
            let words: Vec<_> = command.split_whitespace().collect();
            if !words.is_empty() {
                commands.push(words.join(" "));
            }
        }
    }
    commands
}

fn place(command: &str) -> Where {
    let words: Vec<_> = command.split(' ').collect();
    match words[..] {
        ["cargo", "xtask", ..] => Where::Workspace,
        ["helm" | "kubectl" | "docker", ..] => Where::Elsewhere,
        // Asks a node by its name.
        ["curl", ..] if command.contains("http://NODE:") => Where::Elsewhere,
        ["lb-agent", "run", ..] => Where::Agent,
        ["lb-agent", "cleanup", ..] => Where::NodeAlone,
        ["lb-agent" | "bpftool", ..] => Where::Node,
        _ => unreachable!("`{command}`: say here where it is typed"),
    }
}

/// All commands of all pages that are typed in a place, each once, in their order.
fn typed(wanted: Where) -> Vec<(&'static str, String)> {
    let mut seen = BTreeSet::new();
    let all = PAGES
        .iter()
        .flat_map(|(name, page)| commands(page).into_iter().map(move |line| (*name, line)));
    all.filter(|(_, line)| place(line) == wanted && seen.insert(line.clone()))
        .collect()
}

/// Types a command on a node; the paths and names that a reader replaces are replaced.
fn type_on(node: &Node, page: &str, line: &str, kubeconfig: &str, manifests: &str) {
    let program = find_binary().unwrap();
    let line = line
        .replace(PINS, &node.bpffs().display().to_string())
        .replace(" DIR", &format!(" {manifests}"))
        .replace(" NAME", &format!(" {}", node.name()));
    let mut command = node.command("sh").unwrap();
    let folder = program.parent().unwrap().display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .args(["-ec", &line])
        .env("PATH", format!("{folder}:{path}"))
        .env("KUBECONFIG", kubeconfig)
        .env("LB_BPFFS", node.bpffs())
        .env("LB_CGROUP", node.cgroup())
        .env("LB_NODE", node.name());
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !told.is_empty(),
        "{page} tells to type `{line}`: {}\n{told}{errors}",
        output.status
    );
}

/// Asks the verb of a command for its help, which must know its flags.
fn ask_for_help(page: &str, line: &str, program: &std::path::Path) {
    let verbs = line.split(' ').skip(1);
    let verbs = verbs.take_while(|word| !word.starts_with('-') && !word.starts_with('['));
    let help = Command::new(program)
        .args(verbs)
        .arg("--help")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(help.status.success(), "{page}: `{line}`");
    for flag in line.split(' ').filter(|word| word.starts_with("--")) {
        let flag = flag.split('=').next().unwrap_or_default();
        assert!(text.contains(flag), "{page}: `{line}`: no {flag}");
    }
}

#[test]
fn what_is_for_the_workspace_or_goes_on_for_long_is_a_verb_with_those_flags() {
    if !can_run() {
        return;
    }
    let lines = typed(Where::Workspace);
    assert!(lines.len() > 3, "{lines:?}");
    for (page, line) in lines {
        ask_for_help(page, &line, "cargo".as_ref());
    }
    for (page, line) in typed(Where::Agent) {
        ask_for_help(page, &line, &find_binary().unwrap());
    }
}

#[test]
fn what_is_for_a_node_works_on_one_with_and_without_its_agent() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let (client, web) = (node.pod("client", 2).unwrap(), node.pod("web", 3).unwrap());
    let _server = web.serve(crate::cluster::TARGET).unwrap();
    let server = api_server(node);
    publish(&server, node, &[&web]);
    let kubeconfig = lab.dir().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
    let kubeconfig = kubeconfig.display().to_string();
    let manifests = lb_lab::Manifests::at(lab.dir().join("manifests")).unwrap();
    manifests.node(node).unwrap();
    let vip = crate::cluster::Vip::new("other", 9);
    manifests.service(&vip.service).unwrap();
    manifests.endpoints(&vip.service, &[&web]).unwrap();
    let manifests = manifests.dir().display().to_string();

    let arguments = ["--kubeconfig", kubeconfig.as_str()];
    let mut agent = Agent::spawn_with(node, &find_binary().unwrap(), &arguments).unwrap();
    agent.wait_ready(READY_MAX).unwrap();
    // By TCP, whose flows end: a drain waits for those of UDP until they have been silent for long.
    get(
        &client,
        (
            crate::from_api::VIPS[0]
                .parse::<std::net::IpAddr>()
                .unwrap(),
            80,
        )
            .into(),
        "/",
    );
    let lines = typed(Where::Node);
    assert!(lines.len() > 10, "{lines:?}");
    for (page, line) in lines {
        type_on(node, page, &line, &kubeconfig, &manifests);
    }
    agent.stop().unwrap();
    let lines = typed(Where::NodeAlone);
    assert!(!lines.is_empty());
    for (page, line) in lines {
        type_on(node, page, &line, &kubeconfig, &manifests);
    }
}
