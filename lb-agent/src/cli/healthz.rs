// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/healthz` and `/livez` as kube-proxy answers them at port 10256: cloud load balancers and
//! autoscalers ask there whether new connections may come to this node.
//!
//! **Invariant:** a node that is about to leave is not healthy and alive all the same: load balancers
//! turn away, and nobody restarts the agent while connections come to their end.

use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::progress::{FAMILIES, FamilyHealth, Known, Progress};

/// What Kubernetes writes for a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The status of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Code {
    code: u16,
}

/// How often each path was answered, by status. Clones share the counters.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    pub(super) healthz: Family<Code, Counter<u64, AtomicU64>>,
    pub(super) livez: Family<Code, Counter<u64, AtomicU64>>,
}

/// A body.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Families::is_empty")]
    status: Families,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OfFamily {
    last_updated: String,
    healthy: bool,
}

/// A mapping from the names of families.
struct Families([Option<FamilyHealth>; 2]);

impl Families {
    fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

impl Serialize for Families {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, health) in FAMILIES.iter().zip(&self.0) {
            if let Some(health) = health {
                let health = OfFamily {
                    last_updated: written(health.last_updated),
                    healthy: health.healthy,
                };
                map.serialize_entry(name, &health)?;
            }
        }
        map.end()
    }
}

fn written(time: Option<Timestamp>) -> String {
    time.map_or_else(|| NEVER.to_owned(), |time| time.to_string())
}

/// Answers by `progress`.
pub(super) fn app(progress: &Progress, asked: Asked) -> Router {
    let (of_node, of_proxy) = (progress.clone(), progress.clone());
    let Asked { healthz, livez } = asked;
    let healthz = move || async move {
        let known = of_node.known();
        answer(&known, Some(known.node_eligible), &healthz)
    };
    let livez = move || async move { answer(&of_proxy.known(), None, &livez) };
    Router::new()
        .route("/healthz", any(healthz))
        .route("/livez", any(livez))
}

fn answer(
    known: &Known,
    node_eligible: Option<bool>,
    asked: &Family<Code, Counter<u64, AtomicU64>>,
) -> Response {
    let healthy = known.is_healthy();
    let status = if healthy && node_eligible.unwrap_or(true) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let code = status.as_u16();
    asked.get_or_create(&Code { code }).inc();
    let now = Timestamp::now();
    let updated = known.families.iter().flatten();
    let updated = updated.filter_map(|family| family.last_updated).max();
    let body = Body {
        // While all is well, nothing waits: what is in force is what there is now.
        last_updated: written(if status == StatusCode::OK {
            Some(now)
        } else {
            updated
        }),
        current_time: now.to_string(),
        node_eligible,
        healthy,
        status: Families(known.families),
    };
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    // Texts and booleans can always be written.
    let text = serde_json::to_string(&body).unwrap_or_default();
    (status, headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::cli::asking::{Answer, ask, served};
    use crate::cli::progress::KEEPS_UP;

    async fn both(port: u16) -> [(Answer, Value); 2] {
        let mut answers = Vec::new();
        for path in ["/healthz", "/livez"] {
            let answer = ask(port, &format!("GET {path}")).await;
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            let body: Value = serde_json::from_str(&answer.body).unwrap();
            let time = |key: &str| body[key].as_str().unwrap().parse::<Timestamp>().unwrap();
            assert!(time("lastUpdated") <= time("currentTime"), "{body}");
            answers.push((answer, body));
        }
        assert_eq!(answers[1].1.get("nodeEligible"), None, "of /healthz only");
        answers.try_into().unwrap()
    }

    #[tokio::test]
    async fn a_node_that_leaves_is_alive_and_not_healthy() {
        let progress = Progress::default();
        let asked = Asked::default();
        let port = served(app(&progress, asked.clone())).await;
        let [(healthz, body), (livez, _)] = both(port).await;
        assert_eq!((healthz.status, livez.status), (200, 200), "at the start");
        assert_eq!(body.get("status"), None, "nothing has come yet");

        progress.queued();
        progress.note([false; 2]);
        let [(_, body), _] = both(port).await;
        assert_eq!(body["nodeEligible"], true);
        assert_eq!(body["status"]["IPv4"]["healthy"], true);
        assert_eq!(
            body["lastUpdated"], body["currentTime"],
            "now, while healthy"
        );

        progress.note_node(false);
        let [(healthz, body), (livez, _)] = both(port).await;
        assert_eq!((healthz.status, livez.status), (503, 200));
        assert_eq!(body["nodeEligible"], false);
        assert_eq!(body["healthy"], true, "of the agent itself");
        assert_eq!(body["lastUpdated"], body["status"]["IPv4"]["lastUpdated"]);
        progress.note_node(true);
        assert_eq!(both(port).await[0].0.status, 200);
        let count = |code| asked.healthz.get_or_create(&Code { code }).get();
        assert_eq!((count(200), count(503)), (3, 1));
        assert_eq!(ask(port, "GET /").await.status, 404);
    }

    #[tokio::test]
    async fn what_waits_for_a_minute_in_one_family_is_told_on_both_paths() {
        let progress = Progress::default();
        let asked = Asked::default();
        let port = served(app(&progress, asked.clone())).await;
        progress.note([false; 2]);
        progress.queued();
        progress.waits_for(1, KEEPS_UP / 2);
        assert_eq!(both(port).await[0].0.status, 200, "not yet");
        progress.waits_for(1, KEEPS_UP);
        for (answer, body) in both(port).await {
            assert_eq!(answer.status, 503);
            assert_eq!(body["healthy"], false);
            let status = &body["status"];
            let healthy = (&status["IPv4"]["healthy"], &status["IPv6"]["healthy"]);
            assert_eq!(healthy, (&true.into(), &false.into()));
            assert!(body["lastUpdated"].as_str() < body["currentTime"].as_str());
        }
        let livez = asked.livez.get_or_create(&Code { code: 503 }).get();
        assert_eq!(livez, 1);
    }
}
