// SPDX-License-Identifier: MIT OR Apache-2.0
//! Warnings reach the server as Events on the Service, and no answer to them does any harm.
//!
//! **Invariant:** what holds on is told once.

use std::time::Duration;

use lb_lab::{ApiServer, Fault, Resource};
use serde_json::{Value, json};

use crate::agent::{Agent, Start, server};
use crate::world::{anchor, service, slice};

/// How long nothing is to be told.
const QUIET: Duration = Duration::from_millis(600);

fn start(server: &ApiServer) -> Agent {
    let start = Start {
        events: true,
        ..Start::default()
    };
    let mut agent = Agent::with(&server.url(), start);
    agent.settle_on("the start", &anchor());
    agent
}

/// The Service `odd`, with its one port.
fn odd(port: &Value) -> Value {
    let mut odd = service("odd", "10.0.98.1");
    odd["metadata"]["uid"] = "u-odd".into();
    odd["spec"]["ports"][0]["port"] = port.clone();
    odd
}

fn told(server: &ApiServer) -> Vec<String> {
    let requests = server.requests();
    let about_events = requests
        .iter()
        .filter(|r| r.path.ends_with("/events") || r.path.contains("/events/"));
    about_events.map(|request| request.verb.clone()).collect()
}

#[test]
fn an_object_that_cannot_be_read_is_told_once_for_as_long_as_it_is_so() {
    let server = server();
    anchor().serve(&server);
    let mut agent = start(&server);
    server.apply(odd(&json!("abc"))).unwrap();
    agent.until("an Event", |_| server.events().len() == 1);
    let event = &server.events()[0];
    for (path, wanted) in [
        ("/type", "Warning"),
        ("/reason", "Invalid"),
        ("/regarding/kind", "Service"),
        ("/regarding/name", "odd"),
        ("/regarding/namespace", "default"),
        ("/regarding/uid", "u-odd"),
        ("/reportingController", "lb-agent"),
        ("/reportingInstance", "node-a"),
    ] {
        assert_eq!(event.pointer(path).unwrap(), wanted, "{path}");
    }
    let note = event["note"].as_str().unwrap();
    assert!(note.starts_with("spec.ports[0].port"), "{note}");

    // The same again, by changes, by a resumed watch, and by a list.
    server.apply(odd(&json!("abc"))).unwrap();
    server.fault(Fault::EndWatch { after: 0 }.on(Resource::Service).once());
    server.apply(odd(&json!("abc"))).unwrap();
    server.fault(
        Fault::GoneInStream { after: 0 }
            .on(Resource::Service)
            .once(),
    );
    let listed = |server: &ApiServer| server.requests().len();
    let before = listed(&server);
    agent.until("the list", |_| listed(&server) > before);
    agent.go_on(QUIET);
    assert_eq!(told(&server), ["create"]);

    // Well again, and broken in another way.
    let mut world = anchor();
    world.put(odd(&json!(80)));
    server.apply(odd(&json!(80))).unwrap();
    agent.settle_on("it is healed", &world);
    server.apply(odd(&json!(0))).unwrap();
    agent.until("another Event", |_| server.events().len() == 2);
    assert_eq!(agent.text(), world.reference().text, "its last good state");
}

#[test]
fn a_warning_of_the_plan_is_told_once_for_as_long_as_it_holds() {
    let server = server();
    anchor().serve(&server);
    let mut agent = start(&server);
    let with = |algorithm: &str, app: &str| {
        let mut odd = odd(&json!(80));
        odd["metadata"]["annotations"] = json!({"lb-agent/algorithm": algorithm});
        odd["metadata"]["labels"] = json!({"app": app});
        odd
    };
    server.apply(with("roundrobin", "a")).unwrap();
    agent.until("an Event", |_| server.events().len() == 1);
    let event = &server.events()[0];
    assert_eq!(event["regarding"]["name"], "odd");
    assert!(event["note"].as_str().unwrap().contains("roundrobin"));
    server.apply(with("roundrobin", "b")).unwrap();
    agent.go_on(QUIET);
    assert_eq!(told(&server), ["create"]);
}

#[test]
fn a_slice_that_could_never_be_read_is_told_on_its_service() {
    let server = server();
    anchor().serve(&server);
    let mut agent = start(&server);
    let mut odd = slice("anchor", &["10.244.97.1"]);
    odd["metadata"]["name"] = "anchor-odd".into();
    odd["ports"][0]["port"] = "abc".into();
    server.apply(odd).unwrap();
    agent.until("an Event", |_| server.events().len() == 1);
    let event = &server.events()[0];
    let regarding = event.pointer("/regarding/name").unwrap();
    assert_eq!(
        (regarding, &event["reason"]),
        (&json!("anchor"), &json!("Invalid"))
    );
    let note = event["note"].as_str().unwrap();
    assert!(
        note.starts_with("EndpointSlice anchor-odd: ports[0].port"),
        "{note}"
    );
    agent.settle_on("as if it were not there", &anchor());
}

#[test]
fn missing_rights_for_events_and_a_server_that_takes_none_are_no_harm() {
    for code in [403, 500] {
        let server = server();
        anchor().serve(&server);
        let refused = server.fault(Fault::Status(code).on(Resource::Event));
        let mut agent = start(&server);
        server.apply(odd(&json!("abc"))).unwrap();
        agent.until_fired(&server, refused, 1);
        let mut world = anchor();
        world.put(odd(&json!(80)));
        server.apply(odd(&json!(80))).unwrap();
        agent.settle_on("it goes on", &world);
        assert!(server.events().is_empty());
        // What is not accepted is not sent again by itself.
        agent.go_on(QUIET);
        assert_eq!(server.fired(refused), 1, "{code}");
    }
}
