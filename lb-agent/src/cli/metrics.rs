// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the agent counts, in the text formats of Prometheus, and what is answered beside it.
//!
//! Names begin with `lb_`, those of `sync_metrics.rs` as kube-proxy's do. Labels have few values, but for the counters of single Services, which have
//! a limit (`per_service.rs`).
//! **Invariant:** counting never fails and never waits.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::routing::{any, get};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use super::healthz::Asked;
use super::node_state::{NodeState, Planned};
use super::process::Process;
use super::sync_metrics::SyncMetrics;
use super::text_format::{OPEN_METRICS, TEXT, older, wants_open_metrics};
use crate::datapath::{Fill, Managed};
use crate::reconcile::audit::AuditReport;
use crate::reconcile::{Outcome, Reconciler};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

/// The counters of one agent. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    registry: Arc<Mutex<Registry>>,
    services: Gauge<i64, AtomicI64>,
    pending: Gauge<i64, AtomicI64>,
    invalid: Gauge<i64, AtomicI64>,
    warnings: Family<Reason, Gauge<i64, AtomicI64>>,
    writes: Counter<u64, AtomicU64>,
    audited: Family<Result, Counter<u64, AtomicU64>>,
    audits: Counter<u64, AtomicU64>,
    update_seconds: Histogram,
    planned: Planned,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Counters that stand at zero.
    pub(super) fn new() -> Self {
        // 20 us to 1.3 s, each bound twice the one before.
        let update_seconds = Histogram::new(exponential_buckets(20e-6, 2.0, 17));
        let metrics = Self {
            registry: Arc::default(),
            services: Gauge::default(),
            pending: Gauge::default(),
            invalid: Gauge::default(),
            warnings: Family::default(),
            writes: Counter::default(),
            audited: Family::default(),
            audits: Counter::default(),
            update_seconds,
            planned: Planned::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(Box::new(Process));
        let all = registry.sub_registry_with_prefix("lb");
        all.register("services", "Services that are known", self.services.clone());
        all.register(
            "services_pending",
            "Services whose writes wait for another try",
            self.pending.clone(),
        );
        all.register(
            "objects_invalid",
            "Objects that cannot be read and whose last good state is in force",
            self.invalid.clone(),
        );
        all.register(
            "service_warnings",
            "Warnings about Services that are in force, by reason",
            self.warnings.clone(),
        );
        all.register(
            "table_writes",
            "Entries put into or deleted from the maps",
            self.writes.clone(),
        );
        all.register(
            "audit_entries",
            "Entries that an audit found to differ from the plan, by what became of them",
            self.audited.clone(),
        );
        all.register("audits", "Audits of all maps", self.audits.clone());
        all.register_with_unit(
            "update_duration",
            "From the arrival of an update to the last write for it",
            Unit::Seconds,
            self.update_seconds.clone(),
        );
    }

    /// Shows what a collector collects too, such as the counters of single Services.
    pub(super) fn show(&self, collector: impl Collector) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let all = registry.sub_registry_with_prefix("lb");
        all.register_collector(Box::new(collector));
    }

    /// Takes note of one pass of the reconciler.
    pub(super) fn pass(&self, outcome: Outcome, reconciler: &Reconciler) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.services.set(number(reconciler.services_len()));
        self.pending.set(number(outcome.pending));
        self.planned.note(reconciler.entries());
        self.invalid.set(number(reconciler.invalid_len()));
        self.writes
            .inc_by(u64::try_from(outcome.changes).unwrap_or(u64::MAX));
        for (reason, count) in reconciler.warnings_by_reason() {
            self.warnings
                .get_or_create(&Reason { reason })
                .set(number(*count));
        }
    }

    /// Takes note of the time from the arrival of an update to its last write.
    pub(super) fn updated(&self, took: Duration) {
        self.update_seconds.observe(took.as_secs_f64());
    }

    /// Takes note of what an audit has found.
    pub(super) fn audited(&self, report: AuditReport) {
        for (result, count) in [
            ("restored", report.restored),
            ("removed", report.removed),
            ("failed", report.failed),
        ] {
            self.audited.get_or_create(&Result { result }).inc_by(count);
        }
        self.audits.inc();
    }

    /// Everything as text.
    pub(super) fn text(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        // Writing to a String cannot fail.
        encode(&mut text, &registry).ok();
        text
    }

    /// Shows the kernel side too.
    pub(super) fn show_node(&self, fill: Fill, managed: watch::Receiver<Managed>) {
        self.show(NodeState {
            fill,
            planned: self.planned.clone(),
            managed,
        });
    }

    /// The counters of passes, which are shown among these.
    pub(super) fn sync_metrics(&self, asked: &Asked) -> SyncMetrics {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        SyncMetrics::new(&mut registry, asked)
    }

    /// Answers `/metrics`, and what else kube-proxy answers beside it.
    pub(super) fn app(self) -> Router {
        let metrics = move |headers: HeaderMap| {
            let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
            let newer = wants_open_metrics(accept);
            async move {
                let text = self.text();
                if newer {
                    ([(CONTENT_TYPE, OPEN_METRICS)], text)
                } else {
                    ([(CONTENT_TYPE, TEXT)], older(&text))
                }
            }
        };
        let plain = |text: &'static str| {
            let headers = [
                (CONTENT_TYPE, "text/plain; charset=utf-8"),
                (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ];
            any((headers, text))
        };
        Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", plain("ok"))
            .route("/proxyMode", plain("ebpf"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::asking::{ask, served};

    #[test]
    fn the_text_names_what_was_counted_with_help_and_unit() {
        let metrics = Metrics::new();
        metrics.audited(AuditReport {
            restored: 2,
            ..AuditReport::default()
        });
        metrics.updated(Duration::from_micros(90));
        let text = metrics.text();
        for line in [
            "lb_audit_entries_total{result=\"restored\"} 2",
            "lb_update_duration_seconds_count 1",
            "# UNIT lb_update_duration_seconds seconds",
            "# HELP lb_services_pending ",
        ] {
            assert!(text.contains(line), "{line} in:\n{text}");
        }
    }

    #[tokio::test]
    async fn metrics_come_in_the_format_that_is_asked_for_beside_the_proxy_mode() {
        let port = served(Metrics::new().app()).await;
        let answer = ask(port, "GET /metrics").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some(TEXT));
        assert!(
            answer
                .body
                .contains("# TYPE lb_audits_total counter\nlb_audits_total 0\n")
        );
        let request = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\nX: ";
        let answer = ask(port, request).await;
        assert_eq!(answer.header("content-type"), Some(OPEN_METRICS));
        assert!(answer.body.ends_with("# EOF\n"));
        for (path, text) in [("/proxyMode", "ebpf"), ("/healthz", "ok")] {
            let answer = ask(port, &format!("GET {path}")).await;
            assert_eq!((answer.status, &*answer.body), (200, text));
            assert_eq!(
                answer.header("content-type"),
                Some("text/plain; charset=utf-8")
            );
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        }
    }
}
