// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scenarios on a real API server, where one is installed.
//!
//! **Invariant:** what the real server refuses, or fills in by itself, is left out of both sides.

use lb_lab::RealApiServer;
use serde_json::Value;

use crate::agent::Agent;
use crate::world::{World, scenarios};

/// The Service that every API server makes for itself.
const OWN: &str = "10.0.0.1:443";

/// The object in a namespace and with addresses of its own, so that all scenarios fit on one server.
fn moved(value: &Value, number: usize) -> Value {
    let text = value.to_string();
    let text = text.replace("\"10.0.0.", &format!("\"10.0.{}.", number + 100));
    let mut value: Value = serde_json::from_str(&text).unwrap();
    if value["kind"] != "Node" {
        value["metadata"]["namespace"] = format!("scenario-{number}").into();
    }
    // The server gives these itself.
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("uid");
        metadata.remove("creationTimestamp");
    }
    value
}

/// Whether the server would choose an address.
fn has_its_address(value: &Value) -> bool {
    value["kind"] != "Service"
        || value["spec"]["type"] == "ExternalName"
        || value["spec"]["clusterIP"].is_string()
}

#[test]
fn the_scenarios_on_a_real_server_lead_to_the_same_tables() {
    if RealApiServer::assets().is_none() {
        let why = "KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver";
        #[expect(clippy::print_stderr, reason = "what is not tested is said")]
        {
            eprintln!("SKIPPED: {why}");
        }
        return;
    }
    let server = RealApiServer::start().unwrap();
    let mut world = World::default();
    let mut agent = Agent::by_kubeconfig(&server.kubeconfig());
    for (number, (name, scenario)) in scenarios().into_iter().enumerate() {
        for value in scenario.values().filter(|value| has_its_address(value)) {
            let value = moved(value, number);
            if server.apply(value.clone()).is_ok() {
                world.put(value);
            }
        }
        let wanted = world.reference().view;
        agent.until(&name, |agent| {
            let mut there = agent.view();
            there.retain(|entry| !entry.starts_with(OWN));
            there == wanted
        });
    }
    assert!(!world.reference().view.is_empty(), "the server took some");
}
