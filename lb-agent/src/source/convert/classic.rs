// SPDX-License-Identifier: MIT OR Apache-2.0
//! The classic Endpoints object, as the slices that its mirror would be.
//!
//! **Invariant:** an address that cannot be used is told once, whatever else its subset has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::fields::{Result, endpoint_address, port_number, protocol};
use super::weights::Weights;
use super::{LABEL_HEADLESS, LABEL_PROXY_NAME, has, namespaced};
use crate::model::endpoint::{
    Endpoint, EndpointPort, EndpointSlice, RejectedEndpoint, SliceKey, WEIGHT_DEFAULT,
};
use crate::model::service::{IpFamily, ServiceKey};

/// A classic Endpoints object as slices, one per subset and family.
pub(crate) fn endpoints(object: &core::Endpoints) -> Result<(ServiceKey, Vec<EndpointSlice>)> {
    let key = namespaced(&object.metadata)?;
    let skipped = has(object.metadata.labels.as_ref(), LABEL_HEADLESS)
        || has(object.metadata.labels.as_ref(), LABEL_PROXY_NAME);
    let mut slices = Vec::new();
    let mut ignored = Vec::new();
    let weights = Weights::read(object.metadata.annotations.as_ref(), &mut ignored);
    for (at, subset) in object.subsets.iter().flatten().enumerate() {
        let mut ports = Vec::new();
        for (port_at, port) in subset.ports.iter().flatten().enumerate() {
            let field = format!("subsets[{at}].ports[{port_at}]");
            ports.push(EndpointPort {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol(&format!("{field}.protocol"), port.protocol.as_deref())?,
                port: port_number(&format!("{field}.port"), port.port)?,
            });
        }
        let mut by_family: BTreeMap<IpFamily, Vec<Endpoint>> = BTreeMap::new();
        let lists = [
            ("addresses", true, &subset.addresses),
            ("notReadyAddresses", false, &subset.not_ready_addresses),
        ];
        let mut rejected = Vec::new();
        for (name, ready, list) in lists {
            for (item_at, item) in list.iter().flatten().enumerate() {
                let field = format!("subsets[{at}].{name}[{item_at}].ip");
                let address = match endpoint_address(&field, &item.ip) {
                    Ok(address) => address,
                    Err(error) => {
                        rejected.push(RejectedEndpoint {
                            address: item.ip.clone(),
                            reason: error.to_string(),
                        });
                        continue;
                    }
                };
                let endpoint = Endpoint {
                    weight: weights.of(&address),
                    pod: super::pod_name(item.target_ref.as_ref()),
                    ..classic_endpoint(address, ready, item.node_name.clone())
                };
                by_family
                    .entry(IpFamily::of(address))
                    .or_default()
                    .push(endpoint);
            }
        }
        if !rejected.is_empty() {
            // The warning must reach the Service even if nothing else is in the subset.
            by_family.entry(IpFamily::V4).or_default();
        }
        for (family, endpoints) in by_family {
            let number = slices.len();
            slices.push(EndpointSlice {
                triggered_micros: None,
                key: SliceKey {
                    namespace: key.namespace.clone(),
                    name: format!("{}-{number}", key.name),
                },
                service: Some(key.clone()),
                family,
                skipped,
                names: false,
                ports: ports.clone(),
                endpoints,
                rejected: std::mem::take(&mut rejected),
                ignored: std::mem::take(&mut ignored),
            });
        }
    }
    Ok((key, slices))
}

fn classic_endpoint(address: IpAddr, ready: bool, node: Option<String>) -> Endpoint {
    Endpoint {
        address,
        ready,
        serving: ready,
        terminating: false,
        node,
        pod: None,
        zone_hints: BTreeSet::new(),
        node_hints: BTreeSet::new(),
        weight: WEIGHT_DEFAULT,
    }
}
