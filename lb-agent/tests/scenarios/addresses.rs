// SPDX-License-Identifier: MIT OR Apache-2.0
//! Addresses of the node's devices that are addresses of Services too, as either comes and goes.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_agent::model::service::{Node, Service};
use lb_agent::model::snapshot::{Object, Update};
use lb_agent::model::tables::TableContent;
use lb_agent::plan::node::{DetectLocal, LocalClusterIps, PlanOptions};

use crate::support::{Bench, service, settings, slice};

const WEB: &str = "10.0.0.10";

fn ips(words: &str) -> BTreeSet<IpAddr> {
    let words = words.split_whitespace();
    words.map(|word| word.parse().unwrap()).collect()
}

fn objects() -> Vec<Object> {
    let web = Service {
        load_balancer_ips: vec!["203.0.113.7".parse().unwrap()],
        ..service("web", WEB)
    };
    vec![
        Object::Service(web),
        Object::Service(service("api", "10.0.0.11")),
        Object::EndpointSlice(slice("web", &["10.244.0.1"])),
        Object::Node(node(&["10.244.1.0/24"])),
    ]
}

fn node(pod_cidrs: &[&str]) -> Node {
    Node {
        leaving: false,
        name: "node-a".to_owned(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        pod_cidrs: pod_cidrs
            .iter()
            .map(|range| range.parse().unwrap())
            .collect(),
        zone: None,
    }
}

fn bench(options: PlanOptions) -> Bench {
    let mut settings = settings();
    settings.options = options;
    let mut bench = Bench::with(settings, TableContent::default(), 1);
    bench.reconciler.receive_addresses(ips("192.0.2.1"));
    bench
}

fn served(bench: &Bench) -> Vec<String> {
    let frontends = bench.tables.content().v4.frontends.keys();
    frontends
        .map(|key| IpAddr::from(key.address).to_string())
        .collect()
}

fn warnings(bench: &Bench) -> Vec<String> {
    let all = bench.reconciler.warnings();
    all.map(|(key, warning)| format!("{key} {}", warning.reason()))
        .collect()
}

#[test]
fn a_cluster_address_is_left_to_the_host_while_a_device_has_it() {
    let mut bench = bench(PlanOptions::default());
    bench.take(Update::reset(objects()));
    assert_eq!(served(&bench), [WEB, "10.0.0.11", "203.0.113.7"]);
    bench.writes();
    bench
        .reconciler
        .receive_addresses(ips("192.0.2.1 10.0.0.10 203.0.113.7"));
    assert!(bench.reconciler.is_pending());
    bench.sync();
    assert_eq!(served(&bench), ["10.0.0.11", "203.0.113.7"]);
    assert_eq!(bench.writes(), [format!("delete frontend {WEB}:80 TCP")]);
    assert_eq!(warnings(&bench), ["default/web LeftToHost"]);
    assert_eq!(bench.reconciler.take_news().len(), 1);
    bench.reconciler.receive_addresses(ips("192.0.2.1"));
    bench.sync();
    assert_eq!(served(&bench), [WEB, "10.0.0.11", "203.0.113.7"]);
    assert!(warnings(&bench).is_empty());
}

#[test]
fn a_service_that_comes_to_an_address_of_a_device_is_left_to_the_host_from_the_start() {
    let mut bench = bench(PlanOptions::default());
    bench.take(Update::reset(Vec::new()));
    bench.reconciler.receive_addresses(ips("10.0.0.10"));
    bench.apply(Object::Service(service("web", WEB)));
    assert_eq!(served(&bench), [""; 0]);
    assert_eq!(warnings(&bench), ["default/web LeftToHost"]);
}

#[test]
fn a_cluster_address_on_a_device_is_served_if_that_is_chosen() {
    let mut bench = bench(PlanOptions {
        local_cluster_ips: LocalClusterIps::Serve,
        ..PlanOptions::default()
    });
    bench.take(Update::reset(objects()));
    bench.writes();
    bench
        .reconciler
        .receive_addresses(ips("192.0.2.1 10.0.0.10"));
    bench.sync();
    assert_eq!(bench.writes(), [""; 0]);
    assert!(warnings(&bench).is_empty());
}

#[test]
fn the_kernel_side_learns_which_addresses_belong_to_services() {
    let mut bench = bench(PlanOptions::default());
    let learn = |bench: &mut Bench| {
        let facts = bench.reconciler.take_cluster_facts()?;
        Some(facts.service_addresses)
    };
    assert_eq!(learn(&mut bench), None, "before the first list");
    bench.take(Update::reset(objects()));
    assert_eq!(learn(&mut bench), Some(ips("")));
    assert_eq!(learn(&mut bench), None, "nothing has changed");
    // The Node object names the first one, whoever else does.
    bench.apply(Object::Service(Service {
        external_ips: vec!["192.0.2.1".parse().unwrap()],
        ..service("api", "10.0.0.11")
    }));
    bench
        .reconciler
        .receive_addresses(ips("192.0.2.1 10.0.0.10 203.0.113.7 198.51.100.1"));
    assert_eq!(learn(&mut bench), Some(ips("10.0.0.10 203.0.113.7")));
    bench.apply(Object::Service(service("web", WEB)));
    assert_eq!(learn(&mut bench), Some(ips("10.0.0.10")));
    bench.apply(Object::EndpointSlice(slice("web", &["10.244.0.2"])));
    assert_eq!(learn(&mut bench), None, "endpoints have no say");
}

#[test]
fn the_kernel_side_learns_the_pods_ranges_of_the_node_as_they_change() {
    let ranges = |detect_local: DetectLocal| {
        let mut bench = bench(PlanOptions {
            detect_local,
            ..PlanOptions::default()
        });
        let mut told = Vec::new();
        bench.take(Update::reset(Vec::new()));
        told.push(bench.reconciler.take_cluster_facts().unwrap().pod_ranges);
        for pod_cidrs in [&["10.244.1.0/24"][..], &["10.244.2.0/24", "fd00:2::/64"]] {
            bench.apply(Object::Node(node(pod_cidrs)));
            told.push(bench.reconciler.take_cluster_facts().unwrap().pod_ranges);
        }
        let show = |ranges: Option<Vec<_>>| {
            let ranges = ranges?;
            let ranges = ranges
                .iter()
                .map(lb_agent::model::prefix::Prefix::to_string);
            Some(ranges.collect::<Vec<_>>().join(" "))
        };
        told.into_iter().map(show).collect::<Vec<_>>()
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        ranges(DetectLocal::NodeCidr),
        [
            None,
            some("10.244.1.0/24"),
            some("10.244.2.0/24 fd00:2::/64")
        ]
    );
    let cluster = vec!["10.244.0.0/16".parse().unwrap()];
    let always = some("10.244.0.0/16");
    assert_eq!(
        ranges(DetectLocal::ClusterCidr(cluster)),
        [always.clone(), always.clone(), always]
    );
    assert_eq!(ranges(DetectLocal::Device), [None, None, None]);
}
