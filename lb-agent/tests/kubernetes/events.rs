// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kubernetes Events about Services.

use std::time::{Duration, Instant};

use lb_agent::model::service::ServiceKey;
use lb_agent::source::kubernetes::events::EventRecorder;
use lb_agent::source::kubernetes::{Access, connect};
use serde_json::Value;

use crate::server::{Reply, Server};
use crate::support::Logged;

async fn recorder(server: &Server) -> EventRecorder {
    let access = Access {
        api_server: Some(server.url.clone()),
        kubeconfig: None,
    };
    EventRecorder::start(connect(&access).await.unwrap(), "this-node")
}

async fn wait_for(server: &Server, requests: usize) {
    let start = Instant::now();
    while server.requests().len() < requests {
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_warning_becomes_an_event_and_the_same_again_a_count() {
    let server = Server::start(|_| Reply::json("{}")).await;
    let recorder = recorder(&server).await;
    let service = ServiceKey::new("shop", "web");
    recorder.warn(&service, "u-1", "Invalid", "spec.ports[0].port: 0");
    recorder.warn(&service, "u-1", "Invalid", "spec.ports[0].port: 0");
    wait_for(&server, 2).await;
    let requests = server.requests();
    assert_eq!(requests[0].method, "POST");
    assert!(
        requests[0]
            .target
            .starts_with("/apis/events.k8s.io/v1/namespaces/shop/events")
    );
    let event: Value = serde_json::from_str(&requests[0].body).unwrap();
    for (path, wanted) in [
        ("/type", "Warning"),
        ("/reason", "Invalid"),
        ("/note", "spec.ports[0].port: 0"),
        ("/action", "Program"),
        ("/reportingController", "lb-agent"),
        ("/reportingInstance", "this-node"),
        ("/regarding/kind", "Service"),
        ("/regarding/name", "web"),
        ("/regarding/namespace", "shop"),
        ("/regarding/uid", "u-1"),
        ("/metadata/namespace", "shop"),
    ] {
        assert_eq!(event.pointer(path).unwrap(), wanted, "{path}");
    }
    assert!(event.pointer("/eventTime").is_some());
    let name = event.pointer("/metadata/name").unwrap().as_str().unwrap();
    assert_eq!(requests[1].method, "PATCH");
    assert!(requests[1].target.contains(name));
    let patch: Value = serde_json::from_str(&requests[1].body).unwrap();
    assert_eq!(patch.pointer("/series/count").unwrap(), 2);
}

#[tokio::test]
async fn too_many_warnings_are_dropped_and_counted_and_nobody_waits() {
    let server = Server::start(|_| Reply::json("{}")).await;
    let recorder = recorder(&server).await;
    let start = Instant::now();
    for n in 0..1_000 {
        recorder.warn(
            &ServiceKey::new("shop", format!("s{n}")),
            "u",
            "Invalid",
            "m",
        );
    }
    assert!(start.elapsed() < Duration::from_secs(1));
    wait_for(&server, 25).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.requests().len(), 25, "one burst");
    assert!(
        recorder.dropped() >= 1_000 - 256 - 25,
        "{}",
        recorder.dropped()
    );
}

#[tokio::test]
async fn missing_rights_for_events_are_said_once() {
    let logged = Logged::start();
    let server = Server::start(|_| Reply::status(403, "events is forbidden")).await;
    let recorder = recorder(&server).await;
    for n in 0..3 {
        recorder.warn(
            &ServiceKey::new("shop", format!("s{n}")),
            "u",
            "Invalid",
            "m",
        );
    }
    wait_for(&server, 3).await;
    assert_eq!(logged.count("forbids to create events"), 1);
}
