// SPDX-License-Identifier: MIT OR Apache-2.0
//! Metrics that dashboards for kube-proxy know: the same names, labels and buckets, where they mean
//! something here.
//!
//! A pass writes both families, so each pass counts for both of them.
//! **Invariant:** a change costs what it holds, a pass the changes taken in; nothing is walked over.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::healthz::Asked;
use super::progress::FAMILIES;
use crate::model::service::IpFamily;
use crate::model::snapshot::{Change, Object, ObjectRef, Update};
use crate::plan::NoLocal;

/// Times of changes that wait to be in force; of more the oldest are not counted.
const TRIGGERS_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    ip_family: &'static str,
}

const V4: OfFamily = OfFamily {
    ip_family: FAMILIES[0],
};
const V6: OfFamily = OfFamily {
    ip_family: FAMILIES[1],
};

fn label(family: IpFamily) -> &'static OfFamily {
    match family {
        IpFamily::V4 => &V4,
        IpFamily::V6 => &V6,
    }
}

type Histograms = Family<OfFamily, Histogram, fn() -> Histogram>;
type Times = Family<OfFamily, Gauge<f64, AtomicU64>>;
type Pending = Family<OfFamily, Gauge<i64, AtomicI64>>;

/// What is counted of passes and of the changes that they bring into force.
#[derive(Debug)]
pub(super) struct SyncMetrics {
    pass_seconds: Histograms,
    programming_seconds: Histograms,
    last: Times,
    last_queued: Times,
    endpoints_pending: Pending,
    services_pending: Pending,
    endpoints: Counter<u64, AtomicU64>,
    services: Counter<u64, AtomicU64>,
    started_micros: i64,
    no_local: Arc<Mutex<NoLocal>>,
    /// When changes happened that are not in force.
    triggers: VecDeque<(IpFamily, i64)>,
}

/// 1 ms to 16 s, each bound twice the one before.
fn pass_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// Quarters of a second, seconds up to a minute, 5 s up to two, 30 s up to five.
fn programming_buckets() -> Histogram {
    let buckets = linear_buckets(0.25, 0.25, 2)
        .chain(linear_buckets(1.0, 1.0, 59))
        .chain(linear_buckets(60.0, 5.0, 12))
        .chain(linear_buckets(120.0, 30.0, 7));
    Histogram::new(buckets)
}

impl SyncMetrics {
    /// Counters that stand at zero, shown in `registry` beside how often health was `asked`.
    pub(super) fn new(registry: &mut Registry, asked: &Asked) -> Self {
        let metrics = Self {
            pass_seconds: Family::new_with_constructor(pass_buckets),
            programming_seconds: Family::new_with_constructor(programming_buckets),
            last: Family::default(),
            last_queued: Family::default(),
            endpoints_pending: Family::default(),
            services_pending: Family::default(),
            endpoints: Counter::default(),
            services: Counter::default(),
            started_micros: Timestamp::now().as_microsecond(),
            no_local: Arc::default(),
            triggers: VecDeque::new(),
        };
        // A series that is there from the start has an increase at its first event.
        for family in [&V4, &V6] {
            drop(metrics.pass_seconds.get_or_create(family));
            drop(metrics.programming_seconds.get_or_create(family));
        }
        let all = registry.sub_registry_with_prefix("kubeproxy");
        metrics.register_times(all);
        metrics.register_changes(all);
        let no_local = Arc::clone(&metrics.no_local);
        all.register_collector(Box::new(NoLocalPorts(no_local)));
        all.register(
            "proxy_healthz",
            "Answers of /healthz at --healthz-bind-address, by status",
            asked.healthz.clone(),
        );
        all.register(
            "proxy_livez",
            "Answers of /livez at --healthz-bind-address, by status",
            asked.livez.clone(),
        );
        metrics
    }

    fn register_times(&self, all: &mut Registry) {
        all.register_with_unit(
            "sync_proxy_rules_duration",
            "How long a pass took, which brings changes of both families into force",
            Unit::Seconds,
            self.pass_seconds.clone(),
        );
        all.register_with_unit(
            "network_programming_duration",
            "From the change of an endpoint, as its EndpointSlice tells the time, until it was in force",
            Unit::Seconds,
            self.programming_seconds.clone(),
        );
        all.register_with_unit(
            "sync_proxy_rules_last_timestamp",
            "When everything that was known was in force last, since 1970",
            Unit::Seconds,
            self.last.clone(),
        );
        all.register_with_unit(
            "sync_proxy_rules_last_queued_timestamp",
            "When something came last that was to be brought into force, since 1970",
            Unit::Seconds,
            self.last_queued.clone(),
        );
    }

    fn register_changes(&self, all: &mut Registry) {
        all.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of endpoints that are not in force; after a failed write, Services that wait",
            self.endpoints_pending.clone(),
        );
        all.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of Services that are not in force; after a failed write, Services that wait",
            self.services_pending.clone(),
        );
        all.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of endpoints that have come",
            self.endpoints.clone(),
        );
        all.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services that have come",
            self.services.clone(),
        );
    }

    /// Takes note of an update that is to be brought into force.
    pub(super) fn queued(&mut self, update: &Update) {
        let now = seconds(Timestamp::now());
        for family in [&V4, &V6] {
            self.last_queued.get_or_create(family).set(now);
        }
        match update {
            Update::Changes(changes) => {
                for change in changes {
                    self.change(change);
                }
            }
            Update::Reset { objects, .. }
            | Update::Partial { objects, .. }
            | Update::Relist { objects, .. } => {
                for object in objects {
                    self.object(object);
                }
            }
            Update::Complete => {}
        }
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Apply(object) => {
                self.object(object);
                if let Object::EndpointSlice(slice) = object
                    && let Some(micros) = slice.triggered_micros
                    // What happened before was not this agent's to bring into force.
                    && micros >= self.started_micros
                {
                    self.triggers.truncate(TRIGGERS_MAX - 1);
                    self.triggers.push_front((slice.family, micros));
                }
            }
            Change::Delete(ObjectRef::Service(_)) => self.service(),
            Change::Delete(ObjectRef::EndpointSlice(_) | ObjectRef::Endpoints(_)) => {
                self.endpoint(&[IpFamily::V4, IpFamily::V6]);
            }
            Change::Delete(ObjectRef::Node(_) | ObjectRef::Pod(_) | ObjectRef::Namespace(_))
            | Change::Invalid(_) => {}
        }
    }

    fn object(&self, object: &Object) {
        match object {
            Object::Service(_) => self.service(),
            Object::EndpointSlice(slice) => self.endpoint(&[slice.family]),
            Object::Endpoints(..) => self.endpoint(&[IpFamily::V4, IpFamily::V6]),
            Object::Node(_) | Object::Pod(_) | Object::Namespace(_) => {}
        }
    }

    fn service(&self) {
        self.services.inc();
        for family in [&V4, &V6] {
            self.services_pending.get_or_create(family).inc();
        }
    }

    fn endpoint(&self, families: &[IpFamily]) {
        self.endpoints.inc();
        for family in families {
            self.endpoints_pending.get_or_create(label(*family)).inc();
        }
    }

    /// Takes note of a pass that `took` so long, after which so many Services are `pending` and so
    /// many ports have `no_local` endpoint.
    pub(super) fn passed(&mut self, took: Duration, pending: usize, no_local: NoLocal) {
        *self.no_local.lock().unwrap_or_else(PoisonError::into_inner) = no_local;
        let now = Timestamp::now();
        let pending = i64::try_from(pending).unwrap_or(i64::MAX);
        for family in [&V4, &V6] {
            let histogram = self.pass_seconds.get_or_create(family);
            histogram.observe(took.as_secs_f64());
            for gauge in [&self.endpoints_pending, &self.services_pending] {
                gauge.get_or_create(family).set(pending);
            }
            if pending == 0 {
                self.last.get_or_create(family).set(seconds(now));
            }
        }
        if pending > 0 {
            return;
        }
        for (family, micros) in self.triggers.drain(..) {
            // The clocks of two machines: what seems to come before its cause took no time.
            let took = (now.as_microsecond() - micros).max(0);
            let took = Duration::from_micros(took.unsigned_abs());
            let histogram = self.programming_seconds.get_or_create(label(family));
            histogram.observe(took.as_secs_f64());
        }
    }
}

/// Ports without an endpoint on this node that a policy Local wants. kube-proxy's name ends as that of a
/// counter, and it is none: so it is of no type.
#[derive(Debug)]
struct NoLocalPorts(Arc<Mutex<NoLocal>>);

impl Collector for NoLocalPorts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "sync_proxy_rules_no_local_endpoints_total";
        let help =
            "Ports of Services with a policy Local and without an endpoint on this node, now";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
        for (policy, counts) in [("internal", now.internal), ("external", now.external)] {
            for (family, count) in FAMILIES.into_iter().zip(counts) {
                let labels = [("ip_family", family), ("traffic_policy", policy)];
                metric.encode_family(&labels)?.encode_gauge(&count)?;
            }
        }
        Ok(())
    }
}

fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::model::endpoint::{EndpointSlice, SliceKey};
    use crate::model::service::Service;

    fn slice(triggered_micros: Option<i64>) -> Change {
        Change::Apply(Object::EndpointSlice(EndpointSlice {
            triggered_micros,
            key: SliceKey {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
            },
            service: None,
            family: IpFamily::V6,
            skipped: false,
            names: false,
            ports: Vec::new(),
            endpoints: Vec::new(),
            rejected: Vec::new(),
            ignored: Vec::new(),
        }))
    }

    fn has(registry: &Registry, line: &str) {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        assert!(
            text.lines().any(|known| known == line),
            "{line} in:\n{text}"
        );
    }

    #[test]
    fn a_change_is_pending_until_a_pass_brings_it_into_force() {
        let mut registry = Registry::default();
        let mut metrics = SyncMetrics::new(&mut registry, &Asked::default());
        let past = metrics.started_micros - 1;
        let now = metrics.started_micros;
        let service = Change::Apply(Object::Service(Service::default()));
        let changes = vec![slice(Some(past)), slice(None), slice(Some(now)), service];
        metrics.queued(&Update::Changes(changes));
        let pending = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
        has(&registry, &format!("{pending}{{ip_family=\"IPv6\"}} 3"));
        has(
            &registry,
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 3",
        );
        has(
            &registry,
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
        );

        metrics.passed(Duration::from_millis(3), 2, NoLocal::default());
        has(&registry, &format!("{pending}{{ip_family=\"IPv6\"}} 2"));
        let programmed = "kubeproxy_network_programming_duration_seconds_count";
        has(&registry, &format!("{programmed}{{ip_family=\"IPv6\"}} 0"));

        let no_local = NoLocal {
            internal: [0, 0],
            external: [0, 4],
        };
        metrics.passed(Duration::from_millis(3), 0, no_local);
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let labels = "ip_family=\"IPv6\",traffic_policy=\"external\"";
        has(&registry, &format!("{name}{{{labels}}} 4"));
        has(&registry, &format!("{pending}{{ip_family=\"IPv6\"}} 0"));
        has(&registry, &format!("{programmed}{{ip_family=\"IPv6\"}} 1"));
        has(&registry, &format!("{programmed}{{ip_family=\"IPv4\"}} 0"));
        let passes = "kubeproxy_sync_proxy_rules_duration_seconds_bucket";
        has(
            &registry,
            &format!("{passes}{{le=\"0.004\",ip_family=\"IPv4\"}} 2"),
        );
        let bucket = "kubeproxy_network_programming_duration_seconds_bucket";
        for bound in ["0.5", "59.0", "115.0", "300.0"] {
            has(
                &registry,
                &format!("{bucket}{{le=\"{bound}\",ip_family=\"IPv6\"}} 1"),
            );
        }
    }

    #[test]
    fn changes_that_wait_for_long_are_bounded() {
        let mut registry = Registry::default();
        let mut metrics = SyncMetrics::new(&mut registry, &Asked::default());
        for _ in 0..=TRIGGERS_MAX {
            let now = Some(metrics.started_micros);
            metrics.queued(&Update::Changes(vec![slice(now)]));
        }
        assert_eq!(metrics.triggers.len(), TRIGGERS_MAX);
    }
}
