// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that lie: nobody can tell at once, so what happens is what they say, until they say
//! something else.
//!
//! **Invariant:** a lie ends with the next honest list, and a version that cannot be leads to one.

use std::time::Duration;

use lb_lab::{ApiServer, Fault, Resource};

use crate::agent::{Agent, Start, server};
use crate::world::{World, service, slice};

/// How long nothing is to happen.
const QUIET: Duration = Duration::from_millis(400);

fn shops() -> World {
    let shop = |n: usize| {
        let name = format!("shop-{n}");
        let endpoint = format!("10.244.1.{n}");
        [
            service(&name, &format!("10.0.1.{n}")),
            slice(&name, &[&endpoint]),
        ]
    };
    World::of((1..=6).flat_map(shop))
}

/// What is left when a list of Services lacks every second one.
fn half() -> World {
    let named = |n: usize| format!("shop-{n}");
    let lacks = |value: &serde_json::Value| {
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        (1..=3).any(|n| name == named(2 * n))
    };
    World::of(shops().values().filter(|value| !lacks(value)).cloned())
}

/// A server that sends bookmarks only when it is told to.
fn quiet_server() -> ApiServer {
    ApiServer::start("127.0.0.1:0".parse().unwrap()).unwrap()
}

fn relist_services(server: &ApiServer) {
    server.fault(
        Fault::GoneInStream { after: 0 }
            .on(Resource::Service)
            .once(),
    );
}

#[test]
fn half_a_list_is_believed_and_the_next_list_mends_it() {
    for pages in [false, true] {
        let server = server();
        if pages {
            server.fault(Fault::RefuseWatchList);
        }
        shops().serve(&server);
        let mut agent = Agent::start(&server.url());
        agent.settle_on("the start", &shops());
        // What is not lied about stays.
        agent.keep = half().reference().view;
        server.fault(Fault::HalfList.on(Resource::Service).once());
        relist_services(&server);
        agent.settle_on("half of it", &half());
        relist_services(&server);
        agent.settle_on("the next list", &shops());
    }
}

#[test]
fn half_a_first_list_removes_what_it_lacks_and_the_next_list_mends_it() {
    let server = server();
    shops().serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &shops());
    let content = agent.tables.content().clone();
    drop(agent);
    server.fault(Fault::HalfList.on(Resource::Service).once());
    let start = Start {
        content,
        ..Start::default()
    };
    let mut agent = Agent::with(&server.url(), start);
    agent.keep = half().reference().view;
    agent.settle_on("half of it", &half());
    relist_services(&server);
    agent.settle_on("the next list", &shops());
}

#[test]
fn a_bookmark_that_runs_ahead_hides_changes_until_the_next_bookmark() {
    let server = quiet_server();
    shops().serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &shops());
    let ahead = server.fault(Fault::BookmarkGap { ahead: 50 }.on(Resource::Service));
    let version = server.version() + 50;
    server.bookmark();
    agent.until_fired(&server, ahead, 1);
    agent.go_on(QUIET);
    server.lift(ahead);
    // The change happens while nobody watches.
    let away = server.fault(Fault::Refuse.on(Resource::Service));
    server.fault(Fault::EndWatch { after: 0 }.on(Resource::Service).once());
    agent.until("the watch to end", |_| {
        server.watches(Resource::Service) == 0
    });
    let mut after = shops();
    after.put(service("shop-1", "10.0.1.99"));
    server.apply(service("shop-1", "10.0.1.99")).unwrap();
    server.lift(away);
    let resumed = format!("resourceVersion={version}");
    agent.until("the watch to go on behind it", |_| {
        let requests = server.requests();
        requests
            .iter()
            .any(|request| request.query.contains(&resumed))
    });
    agent.go_on(QUIET);
    assert_eq!(agent.text(), shops().reference().text, "it is not known");
    agent.until("the watch", |_| server.watches(Resource::Service) == 1);
    server.bookmark();
    agent.settle_on("the next bookmark", &after);
}

#[test]
fn an_old_event_that_comes_late_counts_until_the_stream_goes_on_from_there() {
    let server = quiet_server();
    shops().serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &shops());
    let late = server.fault(Fault::RepeatLate { after: 1 }.on(Resource::Service));
    let with = |ip: &str| {
        let mut world = shops();
        world.put(service("shop-1", ip));
        world
    };
    server.apply(service("shop-1", "10.0.1.98")).unwrap();
    server.apply(service("shop-1", "10.0.1.99")).unwrap();
    let newest = with("10.0.1.99").reference().text;
    agent.until("the newest state", |agent| {
        agent.text() == newest || server.fired(late) > 0
    });
    agent.settle_on("the late event", &with("10.0.1.98"));
    server.lift(late);
    server.fault(Fault::EndWatch { after: 0 }.on(Resource::Service).once());
    agent.settle_on("the stream goes on", &with("10.0.1.99"));
}
