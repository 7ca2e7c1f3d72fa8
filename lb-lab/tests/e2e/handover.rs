// SPDX-License-Identifier: MIT OR Apache-2.0
//! Taking over from kube-proxy on a node that serves: first its rules alone, then both, then we.
//!
//! The rules are of the shape of kube-proxy's, in our own words. What they have translated stays
//! with conntrack; our programs come before it and take what is new.
//! **Invariant:** data flows on every old connection throughout, each byte checked; who translates
//! is read from a counter in the rules. Read next: `drain.rs`, the way back.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use lb_lab::{Builder, Host, HttpClient, HttpConnection, Node, Place, Pod, UdpClient};

use crate::cluster::{CONNECT_MAX, Cluster, TARGET, Vip, get, in_default_and_routed, pause};
use crate::load::assert_no_retransmission;
use crate::nodeport::node_address;

const NODE_PORT: u16 = 30_040;
/// What each round sends up and down a connection.
const BYTES: u64 = 100_000;
/// Rounds that every connection must make in each state of the node.
const ROUNDS: usize = 3;
/// How long these rounds may take.
const ROUNDS_MAX: Duration = Duration::from_secs(20);

/// One way to a backend: who dials what, and who answers.
pub(crate) struct Way<'a> {
    pub(crate) client: &'a Host,
    pub(crate) remote: SocketAddr,
    pub(crate) name: &'static str,
}

impl Way<'_> {
    fn open(&self) -> HttpConnection {
        let connect = || HttpClient::new(self.remote).connect();
        let connection = self.client.run(connect).unwrap().unwrap();
        assert!(connection.connect_time() < CONNECT_MAX, "{}", self.remote);
        connection
    }

    /// A socket of UDP that has been answered.
    fn socket(&self) -> UdpClient {
        let bind = || UdpClient::bind(self.remote, None);
        let socket = self.client.run(bind).unwrap().unwrap();
        self.assert_answered(&socket, "at first");
        socket
    }

    fn assert_answered(&self, socket: &UdpClient, when: &str) {
        let answer = socket.ask("hostname").map_err(|error| error.to_string());
        let (client, remote) = (self.client, self.remote);
        assert_eq!(
            answer.as_deref(),
            Ok(self.name),
            "{when}: {client:?} to {remote}"
        );
    }
}

/// Connections on which data flows until they are ended.
pub(crate) struct Flows<'scope> {
    threads: Vec<(ScopedJoinHandle<'scope, ()>, &'scope AtomicUsize)>,
}

impl<'scope> Flows<'scope> {
    /// Transfers on a connection of each way, up and down, until `stop` is set.
    pub(crate) fn start<'env>(
        scope: &'scope thread::Scope<'scope, 'env>,
        ways: &'env [Way<'env>],
        rounds: &'env [AtomicUsize],
        stop: &'env AtomicBool,
    ) -> Self {
        let threads = ways.iter().zip(rounds).map(|(way, rounds)| {
            let mut connection = way.open();
            let transfer = move || {
                while !stop.load(Ordering::Relaxed) {
                    connection.upload(BYTES).unwrap();
                    connection.download(BYTES).unwrap();
                    assert_eq!(connection.get("/").unwrap().text(), way.name);
                    rounds.fetch_add(1, Ordering::Relaxed);
                    pause(Duration::from_millis(5));
                }
            };
            (scope.spawn(transfer), rounds)
        });
        Self {
            threads: threads.collect(),
        }
    }

    /// Waits until every connection has made some more rounds.
    pub(crate) fn assert_flowing(&self, when: &str) {
        let until = Instant::now() + ROUNDS_MAX;
        for (number, (thread, rounds)) in self.threads.iter().enumerate() {
            let wanted = rounds.load(Ordering::Relaxed) + ROUNDS;
            while rounds.load(Ordering::Relaxed) < wanted {
                let alive = !thread.is_finished() && Instant::now() < until;
                assert!(alive, "{when}: connection {number} has come to a halt");
                pause(Duration::from_millis(5));
            }
        }
    }
}

/// Ends the transfers also when the test fails; the scope would wait for them forever.
pub(crate) struct End<'a>(pub(crate) &'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A table of the shape of kube-proxy's, with a counter of what it translates.
pub(crate) fn kube_proxy(node: &Node, services: &[(&Vip, &Pod, u16)]) -> String {
    let mut rules = String::new();
    for (vip, pod, node_port) in services {
        let addresses = vip.remotes().into_iter().zip(node.addresses());
        for ((remote, node), (ip, pod)) in
            addresses.zip(["ip", "ip6"].into_iter().zip(pod.addresses()))
        {
            let to = SocketAddr::new(pod, TARGET);
            let (vip, port) = (remote.ip(), remote.port());
            for (address, port, mark) in [
                (vip, port, ""),
                (node, *node_port, "meta mark set meta mark or 0x4000 "),
            ] {
                writeln!(
                    rules,
                    "    {ip} daddr {address} meta l4proto {{ tcp, udp }} th dport {port} \
                     counter name translated {mark}dnat {ip} to {to}"
                )
                .unwrap();
            }
        }
    }
    format!(
        "table inet kube-proxy {{
  counter translated {{ }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
{rules}  }}
  chain output {{
    type nat hook output priority -100; policy accept;
{rules}  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }}
}}
"
    )
}

/// How many flows the rules have translated.
pub(crate) fn translated_by_rules(node: &Node) -> u64 {
    let text = node
        .output("nft list counter inet kube-proxy translated")
        .unwrap();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

#[test]
fn connections_through_kube_proxy_go_on_when_agents_take_over_and_its_rules_go() {
    in_default_and_routed(take_over);
}

fn take_over(builder: Builder) {
    let mut cluster = Cluster::new(builder);
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
    let rules = cluster.lab.dir().join("kube-proxy.nft");
    fs::write(&rules, kube_proxy(cluster.node(0), &services)).unwrap();
    cluster
        .node(0)
        .output(&format!("nft -f {}", rules.display()))
        .unwrap();
    let mut ways = Vec::new();
    for family in [0, 1] {
        for ((vip, _, node_port), name) in services.iter().zip(["near", "far"]) {
            let node_port = node_address(&cluster, 0, family, *node_port);
            for (client, remote) in [(&*pod, vip.remotes()[family]), (&outside, node_port)] {
                ways.push(Way {
                    client,
                    remote,
                    name,
                });
            }
        }
    }
    hand_over(&mut cluster, &ways);
}

/// The three states of the node, and what must flow in each.
fn hand_over(cluster: &mut Cluster, ways: &[Way]) {
    let (stop, before, later) = (AtomicBool::new(false), counts(ways), counts(ways));
    thread::scope(|scope| {
        let _end = End(&stop);
        let old = Flows::start(scope, ways, &before, &stop);
        let old_sockets: Vec<_> = ways.iter().map(Way::socket).collect();
        old.assert_flowing("by the rules alone");
        let by_rules = translated_by_rules(cluster.node(0));
        assert_eq!(by_rules, 2 * ways.len() as u64, "TCP and UDP");

        cluster.start_agents();
        old.assert_flowing("both are there");
        let captures =
            [ways[0].client, ways[1].client].map(|client| client.capture("eth0").unwrap());
        for (way, socket) in ways.iter().zip(&old_sockets) {
            way.assert_answered(socket, "an old socket");
            assert_eq!(get(way.client, way.remote, "/").text(), way.name);
        }
        let new = Flows::start(scope, ways, &later, &stop);
        let new_sockets: Vec<_> = ways.iter().map(Way::socket).collect();
        new.assert_flowing("new ones beside the rules");
        assert_eq!(
            translated_by_rules(cluster.node(0)),
            by_rules,
            "what is new does not reach the rules"
        );

        let remove = "nft delete table inet kube-proxy";
        cluster.node(0).output(remove).unwrap();
        new.assert_flowing("without the rules");
        // Conntrack has their translations for as long as any rule of NAT is left on the node.
        old.assert_flowing("without the rules that began them");
        for (way, (old, new)) in ways.iter().zip(old_sockets.iter().zip(&new_sockets)) {
            way.assert_answered(old, "an old socket, without the rules");
            way.assert_answered(new, "a new socket, without the rules");
            assert_eq!(get(way.client, way.remote, "/").text(), way.name);
        }
        for capture in captures {
            assert_no_retransmission(&capture.stop().unwrap());
        }
    });
}

pub(crate) fn counts(ways: &[Way]) -> Vec<AtomicUsize> {
    ways.iter().map(|_| AtomicUsize::new(0)).collect()
}
