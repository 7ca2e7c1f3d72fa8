// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random worlds: a few Services with every kind of frontend, policy, scope, family and list, this
//! node with its addresses, and quarrels about all of them.
//!
//! **Invariant:** small sets to choose from, so that what can collide does.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_agent::cli::planning_options;
use lb_agent::model::endpoint::{Endpoint, EndpointPort, EndpointSlice, SliceKey};
use lb_agent::model::service::{
    IpFamily, Node, Protocol, Service, ServiceKey, ServicePort, ServiceType, TrafficPolicy,
};
use lb_agent::model::snapshot::{Change, Object, Update};
use lb_agent::model::tables::TableContent;
use lb_agent::reconcile::Settings;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::support::{Bench, endpoint, settings};

const SERVICES: [&str; 3] = ["a", "b", "c"];
const FLAGS: [&str; 8] = [
    "",
    "--parity=kube-proxy",
    "--masquerade-all",
    "--snat-local-backends",
    "--nodeport-addresses=primary",
    "--nodeport-addresses=192.0.2.10/32,2001:db8::/32",
    "--detect-local-mode=ClusterCIDR",
    "--detect-local-mode=NodeCIDR",
];

/// Everything that a node knows.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) objects: Vec<Object>,
    pub(crate) addresses: BTreeSet<IpAddr>,
}

impl World {
    /// A node that starts with this world.
    pub(crate) fn listed(&self, settings: &Settings) -> Bench {
        let mut bench = Bench::with(settings.clone(), TableContent::default(), 1);
        bench.reconciler.receive_addresses(self.addresses.clone());
        bench.take(Update::reset(self.objects.clone()));
        bench
    }

    /// What has to be told to who knows `before`.
    pub(crate) fn changes_from(&self, before: &[Object]) -> Vec<Change> {
        let kept: BTreeSet<_> = self.objects.iter().map(Object::reference).collect();
        let gone = before.iter().map(Object::reference);
        let gone = gone.filter(|reference| !kept.contains(reference));
        let new = self
            .objects
            .iter()
            .filter(|object| !before.contains(object));
        let new = new.cloned().map(Change::Apply);
        gone.map(Change::Delete).chain(new).collect()
    }
}

fn ips(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// Some of `all`, nearly always few.
fn some(all: &[&str], most: usize) -> impl Strategy<Value = Vec<IpAddr>> + use<> {
    subsequence(ips(all), 0..=most)
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port = |name: &'static str, numbers: Vec<u16>| {
        let protocol = select(vec![
            Protocol::Tcp,
            Protocol::Tcp,
            Protocol::Udp,
            Protocol::Sctp,
        ]);
        let node_port = select(vec![None, None, Some(30080), Some(30081)]);
        (select(numbers), protocol, node_port).prop_map(move |(port, protocol, node_port)| {
            ServicePort {
                name: name.to_owned(),
                protocol,
                port,
                node_port,
            }
        })
    };
    prop_oneof![
        2 => port("", vec![80, 80, 81]).prop_map(|p| vec![p]),
        1 => (port("x", vec![80, 30080]), port("y", vec![81, 30081])).prop_map(|(x, y)| vec![x, y]),
    ]
}

fn service(name: &'static str) -> impl Strategy<Value = Service> {
    let types = [
        ServiceType::ClusterIp,
        ServiceType::NodePort,
        ServiceType::LoadBalancer,
        ServiceType::LoadBalancer,
        ServiceType::ExternalName,
    ];
    let cluster_ips = vec![
        ips(&[]),
        ips(&["10.0.0.10"]),
        ips(&["10.0.0.11"]),
        ips(&["fd00:1::a"]),
        ips(&["10.0.0.10", "fd00:1::a"]),
        ips(&["fd00:1::b", "10.0.0.12"]),
    ];
    let ranges = ["10.0.0.0/8", "192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32"];
    let ranges: Vec<_> = ranges.iter().map(|r| r.parse().unwrap()).collect();
    let outside = ["198.51.100.7", "192.0.2.10", "2001:db8:7::7"];
    let balancers = ["203.0.113.5", "198.51.100.7", "2001:db8:5::5"];
    (
        (select(types.to_vec()), select(cluster_ips), ports()),
        (
            some(&outside, 2),
            some(&balancers, 2),
            subsequence(ranges, 0..=2),
        ),
        (policy(), policy(), prop::bool::weighted(0.05)),
        select(vec![None, None, Some(10), Some(10_800)]),
        (
            select(vec!["", "1", "2"]),
            select(vec![None, Some(1), Some(2)]),
            // Seldom, because each has a table of hundreds of slots.
            prop::option::weighted(0.04, select(vec!["maglev", "source-hash"])),
        ),
    )
        .prop_map(
            move |(basics, outside, policies, affinity_timeout_secs, identity)| Service {
                key: ServiceKey::new("default", name),
                uid: identity.0.to_owned(),
                created_secs: identity.1,
                algorithm: identity.2.map(str::to_owned),
                service_type: basics.0,
                cluster_ips: basics.1,
                ports: basics.2,
                external_ips: outside.0,
                load_balancer_ips: outside.1,
                source_ranges: outside.2,
                internal_policy: policies.0,
                external_policy: policies.1,
                other_proxy: policies.2,
                affinity_timeout_secs,
                health_check_node_port: Some(31_000),
                ..Service::default()
            },
        )
}

/// Endpoint `number` of `family` in some state.
fn an_endpoint(family: IpFamily, number: usize) -> impl Strategy<Value = Option<Endpoint>> {
    let address = match family {
        IpFamily::V4 => format!("10.244.0.{}", number + 1),
        IpFamily::V6 => format!("fd00:2::{}", number + 1),
    };
    let states = vec![
        None,
        None,
        Some((true, true, false)),
        Some((true, true, false)),
        Some((true, true, false)),
        Some((false, true, true)),
        Some((false, false, true)),
        Some((false, false, false)),
    ];
    let nodes = select(vec![None, Some("node-a"), Some("node-a"), Some("node-b")]);
    let zones = select(vec![
        vec![],
        vec!["zone-1"],
        vec!["zone-2"],
        vec!["zone-1", "zone-2"],
    ]);
    let weights = select(vec![1, 1, 1, 1, 1, 3, 0]);
    (select(states), nodes, zones, weights).prop_map(move |(state, node, zones, weight)| {
        let (ready, serving, terminating) = state?;
        Some(Endpoint {
            ready,
            serving,
            terminating,
            node: node.map(str::to_owned),
            weight,
            zone_hints: zones.iter().map(|zone| (*zone).to_owned()).collect(),
            ..endpoint(&address)
        })
    })
}

fn slice(service: &'static str, number: usize) -> impl Strategy<Value = EndpointSlice> {
    // The two slices of a family share their second endpoint.
    let of = move |family| {
        let endpoints = (0..3).map(|at| an_endpoint(family, number % 2 * 2 + at));
        (Just(family), endpoints.collect::<Vec<_>>())
    };
    let ports = select(vec![("", 8080), ("", 8081), ("x", 8080), ("y", 8081)]);
    let protocol = select(vec![
        Protocol::Tcp,
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Sctp,
    ]);
    let family = if number < 2 {
        IpFamily::V4
    } else {
        IpFamily::V6
    };
    (of(family), prop::collection::vec((ports, protocol), 1..3)).prop_map(
        move |((family, endpoints), ports)| EndpointSlice {
            triggered_micros: None,
            key: SliceKey {
                namespace: "default".to_owned(),
                name: format!("{service}-{number}"),
            },
            service: Some(ServiceKey::new("default", service)),
            family,
            skipped: false,
            names: false,
            ports: ports
                .into_iter()
                .map(|((name, port), protocol)| EndpointPort {
                    name: name.to_owned(),
                    protocol,
                    port,
                })
                .collect(),
            endpoints: endpoints.into_iter().flatten().collect(),
            rejected: Vec::new(),
            ignored: Vec::new(),
        },
    )
}

fn node() -> impl Strategy<Value = Node> {
    let addresses = some(
        &["192.0.2.10", "192.0.2.11", "2001:db8::10", "203.0.113.5"],
        3,
    );
    let zone = select(vec![None, Some("zone-1".to_owned())]);
    let cidrs = vec![vec![], vec!["10.244.0.0/24".parse().unwrap()]];
    (addresses, zone, select(cidrs)).prop_map(|(addresses, zone, pod_cidrs)| Node {
        leaving: false,
        name: "node-a".to_owned(),
        addresses,
        pod_cidrs,
        zone,
    })
}

/// Any world.
pub(crate) fn world() -> impl Strategy<Value = World> {
    let services = SERVICES.map(|name| {
        let slices = [0, 1, 2, 3].map(|number| prop::option::weighted(0.8, slice(name, number)));
        (prop::option::weighted(0.85, service(name)), slices)
    });
    let kernel = some(
        &["192.0.2.10", "192.0.2.11", "203.0.113.5", "2001:db8::10"],
        4,
    );
    (services, prop::option::weighted(0.9, node()), kernel).prop_map(|(services, node, kernel)| {
        let mut objects: Vec<Object> = node.map(Object::Node).into_iter().collect();
        for (service, slices) in services {
            objects.extend(service.map(Object::Service));
            objects.extend(slices.into_iter().flatten().map(Object::EndpointSlice));
        }
        World {
            objects,
            addresses: kernel.into_iter().collect(),
        }
    })
}

/// Any choice of the operator.
pub(crate) fn any_settings() -> impl Strategy<Value = Settings> {
    select(FLAGS.to_vec()).prop_map(|flag| {
        let flags: Vec<&str> = flag.split_whitespace().collect();
        Settings {
            options: planning_options(&flags).unwrap(),
            ..settings()
        }
    })
}
