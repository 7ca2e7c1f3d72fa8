// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lab of two nodes with an agent on each, a folder of manifests, and Services to dial.
//!
//! **Invariant:** a change has been applied on every node when [`Cluster::change`] returns.
//! Read next: `load.rs` for many connections, `inspect.rs` for what the kernel holds.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use lb_lab::agent::{READY_MAX, find_binary};
use lb_lab::{
    Agent, Builder, Host, HttpReply, Lab, LabError, Manifests, Node, Pod, Server, Service,
    Topology, Underlay, topology,
};

use crate::common::can_run;

/// A connect that takes this long lost its first SYN: the kernel repeats it after a second.
pub(crate) const CONNECT_MAX: Duration = Duration::from_millis(500);
/// Where the servers listen.
pub(crate) const TARGET: u16 = 9376;
/// How long an agent may take to bring a change into force.
const APPLY_MAX: Duration = Duration::from_secs(5);
/// An agent that reports nothing for this long has applied all there was.
const QUIET: Duration = Duration::from_millis(50);

/// Runs a test in each of the six combinations, each as a test of its own.
macro_rules! in_every_topology {
    ($($test:ident),+ $(,)?) => {
        in_every_topology!(@each bridge_with_br_netfilter_by_routes, 0, $($test),+);
        in_every_topology!(@each bridge_with_br_netfilter_by_vxlan, 1, $($test),+);
        in_every_topology!(@each bridge_without_br_netfilter_by_routes, 2, $($test),+);
        in_every_topology!(@each bridge_without_br_netfilter_by_vxlan, 3, $($test),+);
        in_every_topology!(@each routed_veths_by_routes, 4, $($test),+);
        in_every_topology!(@each routed_veths_by_vxlan, 5, $($test),+);
    };
    (@each $module:ident, $number:literal, $($test:ident),+) => {
        mod $module {
            $(#[test]
            fn $test() {
                crate::cluster::in_topology($number, super::$test);
            })+
        }
    };
}

/// Runs a test in one combination, if labs can be made here.
pub(crate) fn in_topology(number: usize, test: impl FnOnce(Builder)) {
    if can_run() {
        let (topology, underlay) = topology::EVERY[number];
        test(Lab::builder().topology(topology).underlay(underlay));
    }
}

/// Runs a test in the default combination and in the one that differs most from it.
pub(crate) fn in_default_and_routed(test: impl Fn(Builder)) {
    if can_run() {
        test(Lab::builder());
        test(
            Lab::builder()
                .topology(Topology::Routed)
                .underlay(Underlay::Vxlan),
        );
    }
}

/// A count or a duration's factor that `LB_SOAK=N` multiplies (by 10 if N is no larger number).
pub(crate) fn soak(count: usize) -> usize {
    match std::env::var("LB_SOAK").map(|text| text.parse::<usize>()) {
        Err(_) | Ok(Ok(0)) => count,
        Ok(Ok(factor)) if factor > 1 => count * factor,
        Ok(_) => count * 10,
    }
}

/// Waits without doing anything.
pub(crate) fn pause(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

/// A Service and the addresses at which it is dialled.
#[derive(Clone, Debug)]
pub(crate) struct Vip {
    pub(crate) service: Service,
    pub(crate) v4: SocketAddr,
    pub(crate) v6: SocketAddr,
}

impl Vip {
    /// Service `name` at 10.0.1.`number` and `fd00:10:0:1::number`, port 80, TCP and UDP.
    pub(crate) fn new(name: &str, number: u8) -> Self {
        let v4 = IpAddr::V4(Ipv4Addr::new(10, 0, 1, number));
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0, 1, 0, 0, 0, number.into());
        let service = Service::new(name, &[v4, v6.into()]);
        Self {
            service: service.tcp(80, TARGET).udp(80, TARGET),
            v4: SocketAddr::new(v4, 80),
            v6: SocketAddr::new(v6.into(), 80),
        }
    }

    /// Chooses backends at random.
    pub(crate) fn random(mut self) -> Self {
        self.service = self.service.annotation("lb-agent/algorithm", "random");
        self
    }

    /// Both addresses, IPv4 first, as [`Host::addresses`] has them.
    pub(crate) const fn remotes(&self) -> [SocketAddr; 2] {
        [self.v4, self.v6]
    }
}

/// A pod's own address behind a port of the same family as `like`.
pub(crate) fn own(pod: &Pod, like: SocketAddr, port: u16) -> SocketAddr {
    let [v4, v6] = pod.addresses();
    SocketAddr::new(if like.is_ipv4() { v4 } else { v6 }, port)
}

/// One request on a connection of its own, at the first try and without delay.
pub(crate) fn get(host: &Host, remote: SocketAddr, path: &str) -> HttpReply {
    let reply = host.http_get(remote, path);
    let reply = reply.unwrap_or_else(|error| fail(&format!("{host:?} to {remote}"), &error));
    assert!(
        reply.connect_time < CONNECT_MAX,
        "{host:?} to {remote}: {:?}",
        reply.connect_time
    );
    reply
}

/// Ends the test with an error and its causes.
pub(crate) fn fail(what: &str, error: &LabError) -> ! {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    let cause = cause.unwrap_or_default();
    assert_eq!(what, "no error", "{error}: {cause}");
    unreachable!("the two never are equal")
}

/// The cluster. Agents end before the lab is removed.
pub(crate) struct Cluster {
    pub(crate) agents: Vec<Agent>,
    servers: Vec<Server>,
    pub(crate) manifests: Manifests,
    pub(crate) lab: Lab,
}

impl Cluster {
    /// Two nodes as described, no agent yet.
    pub(crate) fn new(builder: Builder) -> Self {
        Self::of_nodes(builder, 2)
    }

    /// So many nodes as described, no agent yet.
    pub(crate) fn of_nodes(builder: Builder, count: usize) -> Self {
        let lab = builder.nodes(count).build().unwrap();
        let manifests = Manifests::at(lab.dir().join("manifests")).unwrap();
        for node in lab.nodes() {
            manifests.node(node).unwrap();
        }
        let (agents, servers) = (Vec::new(), Vec::new());
        Self {
            agents,
            servers,
            manifests,
            lab,
        }
    }

    /// The node with this number.
    pub(crate) fn node(&self, number: usize) -> &Node {
        self.lab.node(number)
    }

    /// A pod without a server.
    pub(crate) fn pod(&self, node: usize, name: &str) -> Pod {
        let address = lb_lab::PodAddress::Next;
        self.node(node).pod(name, address).unwrap()
    }

    /// A pod that serves its name on [`TARGET`] for as long as the cluster lives.
    pub(crate) fn web(&mut self, node: usize, name: &str) -> Pod {
        let pod = self.pod(node, name);
        self.servers.push(pod.serve(TARGET).unwrap());
        pod
    }

    /// The server of the pod with this name.
    pub(crate) fn server(&self, name: &str) -> &Server {
        let mut servers = self.servers.iter();
        servers.find(|server| server.host_name() == name).unwrap()
    }

    /// Writes a Service with these pods as endpoints; for use before agents run.
    pub(crate) fn publish(&self, vip: &Vip, pods: &[&Pod]) {
        self.manifests.service(&vip.service).unwrap();
        self.manifests.endpoints(&vip.service, pods).unwrap();
    }

    /// Starts an agent on every node and waits until each has programmed what there is.
    pub(crate) fn start_agents(&mut self) {
        self.start_agents_with(&[]);
    }

    /// The same with further arguments.
    pub(crate) fn start_agents_with(&mut self, arguments: &[&str]) {
        let binary = find_binary().unwrap();
        let nodes = self.lab.nodes().iter();
        let start = |node| Agent::spawn(node, &binary, self.manifests.dir(), arguments).unwrap();
        // All at once: each waits for the kernel's verifier most of the time.
        let mut started: Vec<_> = nodes.map(start).collect();
        for agent in &mut started {
            agent.wait_ready(READY_MAX).unwrap();
        }
        self.agents.append(&mut started);
    }

    /// Starts one agent and waits until it is ready.
    pub(crate) fn start_agent(&self, node: usize) -> Agent {
        self.start_agent_with(node, &[])
    }

    fn start_agent_with(&self, node: usize, arguments: &[&str]) -> Agent {
        let binary = find_binary().unwrap();
        self.node(node)
            .start_agent(&binary, self.manifests.dir(), arguments)
            .unwrap()
    }

    /// Ends every agent: by SIGTERM, or by SIGKILL.
    pub(crate) fn end_agents(&mut self, killed: bool) {
        for agent in self.agents.drain(..) {
            let ended = if killed { agent.kill() } else { agent.stop() };
            assert_eq!(ended.unwrap().success(), !killed);
        }
    }

    /// Changes manifests and waits until every agent has applied the change.
    pub(crate) fn change(&mut self, change: impl FnOnce(&Manifests) -> Result<(), LabError>) {
        let before: Vec<_> = self
            .agents
            .iter_mut()
            .map(|agent| agent.applied().unwrap_or(0))
            .collect();
        change(&self.manifests).unwrap();
        for (agent, before) in self.agents.iter_mut().zip(before) {
            let mut applied = agent.wait_applied(before, APPLY_MAX).unwrap();
            assert!(applied.is_some(), "nothing applied:\n{}", agent.log());
            // One file holds the endpoints of both families, which may come as two batches.
            while let Some(number) = applied {
                applied = agent.wait_applied(number, QUIET).unwrap();
            }
        }
    }

    /// Replaces a Service's endpoints on every node.
    pub(crate) fn set_endpoints(&mut self, vip: &Vip, pods: &[&Pod]) {
        self.change(|manifests| manifests.endpoints(&vip.service, pods));
    }

    /// Ends transmit checksum offload on the pods' ends on their nodes.
    pub(crate) fn tx_off_towards(pods: &[&Pod]) {
        for pod in pods {
            let command = format!("ethtool -K {} tx off", pod.device());
            pod.node().output(&command).unwrap();
        }
    }

    /// The same, and on every other device of the nodes.
    pub(crate) fn tx_off_on_nodes(&self, pods: &[&Pod]) {
        Self::tx_off_towards(pods);
        let bridge = matches!(self.lab.topology(), Topology::Bridge { .. }).then_some("cni0");
        for node in self.lab.nodes() {
            for device in bridge.into_iter().chain(node.uplinks().iter().copied()) {
                node.output(&format!("ethtool -K {device} tx off")).unwrap();
            }
        }
    }
}
