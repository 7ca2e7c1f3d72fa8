// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is asked for, how often, and what a steady client costs its server.
//!
//! **Invariant:** one watch per kind; nothing else as long as nothing breaks.

use std::thread;
use std::time::Duration;

use lb_lab::{ApiServer, Fault, Resource};

use crate::agent::{Agent, server};
use crate::cases::{KINDS, each};
use crate::world::{anchor, node};

fn decoded(query: &str) -> String {
    let mut text = query.to_owned();
    for (code, character) in [("%21", "!"), ("%2F", "/"), ("%2C", ","), ("%3D", "=")] {
        text = text.replace(code, character);
    }
    text
}

fn asked(server: &ApiServer, resource: Resource, verb: &str) -> Vec<String> {
    let requests = server.requests();
    let of =
        |r: &&lb_lab::apiserver::Request| r.verb == verb && r.path.ends_with(resource.plural());
    requests
        .iter()
        .filter(of)
        .map(|r| decoded(&r.query))
        .collect()
}

#[test]
fn each_kind_is_watched_once_with_its_selectors_and_nothing_more_is_asked() {
    let server = server();
    anchor().serve(&server);
    server.apply(node("zone-1")).unwrap();
    let mut other = node("zone-2");
    other["metadata"]["name"] = "node-b".into();
    server.apply(other).unwrap();
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &anchor());
    let one_each = |server: &ApiServer| KINDS.iter().all(|kind| server.watches(*kind) == 1);
    agent.until_watched(&server);
    for (resource, selectors) in [
        (
            Resource::Service,
            [
                "labelSelector=!service.kubernetes.io/service-proxy-name",
                "fieldSelector=spec.clusterIP!=None",
            ]
            .as_slice(),
        ),
        (
            Resource::EndpointSlice,
            &[
                "labelSelector=!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name",
            ],
        ),
        (Resource::Node, &["fieldSelector=metadata.name=node-a"]),
    ] {
        let queries = asked(&server, resource, "watch");
        assert_eq!(queries.len(), 1, "{queries:?}");
        let wanted = [
            "allowWatchBookmarks=true",
            "sendInitialEvents=true",
            "timeoutSeconds=20",
        ];
        for part in selectors.iter().chain(&wanted) {
            let parts: Vec<&str> = queries[0].split('&').collect();
            assert!(parts.contains(part), "{part} in {queries:?}");
        }
    }
    let before = server.requests().len();
    let taken = agent.updates_taken;
    agent.go_on(Duration::from_secs(5));
    assert_eq!(
        server.requests().len(),
        before,
        "a steady client asks nothing"
    );
    assert_eq!(agent.updates_taken, taken, "nor has it anything to do");
    assert!(one_each(&server));
}

#[test]
fn selectors_are_the_same_for_pages_and_resumed_watches() {
    let server = server();
    server.fault(Fault::RefuseWatchList);
    anchor().serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &anchor());
    for rule in each(Fault::EndWatch { after: 0 }) {
        server.fault(rule);
    }
    agent.until("all watches to be resumed", |_| {
        KINDS
            .iter()
            .all(|kind| asked(&server, *kind, "watch").len() >= 3)
    });
    for (resource, part) in [
        (
            Resource::Service,
            "!service.kubernetes.io/service-proxy-name",
        ),
        (Resource::Service, "spec.clusterIP!=None"),
        (Resource::EndpointSlice, "!service.kubernetes.io/headless"),
        (Resource::Node, "metadata.name=node-a"),
    ] {
        for verb in ["list", "watch"] {
            let queries = asked(&server, resource, verb);
            assert!(!queries.is_empty());
            let all = queries.iter().all(|query| query.contains(part));
            assert!(all, "{part} in {queries:?}");
        }
    }
}

#[test]
fn a_streamed_list_that_stalls_is_tried_again_at_the_next_list() {
    let server = server();
    anchor().serve(&server);
    server.apply(node("zone-1")).unwrap();
    let stall = server.fault(Fault::HoldBookmarks);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("pages", &anchor());
    server.lift(stall);
    agent.until_watched(&server);
    let streamed = |kind| {
        let queries = asked(&server, kind, "watch");
        let streamed = queries.iter().filter(|q| q.contains("sendInitialEvents"));
        (streamed.count(), asked(&server, kind, "list").len())
    };
    assert_eq!(KINDS.map(streamed), [(1, 1); 3]);
    for rule in each(Fault::GoneInStream { after: 0 }) {
        server.fault(rule);
    }
    agent.until("the next lists", |_| {
        KINDS.iter().all(|kind| streamed(*kind).0 == 2)
    });
    agent.until_watched(&server);
    assert_eq!(KINDS.map(streamed), [(2, 1); 3], "and they need no pages");
}

#[test]
fn tries_during_an_outage_are_spaced() {
    let faults = [
        Fault::Status(503),
        Fault::Refuse,
        Fault::EndWatch { after: 0 },
    ];
    thread::scope(|scope| {
        for fault in faults {
            scope.spawn(move || count_tries(fault));
        }
    });
}

fn count_tries(fault: Fault) {
    let server = server();
    anchor().serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &anchor());
    agent.until_watched(&server);
    let (requests, writes) = (server.requests().len(), agent.writes);
    if fault != (Fault::EndWatch { after: 0 }) {
        for rule in each(Fault::EndWatch { after: 0 }) {
            server.fault(rule);
        }
    }
    let outage = server.fault(fault);
    agent.go_on(Duration::from_secs(4));
    let fired = server.fired(outage);
    // After 0.25, 0.5, 1 and 2 s, each up to half as long, by three followers.
    assert!(
        (3..=21).contains(&fired),
        "{fault:?}: {fired} tries in 4 seconds"
    );
    let requests = server.requests().len() - requests;
    assert!(
        requests <= 24,
        "{fault:?}: {requests} requests in 4 seconds"
    );
    assert_eq!(agent.writes, writes);
    server.lift_all();
    agent.until_watched(&server);
}
