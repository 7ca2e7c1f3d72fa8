// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters of single Services, read when somebody asks for the metrics: dials from the kernel,
//! traffic as the sweeper has summed it (`per_backend.rs`).
//!
//! **Invariant:** the number of label sets has a limit; Services beyond it are counted as left out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::per_backend;
use crate::datapath::{ServiceCounters, Traffic};
use crate::error_chain;
use crate::plan::ids::{Ids, PortKey};

/// What one port of a Service is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub(super) struct Labels {
    namespace: String,
    name: String,
    port: String,
}

impl Labels {
    #[cfg(test)]
    pub(super) fn new(namespace: &str, name: &str, port: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port: port.to_owned(),
        }
    }

    fn of(key: &PortKey) -> Self {
        Self {
            namespace: key.service.namespace.clone(),
            name: key.service.name.clone(),
            port: key.name.clone(),
        }
    }
}

/// Which service ids are shown under which names.
#[derive(Debug, Default)]
struct Shown {
    /// One service id for each family.
    ids: BTreeMap<Labels, Vec<u32>>,
    left_out: u64,
}

/// The counters of Services for `/metrics`. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct PerService {
    counters: Arc<ServiceCounters>,
    traffic: Traffic,
    shown: Arc<Mutex<Shown>>,
    services_max: usize,
}

impl PerService {
    /// Shows at most `services_max` ports of Services, the first ones by name.
    pub(super) fn new(counters: ServiceCounters, traffic: Traffic, services_max: usize) -> Self {
        Self {
            counters: Arc::new(counters),
            traffic,
            shown: Arc::default(),
            services_max,
        }
    }

    /// Takes note of which service id is whose.
    pub(super) fn name(&self, ids: &Ids) {
        let shown = show(ids.owned(), self.services_max);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }
}

fn show<'a>(owned: impl Iterator<Item = (&'a PortKey, u32)>, services_max: usize) -> Shown {
    let mut shown = Shown::default();
    for (key, id) in owned {
        let labels = Labels::of(key);
        if let Some(ids) = shown.ids.get_mut(&labels) {
            ids.push(id);
        } else if shown.ids.len() < services_max {
            shown.ids.insert(labels, vec![id]);
        } else {
            shown.left_out += 1;
        }
    }
    shown
}

impl Collector for PerService {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums = Vec::new();
        for (labels, ids) in &shown.ids {
            let (mut opened, mut rejected) = (0, 0);
            for id in ids {
                match self.counters.read(*id) {
                    Ok(stats) => {
                        opened += stats.opened;
                        rejected += stats.rejected;
                    }
                    Err(error) => {
                        tracing::warn!(error = error_chain(&error), "read counters of Services");
                        return Ok(());
                    }
                }
            }
            sums.push((labels, opened, rejected));
        }
        write(&mut encoder, &sums, shown.left_out)?;
        let traffic = self.traffic.read();
        let of_ids = |ids: &Vec<u32>| per_backend::of_ids(ids, &traffic);
        let sums = shown.ids.iter().map(|(labels, ids)| (labels, of_ids(ids)));
        per_backend::write(&mut encoder, &sums.collect::<Vec<_>>())
    }
}

fn write(
    encoder: &mut DescriptorEncoder<'_>,
    sums: &[(&Labels, u64, u64)],
    left_out: u64,
) -> Result<(), fmt::Error> {
    let help = "Flows that were opened to a backend, by port of a Service";
    let counter = MetricType::Counter;
    let mut metric = encoder.encode_descriptor("service_opened", help, None, counter)?;
    for (labels, opened, _) in sums {
        let mut metric = metric.encode_family(*labels)?;
        metric.encode_counter::<NoLabelSet, u64, u64>(opened, None)?;
    }
    let help = "First packets that were refused or dropped, by port of a Service";
    let mut metric = encoder.encode_descriptor("service_rejected", help, None, counter)?;
    for (labels, _, rejected) in sums {
        let mut metric = metric.encode_family(*labels)?;
        metric.encode_counter::<NoLabelSet, u64, u64>(rejected, None)?;
    }
    let help = "Service ids without counters here, beyond --metrics-services-max";
    let gauge = MetricType::Gauge;
    let mut metric = encoder.encode_descriptor("service_metrics_left_out", help, None, gauge)?;
    metric.encode_gauge(&i64::try_from(left_out).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::service::{IpFamily, Protocol, ServiceKey};
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    fn key(name: &str, family: IpFamily, port: &str) -> PortKey {
        PortKey {
            service: ServiceKey::new("default", name),
            family,
            name: port.to_owned(),
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn families_are_summed_and_what_is_beyond_the_limit_is_counted() {
        let keys = [
            (key("a", IpFamily::V4, "http"), 7),
            (key("a", IpFamily::V4, "https"), 8),
            (key("a", IpFamily::V6, "http"), 9),
            (key("b", IpFamily::V4, ""), 10),
        ];
        let shown = |max| {
            let shown = show(keys.iter().map(|(key, id)| (key, *id)), max);
            let names = shown.ids.into_iter();
            let names = names.map(|(labels, ids)| (labels.name + ":" + &labels.port, ids));
            (names.collect::<Vec<_>>(), shown.left_out)
        };
        let http = ("a:http".to_owned(), vec![7, 9]);
        let https = ("a:https".to_owned(), vec![8]);
        assert_eq!(shown(2), (vec![http.clone(), https.clone()], 1));
        let other = ("b:".to_owned(), vec![10]);
        assert_eq!(shown(3), (vec![http, https, other], 0));
        assert_eq!(shown(0), (vec![], 4));
    }

    #[derive(Debug)]
    struct Sums(Vec<(Labels, u64, u64)>);

    impl Collector for Sums {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            let sums: Vec<_> = self.0.iter().map(|(l, o, r)| (l, *o, *r)).collect();
            write(&mut encoder, &sums, 3)
        }
    }

    #[test]
    fn each_port_of_a_service_has_its_labels() {
        let mut registry = Registry::default();
        let labels = Labels::of(&key("web", IpFamily::V4, "http"));
        let sums = Sums(vec![(labels, 5, 2)]);
        let all = registry.sub_registry_with_prefix("lb");
        all.register_collector(Box::new(sums));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let labels = "{namespace=\"default\",name=\"web\",port=\"http\"}";
        for line in [
            format!("lb_service_opened_total{labels} 5"),
            format!("lb_service_rejected_total{labels} 2"),
            "lb_service_metrics_left_out 3".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} in:\n{text}");
        }
    }
}
