// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that are away, come back different, or never come back.
//!
//! **Invariant:** while nobody answers, not one entry is written.

use std::time::Duration;

use lb_lab::{ApiServer, Fault, Resource};
use serde_json::json;

use crate::agent::{Agent, Start, patience, server};
use crate::world::{World, anchor, node, service, slice};

/// How long an outage is looked at.
const AWAY: Duration = Duration::from_millis(1_500);

fn other() -> World {
    let mut world = anchor();
    world.put(slice("tide", &["10.244.98.7"]));
    world.put(service("new", "10.0.98.1"));
    world.put(slice("new", &["10.244.97.1"]));
    world
}

fn extra() -> World {
    let mut world = anchor();
    world.put(service("old", "10.0.98.2"));
    world.put(slice("old", &["10.244.97.2"]));
    world.put(node("zone-1"));
    world
}

/// The world that takes the place of another one while nobody looks.
fn replace(server: &ApiServer, before: &World, after: &World) {
    for step in before.steps_to(after) {
        step.carry_out(server);
    }
}

#[test]
fn a_server_that_was_away_is_caught_up_with() {
    let server = server();
    extra().serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &extra());
    for (before, after, forgets) in [(extra(), other(), false), (other(), extra(), true)] {
        agent.keep = before.common(&before.steps_to(&after));
        server.pause();
        let writes = agent.writes;
        agent.go_on(AWAY);
        assert_eq!(agent.writes, writes, "nothing is written meanwhile");
        replace(&server, &before, &after);
        if forgets {
            server.compact();
        }
        server.resume().unwrap();
        agent.settle_on("the server is back", &after);
    }
}

/// An agent that has followed a server which is gone, and what it had.
fn abandoned(patience: lb_agent::source::kubernetes::Patience) -> (Agent, std::net::SocketAddr) {
    let server = server();
    extra().serve(&server);
    // Its versions are far ahead of those of a server that starts anew.
    for _ in 0..20 {
        extra().serve(&server);
    }
    let start = Start {
        patience: Some(patience),
        ..Start::default()
    };
    let mut agent = Agent::with(&server.url(), start);
    agent.settle_on("the start", &extra());
    // Bookmarks have come.
    agent.go_on(Duration::from_millis(500));
    (agent, server.address())
}

#[test]
fn a_server_that_counts_versions_anew_is_listed_anew() {
    let (mut agent, address) = abandoned(patience());
    agent.keep = extra().common(&extra().steps_to(&other()));
    let server = ApiServer::start(address).unwrap();
    server.bookmark_every(Duration::from_millis(100));
    other().serve(&server);
    agent.settle_on("the first bookmark", &other());
}

#[test]
fn a_server_that_counts_versions_anew_and_says_nothing_is_listed_anew() {
    let mut patience = patience();
    patience.stream_secs = (2, 2);
    patience.silence = Duration::from_secs(10);
    let (mut agent, address) = abandoned(patience);
    agent.keep = extra().common(&extra().steps_to(&other()));
    let server = ApiServer::start(address).unwrap();
    server.fault(Fault::HoldBookmarks);
    server.fault(Fault::RefuseWatchList);
    other().serve(&server);
    agent.settle_on("the end of the first stream", &other());
}

#[test]
fn a_server_that_is_gone_for_good_changes_nothing() {
    let server = server();
    extra().serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &extra());
    let (writes, text) = (agent.writes, agent.text());
    let url = server.url();
    server.stop();
    agent.go_on(AWAY);
    assert_eq!((agent.writes, agent.text()), (writes, text.clone()));

    let content = agent.tables.content().clone();
    drop(agent);
    let start = Start {
        content,
        ..Start::default()
    };
    let mut agent = Agent::with(&url, start);
    agent.go_on(AWAY);
    assert!(!agent.is_listed());
    assert_eq!(agent.writes, 0);
}

#[test]
fn nothing_is_written_before_every_kind_is_complete() {
    for held in [Resource::Service, Resource::EndpointSlice, Resource::Node] {
        let server = server();
        let holding = server.fault(Fault::HoldEvents.on(held));
        extra().serve(&server);
        let mut patience = patience();
        patience.list_quiet = Duration::from_secs(20);
        patience.list_longest = Duration::from_secs(20);
        let start = Start {
            patience: Some(patience),
            ..Start::default()
        };
        let mut agent = Agent::with(&server.url(), start);
        let all = [Resource::Service, Resource::EndpointSlice, Resource::Node];
        agent.until("all lists to be asked for", |_| {
            all.iter().all(|kind| server.watches(*kind) == 1)
        });
        agent.go_on(Duration::from_millis(400));
        assert_eq!((agent.updates_taken, agent.writes), (0, 0), "{held:?}");
        server.lift(holding);
        agent.until("the list", |agent| agent.updates_taken > 0);
        assert_eq!(agent.text(), extra().reference().text, "all at once");
    }
}

#[test]
fn pages_that_expire_are_listed_anew() {
    let services = (0..1_100_u32).map(|n| {
        let ip = format!("10.1.{}.{}", n / 250, n % 250 + 1);
        service(&format!("s{n:04}"), &ip)
    });
    let server = server();
    server.fault(Fault::RefuseWatchList);
    for value in services.clone() {
        server.apply(value).unwrap();
    }
    let expired = server.fault(Fault::ExpireContinue.times(2));
    let cut = server.fault(Fault::CutList { after: 300 }.times(2));
    let mut agent = Agent::start(&server.url());
    agent.until("the list", Agent::is_listed);
    assert!(server.fired(expired) == 2 && server.fired(cut) == 2);
    assert_eq!(agent.view().len(), 1_100, "whole at once");

    let expired = server.fault(Fault::ExpireContinue.once());
    agent.keep = agent.view();
    server
        .delete(Resource::Service, "default", "s0000")
        .unwrap();
    agent.keep.remove("10.1.0.1:80 TCP");
    server.fault(
        Fault::GoneInStream { after: 0 }
            .on(Resource::Service)
            .once(),
    );
    agent.until_fired(&server, expired, 1);
    agent.until("the new list", |agent| agent.view().len() == 1_099);
}

#[test]
fn an_object_that_is_broken_at_a_start_keeps_what_the_tables_know_of_it() {
    let server = server();
    extra().serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &extra());
    let content = agent.tables.content().clone();
    drop(agent);
    let mut broken = service("old", "10.0.98.2");
    broken["spec"]["ports"][0]["port"] = json!("abc");
    server.apply(broken).unwrap();
    server.delete(Resource::Service, "default", "tide").unwrap();
    let start = Start {
        content,
        ..Start::default()
    };
    let mut agent = Agent::with(&server.url(), start);
    agent.until("the partial list", Agent::is_listed);
    assert_eq!(agent.unreadable(), ["Service default/old"]);
    assert_eq!(agent.writes, 0, "nothing is removed");
    server.apply(service("old", "10.0.98.2")).unwrap();
    let mut healed = World::of(extra().values().cloned());
    let tide = ("Service", "tide");
    healed = World::of(
        healed
            .values()
            .filter(|value| {
                (value["kind"].as_str(), value["metadata"]["name"].as_str())
                    != (Some(tide.0), Some(tide.1))
            })
            .cloned(),
    );
    agent.settle_on("it is healed", &healed);
    assert!(agent.unreadable().is_empty());
}
