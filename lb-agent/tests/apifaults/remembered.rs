// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state directory: a start with empty tables while the server is away.
//!
//! **Invariant:** what is remembered serves until the server answers, and never longer.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lb_lab::ApiServer;
use serde_json::json;
use tempfile::TempDir;

use crate::agent::{Agent, LIMIT, Start, server};
use crate::world::{World, anchor, service, slice};

/// How long a start is looked at that has nothing to serve by.
const QUIET: Duration = Duration::from_millis(600);

fn before() -> World {
    let mut world = anchor();
    world.put(service("old", "10.0.98.2"));
    world.put(slice("old", &["10.244.97.2"]));
    world
}

fn after() -> World {
    let mut world = anchor();
    world.put(slice("tide", &["10.244.98.9"]));
    world.put(service("new", "10.0.98.1"));
    world
}

fn start(folder: &Path) -> Start<'_> {
    Start {
        state: Some(folder),
        ..Start::default()
    }
}

/// Goes on until the file is as it should be.
fn until_written(agent: &mut Agent, folder: &Path, is_so: impl Fn(&str) -> bool) {
    let end = Instant::now() + LIMIT;
    loop {
        let text = fs::read_to_string(folder.join("objects.jsonl")).unwrap();
        if is_so(&text) {
            return;
        }
        assert!(Instant::now() < end, "it is written: {text}");
        agent.pump();
    }
}

/// A server that is away, and a folder in which an agent has remembered its world.
fn remembered() -> (ApiServer, TempDir, Agent) {
    let folder = tempfile::tempdir().unwrap();
    let server = server();
    anchor().serve(&server);
    let mut agent = Agent::with(&server.url(), start(folder.path()));
    agent.settle_on("the start", &anchor());
    before().serve(&server);
    agent.settle_on("the changes", &before());
    until_written(&mut agent, folder.path(), |text| {
        text.contains("10.0.98.2") && text.contains("10.244.97.2") && text.ends_with('\n')
    });
    server.pause();
    (server, folder, agent)
}

/// The server comes back with another world, and the agent takes that.
fn come_back(server: &ApiServer, agent: &mut Agent) {
    for step in before().steps_to(&after()) {
        step.carry_out(server);
    }
    server.resume().unwrap();
    agent.settle_on("the server is back", &after());
    assert!(agent.unreadable().is_empty());
}

#[test]
fn empty_tables_are_filled_by_what_is_remembered_until_the_server_answers() {
    let (server, folder, agent) = remembered();
    drop(agent);
    let mut agent = Agent::with(&server.url(), start(folder.path()));
    agent.settle_on("what is remembered", &before());
    assert_eq!(agent.unreadable(), ["the API server"]);
    agent.keep = before().common(&before().steps_to(&after()));
    agent.go_on(QUIET);
    come_back(&server, &mut agent);
}

#[test]
fn a_first_list_with_an_unreadable_object_takes_the_place_of_what_is_remembered_at_once() {
    let (server, folder, agent) = remembered();
    drop(agent);
    let mut agent = Agent::with(&server.url(), start(folder.path()));
    agent.settle_on("what is remembered", &before());
    for step in before().steps_to(&after()) {
        step.carry_out(&server);
    }
    // Still there, but as no server should send it: what is remembered of it stays.
    let mut broken = service("old", "10.0.98.2");
    broken["spec"]["ports"][0]["port"] = json!("eighty");
    let endpoints = slice("old", &["10.244.97.3"]);
    server.apply(broken).unwrap();
    server.apply(endpoints.clone()).unwrap();
    let mut wanted = after();
    wanted.put(service("old", "10.0.98.2"));
    wanted.put(endpoints);
    let wanted = wanted.reference();

    let taken = agent.updates_taken;
    server.resume().unwrap();
    agent.until("the list", |agent| agent.updates_taken > taken);
    assert_eq!(agent.text(), wanted.text, "the first update has all kinds");
    assert!(agent.unreadable().is_empty());
    let writes = agent.writes;
    agent.go_on(QUIET);
    assert_eq!((agent.updates_taken, agent.writes), (taken + 1, writes));
    // It is remembered like that, too.
    until_written(&mut agent, folder.path(), |text| {
        let list = text.rsplit_once("10.244.97.3").map_or("", |(_, rest)| rest);
        list.contains("{\"end\":") && list.ends_with('\n')
    });
    drop(agent);
    server.pause();
    let mut agent = Agent::with(&server.url(), start(folder.path()));
    agent.settle("what is remembered now", &wanted);
}

#[test]
fn tables_that_hold_something_are_newer_than_what_is_remembered() {
    let (server, folder, agent) = remembered();
    let content = agent.tables.content().clone();
    drop(agent);
    let start = Start {
        content,
        ..start(folder.path())
    };
    let mut agent = Agent::with(&server.url(), start);
    agent.go_on(QUIET);
    assert_eq!((agent.updates_taken, agent.writes), (0, 0));
    come_back(&server, &mut agent);
}

#[test]
fn a_torn_file_serves_by_what_is_whole_in_it() {
    let (server, folder, agent) = remembered();
    drop(agent);
    let file = folder.path().join("objects.jsonl");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 7]).unwrap();
    let mut agent = Agent::with(&server.url(), start(folder.path()));
    agent.until("what is remembered", Agent::is_listed);
    assert!(agent.view().is_superset(&anchor().reference().view));
    assert!(agent.view().is_subset(&before().reference().view));
    agent.keep = anchor().common(&before().steps_to(&after()));
    come_back(&server, &mut agent);
}

#[test]
fn garbage_and_other_versions_are_not_served_by() {
    let (server, folder, agent) = remembered();
    drop(agent);
    let file = folder.path().join("objects.jsonl");
    let whole = fs::read_to_string(&file).unwrap();
    let rest = whole.split_once('\n').unwrap().1;
    let other = format!("{{\"lbAgentState\":2}}\n{rest}");
    for text in ["\0\0garbage\n", "{}", &other] {
        fs::write(&file, text).unwrap();
        let mut agent = Agent::with(&server.url(), start(folder.path()));
        agent.go_on(QUIET);
        assert_eq!((agent.updates_taken, agent.writes), (0, 0), "{text:.20}");
    }
    let mut agent = Agent::with(&server.url(), start(folder.path()));
    come_back(&server, &mut agent);
}
