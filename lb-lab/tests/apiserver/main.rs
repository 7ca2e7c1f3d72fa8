// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lab's API server behaves as a real one, and fails as it is told to.
//!
//! **Invariant:** needs no privileges: everything is on loopback.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helper ends at the first failure"
)]

mod client;
mod faults;
mod generated;
mod protocol;
mod real;
mod watches;

use std::time::Duration;

use lb_lab::ApiServer;
use serde_json::{Value, json};

/// How long anything may take that should be there at once, on a busy machine, too.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A server with Services `a`, `b` and so on.
pub(crate) fn server(services: &str) -> ApiServer {
    let server = ApiServer::start("127.0.0.1:0".parse().unwrap()).unwrap();
    for name in services.chars() {
        server.apply(service(&name.to_string())).unwrap();
    }
    server
}

pub(crate) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    })
}

pub(crate) fn slice(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]}],
        "ports": [{"port": 8080}],
    })
}

/// The names of a list's items.
pub(crate) fn names(list: &Value) -> String {
    let items = list["items"].as_array().unwrap();
    let names = items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap());
    names.collect()
}

pub(crate) fn version(object: &Value) -> u64 {
    let version = &object["metadata"]["resourceVersion"];
    version.as_str().unwrap().parse().unwrap()
}
