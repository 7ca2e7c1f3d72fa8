// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent as the chart starts it: arguments, environment, configuration, capabilities.
//!
//! The renderings are the stored ones, which `cargo xtask helm test` holds against the chart; folders
//! of the container are a node's own here, and the API server is the lab's.
//! **Invariant:** nothing else of what is rendered is changed. Read next: helm/README.md.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lb_lab::agent::{READY_MAX, find_binary};
use lb_lab::{Agent, Lab, Manifests, Node, Pod, Service};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::cluster::{TARGET, pause};
use crate::common::can_run;
use crate::from_api::{VIPS, api_server, publish, wait_for_answer};

/// How long the agent may take to find the pods of a node, or the kernel to let go of its programs.
const FOUND_MAX: Duration = Duration::from_secs(15);
/// Folders of the container.
const FOLDERS: [&str; 3] = [
    "/run/lb-agent/bpf",
    "/run/lb-agent/cgroup",
    "/var/lib/lb-agent",
];

/// The objects of a stored rendering.
fn rendering(name: &str) -> Vec<Value> {
    let golden = "../helm/lb-agent/tests/golden";
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(golden)
        .join(format!("{name}.yaml"));
    let text = fs::read_to_string(path).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects
        .iter()
        .find(|object| object["kind"] == kind)
        .unwrap()
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
}

/// The container's folders as they are on a node.
struct Places {
    folder: PathBuf,
    /// What stands for each of [`FOLDERS`].
    own: [String; 3],
}

impl Places {
    fn make(node: &Node, root: &Path, name: &str) -> Self {
        let folder = root.join(name);
        fs::create_dir_all(folder.join("state")).unwrap();
        let bpffs = node.bpffs().join(name);
        fs::create_dir(&bpffs).unwrap();
        let own = [&bpffs, node.cgroup(), &folder.join("state")].map(|p| p.display().to_string());
        Self { folder, own }
    }

    fn of_node(&self, text: &str) -> String {
        let pairs = FOLDERS.iter().zip(&self.own);
        pairs.fold(text.to_owned(), |text, (folder, own)| {
            text.replace(folder, own)
        })
    }
}

/// A program that becomes the agent as the `DaemonSet` starts it, whatever its own arguments are.
fn container(node: &Node, objects: &[Value], places: &Places, source: &(&str, String)) -> PathBuf {
    let (variable, value) = source;
    let files = of_kind(objects, "ConfigMap")["data"].as_object().unwrap();
    for (name, text) in files {
        let text = places.of_node(text.as_str().unwrap());
        let goes = |line: &&str| *variable == "LB_API_SERVER" || !line.starts_with("apiServer:");
        let text: String = text
            .lines()
            .filter(goes)
            .flat_map(|line| [line, "\n"])
            .collect();
        fs::write(places.folder.join(name), text).unwrap();
    }
    let pod = &of_kind(objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    let container = &pod["containers"][0];
    let rights = &container["securityContext"];
    assert_eq!(rights["capabilities"]["drop"], json!(["ALL"]));
    let added =
        texts(&rights["capabilities"]["add"]).map(|name| format!(",+{}", name.to_lowercase()));
    let added: String = added.collect();
    let folder = places.folder.display().to_string();
    let mut script = vec!["#!/bin/sh".to_owned()];
    for variable in container["env"].as_array().unwrap() {
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let given = variable["value"].as_str();
        let value = given.unwrap_or_else(|| {
            assert_eq!(field, Some("spec.nodeName"), "the lab knows no other field");
            node.name()
        });
        let name = variable["name"].as_str().unwrap();
        let value = value.replace("/etc/lb-agent", &folder);
        script.push(format!("export {name}='{value}'"));
    }
    // Where objects come from is the lab's affair; the environment goes before the file.
    script.push(format!("export {variable}='{value}'"));
    let arguments: Vec<_> = texts(&container["args"]).collect();
    script.push(format!(
        "exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all{added} {} {}",
        find_binary().unwrap().display(),
        arguments.join(" ")
    ));
    let program = places.folder.join("container");
    fs::write(&program, script.join("\n") + "\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// Bytes that a container asks for as memory.
fn requested(objects: &[Value]) -> u64 {
    let pod = &of_kind(objects, "DaemonSet")["spec"]["template"]["spec"];
    let memory = &pod["containers"][0]["resources"]["requests"]["memory"];
    let mebibytes = memory.as_str().unwrap().strip_suffix("Mi").unwrap();
    mebibytes.parse::<u64>().unwrap() << 20
}

/// Bytes that the maps below a folder take, and the agent itself.
fn taken(node: &Node, pins: &Path, agent: &Agent) -> (u64, u64) {
    let mut maps = 0;
    for entry in fs::read_dir(pins).unwrap().flatten() {
        // Maps have names in capitals; there are folders and a program besides.
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(|c: char| c.is_ascii_uppercase())
        {
            let show = format!("bpftool -j map show pinned {}", entry.path().display());
            let told: Value = serde_json::from_str(&node.output(&show).unwrap()).unwrap();
            maps += told["bytes_memlock"].as_u64().unwrap();
        }
    }
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = resident.unwrap().trim().strip_suffix(" kB").unwrap();
    (maps, kibibytes.parse::<u64>().unwrap() << 10)
}

/// Asks what the kubelet, on the node's network, will ask.
fn assert_probes_answer(node: &Node, objects: &[Value]) {
    let pod = &of_kind(objects, "DaemonSet")["spec"]["template"]["spec"];
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let asked = &pod["containers"][0][probe]["httpGet"];
        let host: IpAddr = asked["host"].as_str().unwrap().parse().unwrap();
        let port = u16::try_from(asked["port"].as_u64().unwrap()).unwrap();
        let path = asked["path"].as_str().unwrap();
        let reply = node.http_get(SocketAddr::new(host, port), path).unwrap();
        assert_eq!(reply.status, 200, "{probe}: {}", reply.text());
    }
}

/// What keeps a pod's namespace, as the first container of every pod does.
struct Pause(Child);

impl Pause {
    fn start(pod: &Pod) -> Self {
        let mut command = pod.command("sleep").unwrap();
        Self(command.arg("600").stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn the_agent_serves_as_renderings_of_the_chart_start_it() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let (client, backend) = (
        node.pod("client", 2).unwrap(),
        node.pod("backend", 5).unwrap(),
    );
    let _server = backend.serve(TARGET).unwrap();
    let _pause = Pause::start(&client);
    let server = api_server(node);
    publish(&server, node, &[&backend]);
    // The lab's server has no Pods, without which no pod is served at its sockets: there is a folder for that.
    let service = Service::new("web", &VIPS.map(|vip| vip.parse().unwrap()));
    let service = service.tcp(80, TARGET).udp(80, TARGET);
    let root = tempfile::tempdir().unwrap();
    let manifests = Manifests::at(root.path().join("manifests")).unwrap();
    manifests.service(&service).unwrap();
    manifests.endpoints(&service, &[&backend]).unwrap();
    manifests.node(node).unwrap();

    for name in ["flannel", "everything"] {
        let is_whole = name == "everything";
        let objects = rendering(name);
        let places = Places::make(node, root.path(), name);
        let (url, folder) = (server.url(), manifests.dir().display().to_string());
        let source = if is_whole {
            ("LB_MANIFESTS", folder)
        } else {
            ("LB_API_SERVER", url)
        };
        let program = container(node, &objects, &places, &source);
        let mut agent = Agent::spawn_with(node, &program, &[]).unwrap();
        agent.wait_ready(READY_MAX).unwrap();
        wait_for_answer(&client, "backend");
        assert_probes_answer(node, &objects);
        if is_whole {
            // The namespaces of pods are found by processes that have more rights than the agent.
            let begun = Instant::now();
            while !agent.log().contains("sockets of 1 pods are served") {
                assert!(
                    begun.elapsed() < FOUND_MAX,
                    "no pod was found:\n{}",
                    agent.log()
                );
                pause(Duration::from_millis(20));
            }
        }
        let log = agent.log();
        assert!(
            !log.contains("NOT served") && !log.contains("ermission"),
            "{name}:\n{log}"
        );
        let (maps, process) = taken(node, &node.bpffs().join(name).join("lb"), &agent);
        let requested = requested(&objects);
        assert!(
            maps + process <= requested,
            "{name}: maps take {maps}, the agent {process}, the chart asks for {requested}"
        );
        assert!(agent.stop().unwrap().success());
        assert!(
            places.folder.join("state/objects.jsonl").is_file(),
            "{name}: nothing is remembered"
        );
        fs::remove_dir_all(node.bpffs().join(name)).unwrap();
    }
}
