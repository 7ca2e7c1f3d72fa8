// SPDX-License-Identifier: MIT OR Apache-2.0
//! From outside to node ports, external addresses and load balancers, by each traffic policy.
//!
//! The router sends the external addresses to node 0, as a load balancer in the network does.
//! **Invariant:** whom the server sees is asserted to the address, over TCP and UDP.
//! Read next: `nodeport.rs`, whose questions these are.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_common::Reason;
use lb_lab::{Builder, Host, HttpClient, LabError, Place, Pod, UdpClient, Underlay};

use crate::cluster::{Cluster, Vip, in_default_and_routed};
use crate::inspect;
use crate::load::assert_no_retransmission;
use crate::nodeport::{ask, node_address};

in_every_topology!(
    a_remote_backend_sees_the_node_and_a_local_one_the_client,
    the_local_policy_keeps_the_source_and_is_silent_without_a_local_backend,
);

const NODE_PORT: u16 = 30_090;
/// How long nothing must come before it is called silence.
const SILENCE: Duration = Duration::from_millis(300);

/// A Service at every kind of external address.
pub(crate) struct External {
    pub(crate) vip: Vip,
    node_port: u16,
    /// Of `externalIPs` and of the load balancer, IPv4 first.
    addresses: [[IpAddr; 2]; 2],
}

impl External {
    pub(crate) fn new(name: &str, number: u8) -> Self {
        let address = |host: u8| {
            [
                format!("198.51.100.{host}").parse().unwrap(),
                format!("2001:db8:198::{host}").parse().unwrap(),
            ]
        };
        let addresses = [address(10 + number), address(50 + number)];
        let [[v4, v6], balancer] = addresses;
        let node_port = NODE_PORT + u16::from(number);
        let mut vip = Vip::new(name, number);
        vip.service = vip
            .service
            .node_port(node_port)
            .load_balancer(&balancer)
            .spec(&format!("externalIPs: [{v4}, \"{v6}\"]"));
        Self {
            vip,
            node_port,
            addresses,
        }
    }

    pub(crate) fn spec(mut self, line: &str) -> Self {
        self.vip.service = self.vip.service.spec(line);
        self
    }

    pub(crate) fn node_port(&self, cluster: &Cluster, node: usize, family: usize) -> SocketAddr {
        node_address(cluster, node, family, self.node_port)
    }

    pub(crate) fn external(&self, family: usize) -> SocketAddr {
        SocketAddr::new(self.addresses[0][family], 80)
    }

    pub(crate) fn balancer(&self, family: usize) -> SocketAddr {
        SocketAddr::new(self.addresses[1][family], 80)
    }

    /// Where it is dialled through this node: node port, external address, load balancer.
    pub(crate) fn remotes(&self, cluster: &Cluster, node: usize, family: usize) -> [SocketAddr; 3] {
        [
            self.node_port(cluster, node, family),
            self.external(family),
            self.balancer(family),
        ]
    }
}

/// A cluster with the external addresses routed to node 0.
pub(crate) fn routed_to_node_0(builder: Builder) -> Cluster {
    let cluster = Cluster::new(builder);
    let (router, [v4, v6]) = (cluster.lab.router(), cluster.node(0).addresses());
    for route in [
        format!("198.51.100.0/24 via {v4}"),
        format!("2001:db8:198::/64 via {v6}"),
    ] {
        router.output(&format!("ip route add {route}")).unwrap();
    }
    cluster
}

/// The address by which a node reaches the pods of other nodes.
pub(crate) fn towards_other_nodes(cluster: &Cluster, node: usize, family: usize) -> IpAddr {
    let node = cluster.node(node);
    let (v4, v6) = node.vxlan_addresses();
    match cluster.lab.underlay() {
        Underlay::Routes => node.addresses()[family],
        Underlay::Vxlan => [IpAddr::V4(v4), IpAddr::V6(v6)][family],
    }
}

/// Asks and asserts who serves and whom the server sees, over TCP and UDP.
pub(crate) fn assert_served(client: &Host, remote: SocketAddr, name: &str, source: IpAddr) {
    let source = source.to_string();
    let expected = [name, name, &source, &source];
    assert_eq!(
        ask(client, remote),
        expected,
        "{client:?} to {remote}: names, then sources, over TCP and UDP"
    );
}

/// Asserts that neither TCP nor UDP gets an answer, not even an error.
fn assert_silent(client: &Host, remote: SocketAddr) {
    let tcp = HttpClient::new(remote).timeout(SILENCE);
    let udp = || {
        let socket = UdpClient::bind(remote, None)?;
        socket.set_timeout(SILENCE)?;
        socket.ask("hostname").map(drop)
    };
    let results = client.run(|| [tcp.connect().map(drop), udp()]).unwrap();
    for (result, kind) in results
        .into_iter()
        .zip([ErrorKind::TimedOut, ErrorKind::WouldBlock])
    {
        let ended = result.map_err(|error| {
            if let LabError::Io { source, .. } = error {
                source.kind()
            } else {
                ErrorKind::Other
            }
        });
        assert_eq!(ended, Err(kind), "{client:?} to {remote}");
    }
}

fn a_remote_backend_sees_the_node_and_a_local_one_the_client(builder: Builder) {
    let mut cluster = routed_to_node_0(builder);
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pod = cluster.pod(0, "client");
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let services = [External::new("near", 1), External::new("far", 2)];
    for (service, pod) in services.iter().zip([&near, &far]) {
        cluster.publish(&service.vip, &[pod]);
    }
    cluster.start_agents();
    let capture = outside.capture("eth0").unwrap();
    for family in [0, 1] {
        let own = outside.addresses()[family];
        let node = towards_other_nodes(&cluster, 0, family);
        for remote in services[0].remotes(&cluster, 0, family) {
            assert_served(&outside, remote, "near", own);
        }
        for remote in services[1].remotes(&cluster, 0, family) {
            assert_served(&outside, remote, "far", node);
        }
        // By the other node it is the other way round.
        let node = towards_other_nodes(&cluster, 1, family);
        let remotes = services.each_ref();
        let [near, far] = remotes.map(|service| service.node_port(&cluster, 1, family));
        assert_served(&outside, near, "near", node);
        assert_served(&outside, far, "far", own);
    }
    let recording = capture.stop().unwrap();
    assert_no_retransmission(&recording);
    let leaked = |address: IpAddr| {
        let backends = [&near, &far].map(|pod| pod.addresses()).concat();
        backends.contains(&address)
    };
    let leaked = recording.count(|from, _, to, _| leaked(from) || leaked(to));
    assert_eq!(leaked, 0, "the client saw a backend's address");
    // A pod that dials an external address never leaves its node for the load balancer.
    let uplink = cluster.node(0).capture("eth0").unwrap();
    for family in [0, 1] {
        for (service, name) in services.iter().zip(["near", "far"]) {
            for remote in service.remotes(&cluster, 0, family) {
                let [web, udp, ..] = ask(&pod, remote);
                assert_eq!((&*web, &*udp), (name, name), "{remote} from a pod");
            }
        }
    }
    let external = services.each_ref().map(|service| service.addresses);
    let external = external.concat().concat();
    let out = |from, _, to, _| external.contains(&from) || external.contains(&to);
    assert_eq!(uplink.stop().unwrap().count(out), 0);
}

/// Every address that a node has.
pub(crate) fn own_addresses(node: &Host) -> Vec<IpAddr> {
    let text = node.output("ip -o addr show").unwrap();
    let prefixes = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| word.starts_with("inet"))?;
        words.next()?.split('/').next()?.parse().ok()
    });
    prefixes.collect()
}

/// Asserts that the server on a node sees that node and not its client.
fn assert_masqueraded(node: &Host, client: &Host, remote: SocketAddr, what: &str) {
    let [web, udp, tcp_source, udp_source] = ask(client, remote);
    assert_eq!((&*web, &*udp), ("near", "near"));
    let own = own_addresses(node);
    for source in [tcp_source, udp_source] {
        let source = source.parse().unwrap();
        assert!(own.contains(&source), "{what}: {remote} saw {source}");
    }
}

#[test]
fn options_bring_back_the_masquerade_towards_local_backends() {
    in_default_and_routed(|builder| {
        let mut cluster = routed_to_node_0(builder);
        let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
        let pod = cluster.pod(0, "client");
        let near = cluster.web(0, "near");
        let service = External::new("near", 1);
        cluster.publish(&service.vip, &[&near]);
        for (arguments, also_from_pods) in [
            (&["--snat-local-backends"][..], false),
            (&["--parity", "kube-proxy"], false),
            (&["--masquerade-all"], true),
            (&[], false),
        ] {
            cluster.start_agents_with(arguments);
            let node = cluster.node(0);
            let what = format!("{arguments:?}");
            for family in [0, 1] {
                for remote in service.remotes(&cluster, 0, family) {
                    if arguments.is_empty() {
                        assert_served(&outside, remote, "near", outside.addresses()[family]);
                    } else {
                        assert_masqueraded(node, &outside, remote, &what);
                    }
                }
                let remote = service.vip.remotes()[family];
                if also_from_pods {
                    assert_masqueraded(node, &pod, remote, &what);
                } else {
                    assert_served(&pod, remote, "near", pod.addresses()[family]);
                }
            }
            cluster.end_agents(false);
        }
    });
}

/// What node `here` must do under the policy Local while the only backend is on it.
fn assert_local(
    cluster: &Cluster,
    service: &External,
    clients: (&Host, [&Pod; 2]),
    here: usize,
    name: &str,
) {
    let (outside, pods) = clients;
    let there = 1 - here;
    for family in [0, 1] {
        let source = outside.addresses()[family];
        let remote = service.node_port(cluster, here, family);
        assert_served(outside, remote, name, source);
        let before = inspect::reason(cluster.node(there), Reason::PolicyDrop);
        assert_silent(outside, service.node_port(cluster, there, family));
        let after = inspect::reason(cluster.node(there), Reason::PolicyDrop);
        assert_eq!(after - before, 2, "a SYN and a datagram");
        // The router knows node 0 only.
        for remote in [service.external(family), service.balancer(family)] {
            if here == 0 {
                assert_served(outside, remote, name, source);
            } else {
                assert_silent(outside, remote);
            }
        }
        // Pods get any backend of the cluster, as if out to the load balancer and back.
        for (node, pod) in pods.into_iter().enumerate() {
            for remote in service.remotes(cluster, node, family) {
                assert_served(pod, remote, name, pod.addresses()[family]);
            }
            let remote = service.vip.remotes()[family];
            assert_served(pod, remote, name, pod.addresses()[family]);
        }
    }
}

fn the_local_policy_keeps_the_source_and_is_silent_without_a_local_backend(builder: Builder) {
    let mut cluster = routed_to_node_0(builder);
    let outside = cluster.lab.client("outside", Place::BeyondRouter).unwrap();
    let pods = [cluster.pod(0, "client-0"), cluster.pod(1, "client-1")];
    let (near, far) = (cluster.web(0, "near"), cluster.web(1, "far"));
    let service = External::new("local", 1).spec("externalTrafficPolicy: Local");
    cluster.publish(&service.vip, &[&near]);
    cluster.start_agents();
    let clients = (&outside, pods.each_ref());
    assert_local(&cluster, &service, clients, 0, "near");
    cluster.set_endpoints(&service.vip, &[&far]);
    assert_local(&cluster, &service, clients, 1, "far");
    // Without any endpoint at all, clients are told.
    cluster.set_endpoints(&service.vip, &[]);
    for family in [0, 1] {
        for remote in service.remotes(&cluster, 0, family) {
            crate::nodeport::refused(&outside, remote);
        }
    }
}

#[test]
fn source_ranges_admit_to_the_address_of_the_load_balancer_only() {
    in_default_and_routed(|builder| {
        let mut cluster = routed_to_node_0(builder);
        let clients = ["in", "out"].map(|name| {
            let client = cluster.lab.client(name, Place::BeyondRouter);
            client.unwrap()
        });
        let pod = cluster.pod(0, "client");
        let near = cluster.web(0, "near");
        let [v4, v6] = clients[0].addresses();
        let both = format!("loadBalancerSourceRanges: [{v4}/32, \"{v6}/128\"]");
        let both = External::new("both", 1).spec(&both);
        let only = format!("loadBalancerSourceRanges: [{v4}/32]");
        let only = External::new("only", 2).spec(&only);
        cluster.publish(&both.vip, &[&near]);
        cluster.publish(&only.vip, &[&near]);
        cluster.start_agents();
        let mut refused = 0;
        for (service, restricted) in [(&both, [true, true]), (&only, [true, false])] {
            for family in [0, 1] {
                for (client, admitted) in [(&clients[0], true), (&clients[1], false)] {
                    let source = client.addresses()[family];
                    for remote in [
                        service.node_port(&cluster, 0, family),
                        service.external(family),
                    ] {
                        assert_served(client, remote, "near", source);
                    }
                    let remote = service.balancer(family);
                    if admitted || !restricted[family] {
                        assert_served(client, remote, "near", source);
                    } else {
                        assert_silent(client, remote);
                        refused += 2;
                    }
                }
                // kube-proxy makes no exception for pods either.
                let remote = service.balancer(family);
                if restricted[family] {
                    assert_silent(&pod, remote);
                    refused += 2;
                } else {
                    assert_served(&pod, remote, "near", pod.addresses()[family]);
                }
            }
        }
        let counted = inspect::reason(cluster.node(0), Reason::SourceRange);
        assert_eq!(counted, refused);
        // A range that is added later admits its clients at once.
        let wider = External::new("both", 1).spec(
            "loadBalancerSourceRanges: [203.0.113.0/24, \"2001:db8:203::/64\", 10.244.0.0/16]",
        );
        cluster.change(|manifests| manifests.service(&wider.vip.service));
        for family in [0, 1] {
            let remote = wider.balancer(family);
            assert_served(&clients[1], remote, "near", clients[1].addresses()[family]);
        }
        assert_served(&pod, wider.balancer(0), "near", pod.addresses()[0]);
        assert_silent(&pod, wider.balancer(1));
    });
}
