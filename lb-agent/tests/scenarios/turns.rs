// SPDX-License-Identifier: MIT OR Apache-2.0
//! One Service that changes what it is: each change takes effect, and its way back restores what
//! was.

use lb_agent::model::service::{IpFamily, Node, Protocol, Service, ServiceType, TrafficPolicy};
use lb_agent::model::snapshot::Object;

use crate::support::{Bench, endpoint, port, service, slice};

/// A load balancer `web` with every kind of frontend, one endpoint here and one on node b; `other`
/// beside it.
fn bench() -> (Bench, Service) {
    let mut bench = Bench::empty();
    let mut web = service("web", "10.0.0.10");
    web.service_type = ServiceType::LoadBalancer;
    web.ports[0].node_port = Some(30080);
    web.external_ips = vec![[198, 51, 100, 7].into()];
    web.load_balancer_ips = vec![[203, 0, 113, 5].into()];
    bench.apply(Object::Node(Node {
        leaving: false,
        name: "node-a".to_owned(),
        addresses: vec![[192, 0, 2, 10].into()],
        pod_cidrs: Vec::new(),
        zone: None,
    }));
    let mut endpoints = slice("web", &["10.244.1.1", "10.244.2.1"]);
    endpoints.endpoints[0].node = Some("node-a".to_owned());
    endpoints.endpoints[1].node = Some("node-b".to_owned());
    bench.apply(Object::EndpointSlice(endpoints));
    bench.apply(Object::Service(web.clone()));
    bench.apply(Object::EndpointSlice(slice("other", &["10.244.1.9"])));
    bench.apply(Object::Service(service("other", "10.0.0.11")));
    (bench, web)
}

/// The frontends of `web`, as addresses.
fn frontends(bench: &Bench) -> Vec<String> {
    let text = bench.text();
    let lines = text.lines().filter(|line| line.contains("  default/web"));
    lines
        .map(|line| line.split("  ").next().unwrap_or_default().to_owned())
        .collect()
}

/// Makes one change, checks the frontends, and takes it back.
#[track_caller]
fn turn(change: impl Fn(&mut Service), expected: &[&str]) {
    let (mut bench, web) = bench();
    let before = bench.text_without_ids();
    let mut changed = web.clone();
    change(&mut changed);
    bench.apply(Object::Service(changed));
    assert_eq!(frontends(&bench), expected);
    assert!(bench.text().contains("10.0.0.11:80 TCP  default/other"));
    bench.apply(Object::Service(web));
    assert_eq!(bench.text_without_ids(), before, "and back");
}

const ALL: [&str; 4] = [
    "10.0.0.10:80 TCP",
    "192.0.2.10:30080 TCP",
    "198.51.100.7:80 TCP",
    "203.0.113.5:80 TCP",
];

#[test]
fn a_service_that_becomes_an_alias_has_no_frontend_any_more() {
    turn(|s| s.service_type = ServiceType::ExternalName, &[]);
}

#[test]
fn a_service_that_gets_the_label_of_another_proxy_has_no_frontend_any_more() {
    turn(|s| s.other_proxy = true, &[]);
}

#[test]
fn a_service_that_loses_its_cluster_address_has_no_frontend_any_more() {
    turn(|s| s.cluster_ips.clear(), &[]);
}

#[test]
fn a_load_balancer_that_becomes_internal_keeps_its_cluster_address() {
    let internal = |s: &mut Service| {
        s.service_type = ServiceType::ClusterIp;
        s.ports[0].node_port = None;
        s.external_ips.clear();
        s.load_balancer_ips.clear();
    };
    turn(internal, &ALL[..1]);
}

#[test]
fn a_node_port_that_changes_number_is_where_it_says() {
    let expected = [ALL[0], "192.0.2.10:30081 TCP", ALL[2], ALL[3]];
    turn(|s| s.ports[0].node_port = Some(30081), &expected);
}

#[test]
fn a_port_that_is_added_and_removed_is_served_in_between() {
    let more = |s: &mut Service| s.ports.push(port("more", 81, Protocol::Udp));
    let expected = [
        "10.0.0.10:80 TCP",
        "10.0.0.10:81 UDP",
        "192.0.2.10:30080 TCP",
        "198.51.100.7:80 TCP",
        "198.51.100.7:81 UDP",
        "203.0.113.5:80 TCP",
        "203.0.113.5:81 UDP",
    ];
    turn(more, &expected);
}

#[test]
fn a_family_that_is_added_and_removed_is_served_in_between() {
    let dual = |s: &mut Service| s.cluster_ips.push("fd00:1::a".parse().unwrap());
    turn(dual, &[&ALL[..], &["[fd00:1::a]:80 TCP"]].concat());
}

#[test]
fn policies_ranges_and_affinity_change_the_frontends_in_place() {
    let changes: [fn(&mut Service); 5] = [
        |s| s.internal_policy = TrafficPolicy::Local,
        |s| s.external_policy = TrafficPolicy::Local,
        |s| s.source_ranges = vec!["10.0.0.0/8".parse().unwrap()],
        |s| s.affinity_timeout_secs = Some(10),
        |s| s.algorithm = Some("random".to_owned()),
    ];
    for change in changes {
        turn(change, &ALL);
        let (mut bench, mut web) = bench();
        bench.writes();
        change(&mut web);
        bench.apply(Object::Service(web));
        let writes = bench.writes();
        assert!(
            !writes.iter().any(|w| w.starts_with("delete frontend")),
            "{writes:?}"
        );
        let backends = writes.iter().filter(|w| w.starts_with("delete backend"));
        assert_eq!(backends.count(), 0, "{writes:?}");
    }
}

#[test]
fn the_label_of_a_zone_that_comes_and_goes_is_followed() {
    let (mut bench, _) = bench();
    let mut hinted = slice("web", &[]);
    hinted.family = IpFamily::V4;
    for (address, zone) in [("10.244.1.1", "zone-1"), ("10.244.2.1", "zone-2")] {
        let mut endpoint = endpoint(address);
        endpoint.zone_hints.insert(zone.to_owned());
        hinted.endpoints.push(endpoint);
    }
    bench.apply(Object::EndpointSlice(hinted));
    let unhinted = bench.text_without_ids();
    let mut node = Node {
        leaving: false,
        name: "node-a".to_owned(),
        addresses: vec![[192, 0, 2, 10].into()],
        pod_cidrs: Vec::new(),
        zone: Some("zone-1".to_owned()),
    };
    bench.apply(Object::Node(node.clone()));
    let text = bench.text();
    assert!(!text.contains("slot 1"), "{text}");
    assert!(text.contains("kept  10.244.2.1:8080"), "{text}");
    node.zone = None;
    bench.apply(Object::Node(node));
    assert_eq!(bench.text_without_ids(), unhinted);
}
