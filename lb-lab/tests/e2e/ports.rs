// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ports at which others ask the agent: health, metrics, the health check of a load balancer.
//!
//! All of them are taken at first, as by a kube-proxy that still runs. The Node is changed through the
//! lab's API server, as the autoscaler and whoever deletes nodes do.
//! **Invariant:** every answer is read by curl with its status and headers; waiting has a bound.
//! Read next: `from_api.rs`, whose objects these are.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lb_lab::agent::{READY_MAX, find_binary};
use lb_lab::apiserver::Resource;
use lb_lab::{Agent, ApiServer, Lab, Node};
use serde_json::{Value, json};

use crate::cluster::pause;
use crate::common::can_run;
use crate::from_api::api_server;
use crate::inspect::entries;

const CHECK_PORT: u16 = 32_123;
/// What the agent serves, in the node's namespace.
const TAKEN: [&str; 3] = ["0.0.0.0:10256", "127.0.0.1:10249", "0.0.0.0:32123"];
/// A port that becomes free is served within this time.
const SERVED_WITHIN: Duration = Duration::from_secs(6);
/// A change of the Node is told within this time.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// What curl got.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// The answer of a server on the node, if there is one.
fn ask(node: &Node, port: u16, path: &str) -> Option<Answer> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let text = node.output(&format!("curl -si --max-time 5 {url}")).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}

fn status(node: &Node, port: u16, path: &str) -> Option<u16> {
    ask(node, port, path).map(|answer| answer.status)
}

fn wait_for_status(node: &Node, path: &str, wanted: u16) {
    let until = Instant::now() + TOLD_WITHIN;
    while status(node, 10_256, path) != Some(wanted) {
        assert!(Instant::now() < until, "{path} never answered {wanted}");
        pause(Duration::from_millis(20));
    }
}

fn publish_node(server: &ApiServer, node: &Node, metadata: &Value, spec: &Value) {
    let mut object =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec});
    object["metadata"]["name"] = node.name().into();
    server.apply(object).unwrap();
}

/// A Service of a load balancer with one endpoint on this node, and one whose endpoint is elsewhere.
fn publish(server: &ApiServer, node: &Node) {
    publish_node(server, node, &json!({}), &json!({}));
    for (number, name, check, at) in [
        (1, "web", CHECK_PORT, node.name()),
        (2, "far", CHECK_PORT + 1, "elsewhere"),
    ] {
        server
            .apply(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "shop"},
                "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
                         "healthCheckNodePort": check, "clusterIP": format!("10.0.1.{number}"),
                         "ports": [{"port": 80, "nodePort": 30_000 + number}]},
            }))
            .unwrap();
        slice(server, name, at, None);
    }
}

fn slice(server: &ApiServer, name: &str, at: &str, triggered: Option<&str>) {
    let annotation = "endpoints.kubernetes.io/last-change-trigger-time";
    let annotations = triggered.map(|time| json!({annotation: time}));
    server
        .apply(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "shop", "annotations": annotations,
                         "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 80}],
            "endpoints": [{"addresses": ["10.244.0.9"], "nodeName": at}],
        }))
        .unwrap();
}

#[test]
fn taken_ports_are_served_when_they_are_free_and_answer_as_kube_proxy_does() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let server = api_server(node);
    publish(&server, node);
    let bind = || TAKEN.map(|address| TcpListener::bind(address).unwrap());
    let taken = node.netns().run(bind).unwrap();

    let url = server.url();
    let args = ["--api-server", url.as_str()];
    let mut agent = Agent::spawn_with(node, &find_binary().unwrap(), &args).unwrap();
    agent.wait_ready(READY_MAX).unwrap();
    assert_eq!(ask(node, 10_246, "/readyz").unwrap().body, "ready\n");
    assert_eq!(ask(node, 10_246, "/livez").unwrap().body, "ok\n");
    // Longer than the first tries last.
    pause(Duration::from_secs(2));
    let log = agent.log();
    for address in ["[::]:10256", "127.0.0.1:10249", "port 32123"] {
        let told = log.lines().filter(|line| line.contains(address));
        assert_eq!(told.count(), 1, "{address} in:\n{log}");
    }
    let events = server.events();
    let told = |event: &&Value| event["reason"] == "FailedToStartServiceHealthcheck";
    assert_eq!(events.iter().filter(told).count(), 1, "{events:?}");

    drop(taken);
    let free = Instant::now();
    for port in TAKEN.map(|address| address.parse::<SocketAddr>().unwrap().port()) {
        while ask(node, port, "/healthz").is_none() {
            assert!(free.elapsed() < SERVED_WITHIN, "{port} is not served");
            pause(Duration::from_millis(20));
        }
    }
    health_is_told_as_kube_proxy_tells_it(&server, node);
    metrics_are_those_that_dashboards_know(&server, node);
    assert!(agent.stop().unwrap().success());
}

fn health_is_told_as_kube_proxy_tells_it(server: &ApiServer, node: &Node) {
    let healthz = ask(node, 10_256, "/healthz").unwrap();
    assert_eq!(healthz.status, 200);
    for header in [
        "content-type: application/json",
        "x-content-type-options: nosniff",
    ] {
        assert!(healthz.head.contains(header), "{healthz:?}");
    }
    let body = healthz.json();
    let keys: Vec<_> = body.as_object().unwrap().keys().cloned().collect();
    let wanted = [
        "currentTime",
        "healthy",
        "lastUpdated",
        "nodeEligible",
        "status",
    ];
    assert_eq!(keys, wanted);
    assert_eq!(body["status"]["IPv6"]["healthy"], true);
    let livez = ask(node, 10_256, "/livez").unwrap();
    assert_eq!(livez.json().get("nodeEligible"), None);

    let check = ask(node, CHECK_PORT, "/any/path").unwrap();
    assert_eq!(check.status, 200);
    assert!(
        check.head.contains("x-load-balancing-endpoint-weight: 1"),
        "{check:?}"
    );
    let wanted = json!({"service": {"namespace": "shop", "name": "web"},
                        "localEndpoints": 1, "serviceProxyHealthy": true});
    assert_eq!(check.json(), wanted);
    assert_eq!(
        status(node, CHECK_PORT + 1, "/"),
        Some(503),
        "no endpoint is here"
    );

    let taint =
        json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule", "value": "1"});
    publish_node(server, node, &json!({}), &json!({"taints": [taint]}));
    wait_for_status(node, "/healthz", 503);
    assert_eq!(
        ask(node, 10_256, "/healthz").unwrap().json()["nodeEligible"],
        false
    );
    assert_eq!(status(node, 10_256, "/livez"), Some(200));
    assert_eq!(
        status(node, CHECK_PORT, "/"),
        Some(200),
        "what is here serves on"
    );
    publish_node(server, node, &json!({}), &json!({}));
    wait_for_status(node, "/healthz", 200);
    let ending = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    publish_node(server, node, &ending, &json!({}));
    wait_for_status(node, "/healthz", 503);
    publish_node(server, node, &json!({}), &json!({}));
    wait_for_status(node, "/healthz", 200);
    server.delete(Resource::Node, "", node.name()).unwrap();
    wait_for_status(node, "/healthz", 503);
    assert_eq!(status(node, 10_256, "/livez"), Some(200));
    publish_node(server, node, &json!({}), &json!({}));
    wait_for_status(node, "/healthz", 200);
}

fn metrics_are_those_that_dashboards_know(server: &ApiServer, node: &Node) {
    assert_eq!(ask(node, 10_249, "/proxyMode").unwrap().body, "ebpf");
    assert_eq!(ask(node, 10_249, "/healthz").unwrap().body, "ok");
    // After the agent's start, whatever the clock says.
    slice(server, "web", node.name(), Some("2100-01-01T00:00:00.5Z"));
    let counted = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1";
    let until = Instant::now() + TOLD_WITHIN;
    let metrics = loop {
        let metrics = ask(node, 10_249, "/metrics").unwrap();
        if metrics.body.contains(counted) {
            break metrics;
        }
        assert!(Instant::now() < until, "{counted} in:\n{}", metrics.body);
        pause(Duration::from_millis(20));
    };
    assert!(
        metrics
            .head
            .contains("content-type: text/plain; version=0.0.4"),
        "{metrics:?}"
    );
    let text = metrics.body;
    let frontends = entries(node, "FRONTENDS_V4").len();
    for line in [
        &format!("lb_map_entries{{map=\"FRONTENDS_V4\"}} {frontends}"),
        "lb_map_entries_max{map=\"FRONTENDS_V4\"} 65536",
        "lb_devices_lacking 0",
        "lb_sockets{state=\"serving\"} 1",
        // The node's own firewall, whose chain is of both families.
        "lb_rules_of_others{what=\"forward-policy-drop\"} 1",
        "lb_rules_of_others{what=\"kube-proxy\"} 0",
        "kubeproxy_proxy_livez_total{code=\"200\"}",
        "kubeproxy_proxy_healthz_total{code=\"503\"}",
        "kubeproxy_sync_proxy_rules_service_changes_total 2",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 1",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.001\",ip_family=\"IPv6\"}",
        "process_resident_memory_bytes ",
    ] {
        assert!(text.contains(line), "{line} in:\n{text}");
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&said), "", "promtool");
    assert!(output.status.success());
}
