// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kubernetes Events about Services, for people who look at a Service and not at a node's log.
//!
//! Warnings go through a bounded queue to a task of their own; the same warning again within a while
//! becomes a count on the event that is there.
//! **Invariant:** nobody ever waits for an event, and no failure of one is a failure of the agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use kube::core::params::{Patch, PatchParams, PostParams};
use kube::core::request::Request;
use serde_json::json;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep_until, timeout};

use super::wire::root_cause;
use crate::model::service::ServiceKey;

/// Warnings that may wait to be sent.
const QUEUE: usize = 256;
/// Requests that may go out at once.
const BURST: u32 = 25;
/// Time for each further one.
const REFILL: Duration = Duration::from_secs(5);
/// Within this time the same warning is the same event, counted.
const SERIES_WITHIN: Duration = Duration::from_mins(10);
/// Events that are remembered for counting.
const SERIES_MAX: usize = 1024;
/// How long one request may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The longest note that an API server takes.
const NOTE_MAX: usize = 1024;
/// The name under which we report.
const CONTROLLER: &str = "lb-agent";

/// Sends Events about Services. Clones send through the same queue.
#[derive(Clone, Debug)]
pub struct EventRecorder {
    queue: Sender<Warning>,
    dropped: Arc<AtomicU64>,
}

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Warning {
    service: ServiceKey,
    uid: String,
    reason: &'static str,
    message: String,
}

impl EventRecorder {
    /// Starts the task that sends, on the current runtime; `node` is who reports.
    pub fn start(client: Client, node: &str) -> Self {
        let (queue, inbox) = channel(QUEUE);
        let reporter = Reporter {
            client,
            node: node.to_owned(),
            tokens: Tokens::new(Instant::now()),
            series: BTreeMap::new(),
            forbidden: false,
            sent: 0,
        };
        tokio::spawn(reporter.run(inbox));
        Self {
            queue,
            dropped: Arc::default(),
        }
    }

    /// Tells people about a Service. Never waits: when too much is to be told, the rest is dropped
    /// and counted.
    pub fn warn(&self, service: &ServiceKey, uid: &str, reason: &'static str, message: &str) {
        let warning = Warning {
            service: service.clone(),
            uid: uid.to_owned(),
            reason,
            message: message.to_owned(),
        };
        if self.queue.try_send(warning).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Warnings that nobody was told of, because there were too many.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A budget of requests.
#[derive(Debug)]
struct Tokens {
    left: u32,
    since: Instant,
}

impl Tokens {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
        }
    }

    /// Takes one if there is any; else says when there will be one.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        while self.left < BURST && now >= self.since + REFILL {
            self.left += 1;
            self.since += REFILL;
        }
        if self.left == BURST {
            self.since = now;
        }
        if self.left == 0 {
            return Err(self.since + REFILL);
        }
        self.left -= 1;
        Ok(())
    }
}

/// An event that is there.
#[derive(Debug)]
struct Series {
    name: String,
    count: i32,
    /// What the server knows.
    told: i32,
    last: Instant,
}

struct Reporter {
    client: Client,
    node: String,
    tokens: Tokens,
    series: BTreeMap<Warning, Series>,
    forbidden: bool,
    sent: u64,
}

impl Reporter {
    async fn run(mut self, mut inbox: Receiver<Warning>) {
        while let Some(warning) = inbox.recv().await {
            self.tell(warning).await;
        }
    }

    async fn tell(&mut self, warning: Warning) {
        let now = Instant::now();
        self.series
            .retain(|_, series| now - series.last < SERIES_WITHIN);
        if let Some(series) = self.series.get_mut(&warning) {
            series.count = series.count.saturating_add(1);
            series.last = now;
            // A count that is a little late is no harm: the next one tells it.
            if self.tokens.take(now).is_ok() {
                self.count(&warning).await;
            }
            return;
        }
        while let Err(later) = self.tokens.take(Instant::now()) {
            sleep_until(later).await;
        }
        self.sent += 1;
        let name = self.name(&warning);
        let event = self.event(&warning, &name);
        let Ok(body) = serde_json::to_vec(&event) else {
            return;
        };
        let request = path(&warning).create(&PostParams::default(), body);
        if self.send(request).await && self.series.len() < SERIES_MAX {
            let series = Series {
                name,
                count: 1,
                told: 1,
                last: Instant::now(),
            };
            self.series.insert(warning, series);
        }
    }

    async fn count(&mut self, warning: &Warning) {
        let Some(series) = self.series.get(warning) else {
            return;
        };
        let (name, count) = (series.name.clone(), series.count);
        if count == series.told {
            return;
        }
        let time = MicroTime(Timestamp::now());
        let patch = Patch::Merge(json!({"series": {"count": count, "lastObservedTime": time}}));
        let request = path(warning).patch(&name, &PatchParams::default(), &patch);
        if self.send(request).await {
            if let Some(series) = self.series.get_mut(warning) {
                series.told = count;
            }
        } else {
            // It may have been removed; the next warning makes a new one.
            self.series.remove(warning);
        }
    }

    /// A name that no other agent gives, and this one only once.
    fn name(&self, warning: &Warning) -> String {
        use std::hash::{BuildHasher as _, RandomState};
        let random = RandomState::new().hash_one((&self.node, self.sent));
        format!("{}.{random:016x}", warning.service.name)
    }

    fn event(&self, warning: &Warning, name: &str) -> Event {
        let service = &warning.service;
        let note: String = warning.message.chars().take(NOTE_MAX / 4).collect();
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(service.namespace.clone()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(Timestamp::now())),
            action: Some("Program".to_owned()),
            reason: Some(warning.reason.to_owned()),
            note: Some(note),
            type_: Some("Warning".to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Service".to_owned()),
                name: Some(service.name.clone()),
                namespace: Some(service.namespace.clone()),
                uid: Some(warning.uid.clone()).filter(|uid| !uid.is_empty()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        }
    }

    /// Sends a request and says whether it was accepted.
    async fn send(
        &mut self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> bool {
        let request = match request {
            Ok(request) => request.map(Body::from),
            Err(error) => {
                tracing::debug!("an event was not sent: {error}");
                return false;
            }
        };
        match timeout(ANSWER_WITHIN, self.client.send(request)).await {
            Ok(Ok(answer)) if answer.status().is_success() => true,
            Ok(Ok(answer)) if answer.status().as_u16() == 403 => {
                if !std::mem::replace(&mut self.forbidden, true) {
                    tracing::warn!(
                        "the API server forbids to create events (403): the agent's ClusterRole \
                         needs the verbs create and patch on events in events.k8s.io; warnings \
                         about Services are in this log only"
                    );
                }
                false
            }
            Ok(Ok(answer)) => {
                tracing::debug!("an event was refused: {}", answer.status());
                false
            }
            Ok(Err(error)) => {
                tracing::debug!("an event was not sent: {}", root_cause(&error));
                false
            }
            Err(_) => {
                tracing::debug!("an event was not sent: no answer");
                false
            }
        }
    }
}

fn path(warning: &Warning) -> Request {
    let namespace = &warning.service.namespace;
    Request::new(format!(
        "/apis/events.k8s.io/v1/namespaces/{namespace}/events"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_sent_at_once_and_the_rest_one_by_one() {
        let start = Instant::now();
        let mut tokens = Tokens::new(start);
        for _ in 0..BURST {
            assert_eq!(tokens.take(start), Ok(()));
        }
        assert_eq!(tokens.take(start), Err(start + REFILL));
        assert_eq!(tokens.take(start + REFILL), Ok(()));
        assert_eq!(tokens.take(start + REFILL), Err(start + REFILL * 2));
        let rested = start + REFILL * 1_000;
        for _ in 0..BURST {
            assert_eq!(tokens.take(rested), Ok(()));
        }
        assert!(
            tokens.take(rested).is_err(),
            "a rest saves up one burst only"
        );
    }
}
