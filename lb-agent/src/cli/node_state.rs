// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel side in numbers, found out when somebody asks for the metrics: maps, masquerade ports,
//! devices, sockets, and rules of others.
//!
//! **Invariant:** asking costs the same however many Services and flows there are; labels have few
//! values.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue};
use prometheus_client::metrics::MetricType;
use tokio::sync::watch;

use super::progress::FAMILIES;
use crate::datapath::{Fill, Managed, SocketState};

/// Name of each table that planning writes, and its entries.
type Entries = [(&'static str, usize); 7];

/// What planning has written. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Planned(Arc<Mutex<Option<Entries>>>);

impl Planned {
    pub(super) fn note(&self, entries: Entries) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(entries);
    }

    fn entries(&self) -> Option<Entries> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kernel side for `/metrics`.
#[derive(Debug)]
pub(super) struct NodeState {
    pub(super) fill: Fill,
    pub(super) planned: Planned,
    pub(super) managed: watch::Receiver<Managed>,
}

impl Collector for NodeState {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.maps(&mut encoder)?;
        self.ports(&mut encoder)?;
        let managed = self.managed.borrow().clone();
        devices(&mut encoder, &managed)?;
        findings(&mut encoder, &managed)
    }
}

impl NodeState {
    fn maps(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let planned = self.planned.entries().into_iter().flatten();
        let planned = planned.map(|(map, count)| (map, number(count as u64)));
        let flows = self.fill.flow_entries();
        let flows = flows.into_iter().map(|(map, count)| (map, number(count)));
        let help = "Entries of a map that planning writes, or of flows as the last sweep met them";
        let entries = planned
            .chain(flows)
            .map(|(map, count)| ([("map", map)], count));
        gauges(encoder, ("map_entries", help), entries)?;
        let help = "Entries that a map has room for now";
        let room = self
            .fill
            .room()
            .map(|(map, most)| ([("map", map)], i64::from(most)));
        gauges(encoder, ("map_entries_max", help), room)
    }

    fn ports(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Established flows that hold a masquerade port, as the last sweep met them";
        let flows = FAMILIES.into_iter().zip(self.fill.masqueraded());
        let flows = flows.map(|(family, count)| ([("ip_family", family)], number(count)));
        gauges(encoder, ("snat_flows", help), flows)?;
        let help = "Masquerade ports: so many flows from one address of the node to one backend";
        let ports = i64::from(self.fill.snat_ports());
        let kind = MetricType::Gauge;
        encoder
            .encode_descriptor("snat_ports", help, None, kind)?
            .encode_gauge(&ports)
    }
}

fn devices(encoder: &mut DescriptorEncoder<'_>, managed: &Managed) -> Result<(), fmt::Error> {
    let mut served: BTreeMap<&str, i64> = BTreeMap::new();
    for (_, role) in managed.devices.values() {
        *served.entry(role.name()).or_default() += 1;
    }
    let help = "Devices that have the programs, by what they lead to";
    let served = served
        .into_iter()
        .map(|(role, count)| ([("role", role)], count));
    gauges(encoder, ("devices", help), served)?;
    let help = "Devices that are to have the programs and lack one";
    let lacking = number(managed.lacking.len() as u64);
    let kind = MetricType::Gauge;
    let mut metric = encoder.encode_descriptor("devices_lacking", help, None, kind)?;
    metric.encode_gauge(&lacking)?;
    let state = match managed.sockets {
        SocketState::Off => "off",
        SocketState::Serving(_) => "serving",
        SocketState::Lacking(_) => "lacking",
    };
    let help = "How sockets of this node are served: the state that is 1";
    let states =
        ["off", "serving", "lacking"].map(|each| ([("state", each)], i64::from(each == state)));
    gauges(encoder, ("sockets", help), states)
}

fn findings(encoder: &mut DescriptorEncoder<'_>, managed: &Managed) -> Result<(), fmt::Error> {
    let filter = managed.filter;
    let help =
        "Rules of others in the packet filter that concern Services; lb-agent doctor names them";
    let found = [
        ("kube-proxy", filter.kube_proxy),
        ("forward-policy-drop", filter.forward_drop),
    ];
    let found = found.map(|(what, count)| ([("what", what)], number(count as u64)));
    gauges(encoder, ("rules_of_others", help), found)
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Writes a gauge with one label.
fn gauges<'a, V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    values: impl IntoIterator<Item = ([(&'a str, &'a str); 1], V)>,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::datapath::{FilterFindings, Role};

    #[derive(Debug)]
    struct Of(Managed);

    impl Collector for Of {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            devices(&mut encoder, &self.0)?;
            findings(&mut encoder, &self.0)
        }
    }

    #[test]
    fn devices_sockets_and_rules_of_others_are_counted() {
        let mut managed = Managed::default();
        for (index, role) in [(1, Role::Pod), (2, Role::Pod), (3, Role::Uplink)] {
            managed.devices.insert(index, (format!("d{index}"), role));
        }
        managed.lacking.insert("d4".to_owned());
        managed.sockets = SocketState::Lacking("why".to_owned());
        managed.filter = FilterFindings {
            kube_proxy: 0,
            forward_drop: 2,
        };
        let mut registry = Registry::with_prefix("lb");
        registry.register_collector(Box::new(Of(managed)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "lb_devices{role=\"pod\"} 2\n",
            "lb_devices{role=\"uplink\"} 1\n",
            "lb_devices_lacking 1\n",
            "lb_sockets{state=\"lacking\"} 1\n",
            "lb_sockets{state=\"serving\"} 0\n",
            "lb_rules_of_others{what=\"kube-proxy\"} 0\n",
            "lb_rules_of_others{what=\"forward-policy-drop\"} 2\n",
        ] {
            assert!(text.contains(line), "{line} in:\n{text}");
        }
    }
}
