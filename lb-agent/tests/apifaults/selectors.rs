// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects that come into and go out of what the selectors let through.
//!
//! **Invariant:** a change of a label or of the type is, for the tables, an object that comes or goes.

use serde_json::{Value, json};

use crate::agent::{Agent, server};
use crate::world::{World, anchor, service, slice};

/// Each object in turn is put on a live server, and the tables follow.
fn follow(changes: impl IntoIterator<Item = (&'static str, Value)>) {
    let server = server();
    let mut world = anchor();
    world.put(service("web", "10.0.98.1"));
    world.put(slice("web", &["10.244.97.1", "10.244.97.2"]));
    world.serve(&server);
    let mut agent = Agent::start(&server.url());
    agent.settle_on("the start", &world);
    let mut texts = vec![agent.text()];
    for (what, value) in changes {
        agent.keep = anchor().reference().view;
        world.put(value.clone());
        server.apply(value).unwrap();
        agent.settle_on(what, &world);
        let text = agent.text();
        assert_ne!(texts.last(), Some(&text), "{what} changes something");
        texts.push(text);
    }
    // What came and went leaves nothing behind.
    let gone: World = anchor();
    for step in world.steps_to(&gone) {
        step.carry_out(&server);
    }
    agent.settle_on("all of it is gone", &gone);
}

fn web(change: impl FnOnce(&mut Value)) -> Value {
    let mut web = service("web", "10.0.98.1");
    change(&mut web);
    web
}

#[test]
fn a_service_goes_over_to_another_proxy_and_comes_back() {
    let label = "service.kubernetes.io/service-proxy-name";
    let opted_out = || web(|web| web["metadata"]["labels"] = json!({label: "mesh"}));
    follow([
        ("the label is put on", opted_out()),
        ("the label is taken off", web(|_| {})),
        ("the label is put on again", opted_out()),
        (
            "it comes back with another port",
            web(|web| web["spec"]["ports"][0]["port"] = 81.into()),
        ),
    ]);
}

#[test]
fn a_slice_becomes_headless_and_comes_back() {
    for label in [
        "service.kubernetes.io/headless",
        "service.kubernetes.io/service-proxy-name",
    ] {
        let mut labelled = slice("web", &["10.244.97.1", "10.244.97.2"]);
        labelled["metadata"]["labels"][label] = "".into();
        follow([
            ("the label is put on", labelled),
            ("the label is taken off", slice("web", &["10.244.97.3"])),
        ]);
    }
}

#[test]
fn a_service_changes_its_type() {
    let of = |kind: &'static str| move |web: &mut Value| web["spec"]["type"] = kind.into();
    follow([
        (
            "headless",
            web(|web| {
                web["spec"]["clusterIP"] = "None".into();
                web["spec"]["clusterIPs"] = json!(["None"]);
            }),
        ),
        ("a ClusterIP", web(|_| {})),
        (
            "an alias",
            web(|web| {
                web["spec"] = json!({"type": "ExternalName", "externalName": "example.org"});
            }),
        ),
        (
            "a load balancer",
            web(|web| {
                of("LoadBalancer")(web);
                web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}});
            }),
        ),
        ("a ClusterIP again", web(|_| {})),
        (
            "with an external address",
            web(|web| web["spec"]["externalIPs"] = json!(["198.51.100.9"])),
        ),
        ("another virtual address", service("web", "10.0.98.2")),
    ]);
}
