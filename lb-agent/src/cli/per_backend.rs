// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets and bytes by Service and by backend, in the format of Prometheus.
//!
//! **Invariant:** only Services that have counters of their own, and their backends, are written; each
//! combination of labels once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use lb_common::abi::Direction;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::per_service::Labels;
use crate::datapath::{ServiceTraffic, Totals};

/// The names of directions.
const DIRECTIONS: [(Direction, &str); 2] =
    [(Direction::Request, "request"), (Direction::Reply, "reply")];

/// What one number is about.
struct About<'a> {
    service: &'a Labels,
    backend: Option<SocketAddr>,
    direction: Option<&'static str>,
}

impl EncodeLabelSet for About<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.service.encode(encoder)?;
        let backend = self.backend.map(|address| address.to_string());
        let backend = backend.map(|address| ("backend", address));
        let direction = self.direction.map(|name| ("direction", name.to_owned()));
        for label in [backend, direction].into_iter().flatten() {
            use prometheus_client::encoding::EncodeLabel as _;
            label.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// Where a number is in the totals.
type Field = fn(&Totals) -> [u64; 2];

/// What is known of the ids of one label set.
pub(super) fn of_ids(ids: &[u32], all: &BTreeMap<u32, ServiceTraffic>) -> ServiceTraffic {
    let mut sum = ServiceTraffic::default();
    for traffic in ids.iter().filter_map(|id| all.get(id)) {
        sum.all.merge(&traffic.all);
        for (address, totals) in &traffic.backends {
            sum.backends.entry(*address).or_default().merge(totals);
        }
    }
    sum
}

/// Writes everything.
pub(super) fn write(
    encoder: &mut DescriptorEncoder<'_>,
    services: &[(&Labels, ServiceTraffic)],
) -> Result<(), fmt::Error> {
    let of_services = || {
        services
            .iter()
            .map(|(labels, sum)| (*labels, None, &sum.all))
    };
    let of_backends = || {
        services.iter().flat_map(|(labels, sum)| {
            let backends = sum.backends.iter();
            backends.map(|(address, totals)| (*labels, Some(*address), totals))
        })
    };
    let packets: Field = |totals| totals.packets;
    let bytes: Field = |totals| totals.bytes;
    let help = "Packets of established flows, by port of a Service";
    directed(encoder, ("service_packets", help), of_services(), packets)?;
    let help = "Bytes in them, from the network header on";
    directed(encoder, ("service_bytes", help), of_services(), bytes)?;
    let help = "Packets of established flows, by backend of a port of a Service";
    directed(encoder, ("backend_packets", help), of_backends(), packets)?;
    let help = "Bytes in them, from the network header on";
    directed(encoder, ("backend_bytes", help), of_backends(), bytes)?;
    let help = "Flows that were established, by backend of a port of a Service";
    let counter = MetricType::Counter;
    let mut metric = encoder.encode_descriptor("backend_established", help, None, counter)?;
    for (service, backend, totals) in of_backends() {
        let about = About {
            service,
            backend,
            direction: None,
        };
        let mut metric = metric.encode_family(&about)?;
        metric.encode_counter::<NoLabelSet, u64, u64>(&totals.established, None)?;
    }
    Ok(())
}

/// Writes one counter for both directions.
fn directed<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    all: impl Iterator<Item = (&'a Labels, Option<SocketAddr>, &'a Totals)>,
    field: Field,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (service, backend, totals) in all {
        for (by, name) in DIRECTIONS {
            let about = About {
                service,
                backend,
                direction: Some(name),
            };
            let mut metric = metric.encode_family(&about)?;
            let value = field(totals)[by as usize];
            metric.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    fn totals(request: u64, reply: u64) -> Totals {
        Totals {
            packets: [request, reply],
            bytes: [100 * request, 100 * reply],
            established: 1,
        }
    }

    fn traffic(past: u64, backends: &[(&str, Totals)]) -> ServiceTraffic {
        let mut traffic = ServiceTraffic::default();
        traffic.all.merge(&totals(past, past));
        for (address, totals) in backends {
            traffic.all.merge(totals);
            traffic.backends.insert(address.parse().unwrap(), *totals);
        }
        traffic
    }

    #[derive(Debug)]
    struct Sums(Vec<(Labels, ServiceTraffic)>);

    impl Collector for Sums {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            let sums: Vec<_> = self.0.iter().map(|(l, sum)| (l, sum.clone())).collect();
            write(&mut encoder, &sums)
        }
    }

    #[test]
    fn both_families_of_a_service_are_one_and_every_backend_has_its_line() {
        let all = BTreeMap::from([
            (7, traffic(5, &[("10.0.0.5:80", totals(1, 2))])),
            (9, traffic(0, &[("[fd00::5]:80", totals(3, 4))])),
            (10, traffic(0, &[("10.0.0.6:80", totals(50, 60))])),
        ]);
        let labels = Labels::new("default", "web", "http");
        let sums = Sums(vec![(labels, of_ids(&[7, 8, 9], &all))]);
        let mut registry = Registry::default();
        let prefixed = registry.sub_registry_with_prefix("lb");
        prefixed.register_collector(Box::new(sums));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let web = "namespace=\"default\",name=\"web\",port=\"http\"";
        for line in [
            "# HELP lb_backend_packets Packets of established flows".to_owned(),
            "# TYPE lb_service_bytes counter".to_owned(),
            format!("lb_service_packets_total{{{web},direction=\"request\"}} 9\n"),
            format!("lb_service_bytes_total{{{web},direction=\"reply\"}} 1100\n"),
            format!(
                "lb_backend_packets_total{{{web},backend=\"10.0.0.5:80\",direction=\"reply\"}} 2\n"
            ),
            format!(
                "lb_backend_bytes_total{{{web},backend=\"[fd00::5]:80\",direction=\"request\"}} 300\n"
            ),
            format!("lb_backend_established_total{{{web},backend=\"[fd00::5]:80\"}} 1\n"),
        ] {
            assert!(text.contains(&line), "{line} in:\n{text}");
        }
        assert!(!text.contains("10.0.0.6"), "not shown:\n{text}");
    }
}
