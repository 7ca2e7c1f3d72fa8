// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pods whose sockets are served: found by their cgroups, known by their namespaces, left out on demand.
//!
//! **Invariant:** cgroups of the test's own, with folders as the kubelet names them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use aya::maps::{HashMap, Map, MapData};
use lb_agent::datapath::{Learner, SocketLb, netns_cookie};
use lb_agent::model::pod::{Namespace, Pod as PodObject, PodKey, PodRules};
use lb_agent::model::tables::{Op, TableOp};
use lb_common::abi::names;

use crate::sockets::{Cgroup, config};
use crate::stale::{BACKENDS, FRONTEND, LONG, Node, connect, pause, wait_for_end};
use crate::support::{Agent, Pod, on_a_node, run, wait_until};

/// The cgroups of a pod, removed when dropped; then its processes must be gone.
struct Folders {
    root: PathBuf,
    path: PathBuf,
}

impl Folders {
    fn make(root: &Cgroup, path: &str) -> Self {
        let root = root.0.clone();
        let path = root.join(path);
        fs::create_dir_all(&path).unwrap();
        Self { root, path }
    }

    fn put(&self, process: u32) {
        fs::write(self.path.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        let mut path = self.path.as_path();
        // Others may be below the same ones.
        while path != self.root && fs::remove_dir(path).is_ok() {
            path = path.parent().unwrap();
        }
    }
}

/// A pod in its cgroup. Fields go in this order.
struct Placed {
    pod: Pod,
    _folders: Folders,
    cookie: u64,
}

impl Placed {
    fn new(root: &Cgroup, path: &str) -> Self {
        let folders = Folders::make(root, path);
        let pod = Pod::new();
        folders.put(pod.pid());
        let cookie = pod.run(|| netns_cookie().unwrap()).join().unwrap();
        Self {
            pod,
            _folders: folders,
            cookie,
        }
    }
}

/// A process of the node's own namespace.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const A: &str =
    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podaa_aa.slice/cri-1.scope";
const B: &str = "kubepods/besteffort/podbbbb/1";
const C: &str = "kubepods/podcccc/1";
const HOST: &str = "kubepods/podhost/1";

/// Cookies in the map, in order.
fn served(bpffs: &Path) -> BTreeSet<u64> {
    let map = Map::HashMap(MapData::from_pin(bpffs.join(names::NAMESPACES)).unwrap());
    let map = HashMap::<_, u64, u32>::try_from(map).unwrap();
    map.iter()
        .map(|entry| entry.unwrap())
        .inspect(|(_, value)| assert_eq!(*value, 1))
        .map(|(cookie, _)| cookie)
        .collect()
}

fn wait_for(what: &str, bpffs: &Path, wanted: &[&Placed]) {
    let wanted: BTreeSet<u64> = wanted.iter().map(|pod| pod.cookie).collect();
    wait_until(what, || served(bpffs) == wanted);
}

/// Tells these pods of one namespace, those with `false` as left out.
fn tell(learner: &Learner, pods: &[(&str, bool)]) {
    let pods: Vec<_> = pods
        .iter()
        .map(|(uid, served)| PodObject {
            key: PodKey {
                namespace: "shop".to_owned(),
                name: (*uid).to_owned(),
            },
            uid: (*uid).to_owned(),
            sockets_off: !served,
        })
        .collect();
    let namespace = Namespace {
        name: "shop".to_owned(),
        sockets_off: false,
    };
    let namespaces = BTreeMap::from([("shop".to_owned(), namespace)]);
    learner.learn_pods(PodRules::new(pods.iter(), &namespaces));
}

#[test]
fn pods_are_served_from_their_first_process_on_as_their_objects_say() {
    on_a_node(|bpffs| {
        let cgroup = Cgroup::new();
        let config = config(bpffs, SocketLb::All, &cgroup);
        let a = Placed::new(&cgroup, A);
        let agent = Agent::start(config.clone());
        let b = Placed::new(&cgroup, B);
        let host = Process(Command::new("sleep").arg("600").spawn().unwrap());
        let host_folders = Folders::make(&cgroup, HOST);
        host_folders.put(host.0.id());
        pause(LONG);
        assert!(served(bpffs).is_empty(), "nobody is known yet");
        tell(
            &agent.learner,
            &[("aa-aa", true), ("bbbb", false), ("host", true)],
        );
        wait_for("one pod", bpffs, &[&a]);
        tell(
            &agent.learner,
            &[
                ("aa-aa", true),
                ("bbbb", true),
                ("cccc", true),
                ("host", true),
            ],
        );
        wait_for("both", bpffs, &[&a, &b]);
        let begun = std::time::Instant::now();
        let c = Placed::new(&cgroup, C);
        wait_for("one that comes", bpffs, &[&a, &b, &c]);
        eprintln!(
            "a pod was served {} ms after it began to be made",
            begun.elapsed().as_millis()
        );
        drop(b);
        wait_for("one that goes", bpffs, &[&a, &c]);
        agent.stop();
        drop(c);
        // Before the objects are known again, what was served is, if it is still there.
        let agent = Agent::start(config);
        wait_for("one that went while no agent ran", bpffs, &[&a]);
        tell(&agent.learner, &[("aa-aa", false)]);
        wait_for("one that is left out", bpffs, &[]);
        agent.stop();
        drop((host, host_folders, a));
    });
}

#[test]
fn where_nobody_tells_of_pods_all_of_them_are_served_but_those_left_out() {
    on_a_node(|bpffs| {
        let cgroup = Cgroup::new();
        let mut config = config(bpffs, SocketLb::All, &cgroup);
        config.serve_unknown_pods = true;
        let (a, b) = (Placed::new(&cgroup, A), Placed::new(&cgroup, B));
        let agent = Agent::start(config);
        tell(&agent.learner, &[("aa-aa", false)]);
        wait_for("the other one", bpffs, &[&b]);
        agent.stop();
        drop((a, b));
    });
}

#[test]
fn sockets_of_pods_whose_backend_goes_are_ended_too() {
    on_a_node(|bpffs| {
        let cgroup = Cgroup::new();
        let config = config(bpffs, SocketLb::All, &cgroup);
        let a = Placed::new(&cgroup, A);
        let mut node = Node::fill(&config);
        let [gone, stays] = BACKENDS;
        let inside = a.pod.run(move || {
            run("ip", "link set lo up");
            run("ip", &format!("addr add {gone}/32 dev lo"));
            run("ip", &format!("addr add {stays}/32 dev lo"));
            [connect(gone), connect(stays), connect(gone)]
        });
        let [stale, live, direct] = inside.join().unwrap();
        node.remember(&stale, gone, 1, FRONTEND);
        node.remember(&live, stays, 2, FRONTEND);
        // By now the pod is known.
        pause(LONG);
        node.apply(Op::V4(TableOp::DeleteBackend(1)));
        wait_for_end("in a pod", &stale);
        pause(LONG);
        assert!(live.peer_addr().is_ok() && direct.peer_addr().is_ok());
        assert_eq!(node.destroyed(), 1);
        node.stop();
        drop(a);
    });
}
