// SPDX-License-Identifier: MIT OR Apache-2.0
//! An agent is killed and started again, and replaced by a build with other layouts of the maps, under
//! a load that must not notice.
//!
//! **Invariant:** the load is judged as a whole at the end of each test: no connection reset, no
//! request failed or repeated, no byte lost. Read next: `steady.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]
#![expect(clippy::print_stderr, reason = "what was measured is worth seeing")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lb_lab::agent::find_binary;
use lb_lab::{Agent, Host, Lab, Place, Pod};

use crate::cluster::{Cluster, TARGET, Vip, pause};
use crate::common::can_run;
use crate::nodeport::node_address;
use crate::steady::{Amount, Load, Running, Seen, echo};

const NODE_PORT: u16 = 30_050;
/// Rounds of each test; `test soak` makes them 20.
const ROUNDS: usize = 3;
const SOAK_ROUNDS: usize = 20;
/// How long an agent may take to be ready: an upgrade loads two sets of programs, beside the load.
const START_MAX: Duration = Duration::from_mins(1);
/// How long the load goes on before and after what happens to the agent.
const REST: Duration = Duration::from_millis(1500);

/// A pod of the node, and a client outside that comes by a node port and is masqueraded.
struct Stage {
    cluster: Cluster,
    pod: Pod,
    outside: Host,
    vips: [SocketAddr; 2],
    node_ports: [SocketAddr; 2],
    _servers: [Running<()>; 2],
}

fn is_soak() -> bool {
    std::env::var_os("LB_SOAK").is_some_and(|value| value != "0")
}

fn rounds() -> usize {
    if is_soak() { SOAK_ROUNDS } else { ROUNDS }
}

/// When a new build is killed in its first attempt to take over.
#[derive(Clone, Copy, Debug)]
enum Killed {
    Never,
    /// As soon as something of this name is pinned.
    At(&'static str),
    After(Duration),
}

/// Before the gates, between them and the end, and in a long run at any time.
fn killed(round: usize) -> Killed {
    const POINTS: [Killed; ROUNDS] = [
        Killed::Never,
        Killed::At("upgrade-4/CONNS_V4"),
        Killed::At("layout-4"),
    ];
    let spread = |round: usize| Killed::After(Duration::from_millis(137 * round as u64));
    POINTS.get(round).copied().unwrap_or_else(|| spread(round))
}

/// What each of the two clients has: 1,000 streams and 500 connections in a second together.
///
/// In CI it is half of that: the streams of all rounds are opened one after the other, and the tests
/// are to end within 90 s together.
fn amount() -> Amount {
    let share = if is_soak() { 1 } else { 2 };
    Amount {
        streams: 500 / share,
        rate: 250 / share as u64,
        datagrams: 10,
    }
}

impl Stage {
    fn new() -> Self {
        let cluster = Cluster::new(Lab::builder());
        let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
        let pod = cluster.pod(0, "client");
        let backends = [cluster.pod(0, "near"), cluster.pod(1, "far")];
        let servers = [&backends[0], &backends[1]].map(|pod| echo(pod, TARGET));
        let mut vip = Vip::new("web", 1);
        vip.service = vip.service.clone().node_port(NODE_PORT);
        cluster.publish(&vip, &[&backends[0], &backends[1]]);
        Self {
            vips: vip.remotes(),
            node_ports: [0, 1].map(|family| node_address(&cluster, 0, family, NODE_PORT)),
            cluster,
            pod,
            outside,
            _servers: servers,
        }
    }

    /// Starts an agent on the first node, where all of the load is translated.
    fn start(&mut self, binary: &Path) {
        let mut agent = self.spawn(binary);
        agent.wait_ready(START_MAX).unwrap();
        self.cluster.agents.push(agent);
    }

    fn spawn(&self, binary: &Path) -> Agent {
        let manifests = self.cluster.manifests.dir();
        Agent::spawn(self.cluster.node(0), binary, manifests, &[]).unwrap()
    }

    /// Whether something of this name is pinned.
    fn has(&self, pin: &str) -> bool {
        self.cluster.node(0).bpffs().join(pin).exists()
    }

    fn load(&self) -> [Load; 2] {
        let amount = amount();
        [
            Load::start(&self.pod, &self.vips, amount),
            Load::start(&self.outside, &self.node_ports, amount),
        ]
    }
}

/// Nothing was lost, and there was enough that could have been.
fn assert_unharmed(loads: [Load; 2], what: &str) {
    for (load, client) in loads.into_iter().zip(["the pod", "the client outside"]) {
        let Seen {
            bytes,
            requests,
            datagrams,
            failures,
            kernel,
        } = load.stop();
        eprintln!(
            "{what}: {client}: {bytes} bytes in streams, {requests} requests, {datagrams} datagrams"
        );
        assert_eq!(failures, BTreeMap::new(), "{what}: {client}");
        assert!(
            kernel.values().all(|count| *count == 0),
            "{what}: {client}: {kernel:?}"
        );
        let least = amount();
        assert!(
            bytes >= 2 * 64 * least.streams as u64,
            "{what}: {client}: {bytes} bytes"
        );
        assert!(
            requests >= least.rate,
            "{what}: {client}: {requests} requests"
        );
        assert!(
            datagrams >= u64::from(least.datagrams),
            "{what}: {client}: {datagrams} datagrams"
        );
    }
}

#[test]
fn nothing_is_lost_while_agents_are_killed_and_started_again() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::new();
    let binary = find_binary().unwrap();
    stage.start(&binary);
    let load = stage.load();
    for _ in 0..rounds() {
        stage.cluster.end_agents(true);
        pause(Duration::from_millis(300));
        stage.start(&binary);
    }
    pause(REST);
    assert_unharmed(load, "restarts");
}

/// The agent with the layouts of the next version: `LB_AGENT_NEXT` names it, else it lies where
/// `cargo xtask test` puts it.
fn find_next() -> PathBuf {
    let path = std::env::var_os("LB_AGENT_NEXT").map_or_else(
        || find_binary().unwrap().with_file_name("lb-agent-next"),
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "there is no {}: `cargo xtask test net` builds it",
        path.display()
    );
    path
}

/// The first attempt of a new build, which is killed; then the build before it has its turn, and either
/// goes on or says what to do.
fn interrupt(stage: &mut Stage, (binary, next): (&Path, &Path), killed: Killed) {
    let agent = stage.spawn(next);
    match killed {
        Killed::Never => {}
        Killed::After(time) => pause(time),
        Killed::At(pin) => {
            let until = Instant::now() + START_MAX;
            while !stage.has(pin) {
                assert!(Instant::now() < until, "no {pin}:\n{}", agent.log());
                pause(Duration::from_millis(1));
            }
        }
    }
    agent.kill().unwrap();
    if stage.has("layout-3") {
        stage.start(binary);
        assert!(!stage.has("upgrade-4"), "what was left is removed");
        stage.cluster.end_agents(true);
        return;
    }
    let mut refused = stage.spawn(binary);
    let log = format!("{}", refused.wait_ready(START_MAX).unwrap_err());
    assert!(
        log.contains("have layout 4, this version needs layout 3; run the version that made"),
        "{log}"
    );
}

#[test]
fn nothing_is_lost_when_a_build_with_other_layouts_takes_over() {
    if !can_run() {
        return;
    }
    let (binary, next) = (find_binary().unwrap(), find_next());
    let mut stage = Stage::new();
    for round in 0..rounds() {
        stage.start(&binary);
        let load = stage.load();
        stage.cluster.end_agents(round % 2 == 0);
        let killed = killed(round);
        if !matches!(killed, Killed::Never) {
            interrupt(&mut stage, (&binary, &next), killed);
        }
        stage.start(&next);
        let log = stage.cluster.agents[0].log();
        if matches!(killed, Killed::Never) {
            assert!(log.contains("layout 4 is in force"), "no upgrade:\n{log}");
        }
        assert!(
            stage.has("layout-4") && !stage.has("layout-3"),
            "{killed:?}: {log}"
        );
        assert!(!stage.has("upgrade-4"), "{killed:?}: {log}");
        pause(REST);
        assert_unharmed(load, &format!("an upgrade, killed {killed:?}"));
        // Back to the start: the pins of the newer layouts are removed, and with them the programs.
        stage.cluster.end_agents(false);
        let bpffs = stage.cluster.node(0).bpffs();
        std::fs::remove_dir_all(bpffs).unwrap();
        std::fs::create_dir(bpffs).unwrap();
    }
}
