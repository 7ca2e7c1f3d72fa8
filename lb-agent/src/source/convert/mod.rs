// SPDX-License-Identifier: MIT OR Apache-2.0
//! From Kubernetes' own types to the model, checked as the API server would check.
//!
//! Defaults are filled in here, because manifests that never saw an API server lack them.
//! **Invariant:** an error names the field by its path; an object is converted whole or not at all.

mod classic;
mod fields;
mod weights;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::endpoint::{
    Endpoint, EndpointPort, EndpointSlice, RejectedEndpoint, SliceKey, WEIGHT_DEFAULT,
};
use crate::model::pod::{Namespace, Pod, PodKey};
use crate::model::service::{IpFamily, Node, Service, ServiceKey, ServicePort, ServiceType};

pub(crate) use classic::endpoints;
pub(crate) use fields::FieldError;
use fields::{
    Result, address, addresses, cidr, endpoint_address, error, external_address, lenient, policy,
    port_number, protocol,
};
use weights::Weights;

/// The label by which a Service asks for another proxy.
const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The taint of nodes that the autoscaler is about to remove.
const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// The annotation by which the controller of a slice tells when what it writes has happened.
pub(crate) const ANNOTATION_TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The label of slices that belong to a headless Service.
const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// The label by which a slice names its Service.
/// Why nothing is sent to the endpoints of a slice of names.
const NAMES: &str = "its EndpointSlice is of the address type FQDN, and names are not looked up";
pub(crate) const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label of a Node's zone.
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// The annotation that chooses how a Service's backends are chosen.
const ANNOTATION_ALGORITHM: &str = "lb-agent/algorithm";
/// The annotation of a pod or Namespace whose sockets are to be left alone, with the value `off`.
const ANNOTATION_SOCKET_LB: &str = "lb-agent/socket-lb";
/// The annotation by which the object of a static pod tells the uid that its kubelet knows it by.
pub(crate) const ANNOTATION_CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// How long `ClientIP` affinity lasts when the Service does not say.
const DEFAULT_AFFINITY_SECS: i32 = 10_800;
/// The longest that an affinity may last.
const AFFINITY_SECS_MAX: i32 = 86_400;

/// A Service.
pub(crate) fn service(object: &core::Service) -> Result<Service> {
    let key = namespaced(&object.metadata)?;
    let Some(spec) = object.spec.clone() else {
        return error("spec", "missing");
    };
    let ports = service_ports(spec.ports.as_deref().unwrap_or_default())?;
    let service_type = match spec.type_.as_deref() {
        None | Some("ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => return error("spec.type", format!("unknown type {other:?}")),
    };
    let internal_policy = policy(
        "spec.internalTrafficPolicy",
        spec.internal_traffic_policy.as_deref(),
    )?;
    let external_policy = policy(
        "spec.externalTrafficPolicy",
        spec.external_traffic_policy.as_deref(),
    )?;
    let affinity_timeout_secs = affinity(&spec)?;
    let mut ignored = Vec::new();
    let external_ips = lenient(
        "spec.externalIPs",
        spec.external_ips.as_deref(),
        external_address,
        &mut ignored,
    );
    let source_ranges = lenient(
        "spec.loadBalancerSourceRanges",
        spec.load_balancer_source_ranges.as_deref(),
        cidr,
        &mut ignored,
    );
    let health_check_node_port = match spec.health_check_node_port {
        None | Some(0) => None,
        Some(number) => Some(port_number("spec.healthCheckNodePort", number)?),
    };
    let cluster_ips = cluster_ips(&spec)?;
    if ports.is_empty() && !cluster_ips.is_empty() && service_type != ServiceType::ExternalName {
        return error(
            "spec.ports",
            "a Service with a virtual address needs a port",
        );
    }
    let meta = object.metadata.clone();
    Ok(Service {
        key,
        uid: meta.uid.unwrap_or_default(),
        created_secs: meta.creation_timestamp.map(|time| time.0.as_second()),
        service_type,
        cluster_ips,
        ports,
        external_ips,
        load_balancer_ips: load_balancer_ips(object.status.as_ref(), &mut ignored),
        source_ranges,
        health_check_node_port,
        internal_policy,
        external_policy,
        affinity_timeout_secs,
        other_proxy: has(meta.labels.as_ref(), LABEL_PROXY_NAME),
        algorithm: meta
            .annotations
            .and_then(|mut all| all.remove(ANNOTATION_ALGORITHM)),
        ignored,
    })
}

/// An EndpointSlice. One that holds names instead of addresses has no endpoints.
pub(crate) fn endpoint_slice(object: &discovery::EndpointSlice) -> Result<EndpointSlice> {
    let key = namespaced(&object.metadata)?;
    let family = match object.address_type.as_str() {
        "IPv6" => IpFamily::V6,
        // Names have a family only because there must be one; nothing of them is ever served.
        "IPv4" | "FQDN" => IpFamily::V4,
        other => return error("addressType", format!("unknown address type {other:?}")),
    };
    let labels = object.metadata.labels.as_ref();
    let name = labels.and_then(|labels| labels.get(LABEL_SERVICE_NAME));
    let service = name.and_then(|name| service_of_slice(&key.namespace, name));
    let names = object.address_type == "FQDN";
    // As large as needed and no larger: there may be hundreds of thousands of these.
    let mut ports = Vec::with_capacity(object.ports.as_ref().map_or(0, Vec::len));
    for (at, port) in object.ports.iter().flatten().enumerate() {
        let field = format!("ports[{at}]");
        // A port without a number stands for all ports, which only a headless Service can have.
        let Some(number) = port.port.filter(|number| *number != 0) else {
            continue;
        };
        ports.push(EndpointPort {
            name: port.name.clone().unwrap_or_default(),
            protocol: protocol(&format!("{field}.protocol"), port.protocol.as_deref())?,
            port: port_number(&format!("{field}.port"), number)?,
        });
    }
    let mut endpoints = Vec::with_capacity(object.endpoints.as_ref().map_or(0, Vec::len));
    let mut rejected = Vec::new();
    let mut ignored = Vec::new();
    let weights = Weights::read(object.metadata.annotations.as_ref(), &mut ignored);
    for (at, item) in object.endpoints.iter().flatten().enumerate() {
        if names {
            rejected.push(RejectedEndpoint {
                address: item.addresses.first().cloned().unwrap_or_default(),
                reason: NAMES.to_owned(),
            });
            continue;
        }
        match slice_endpoint(&format!("endpoints[{at}]"), item, family) {
            Ok(endpoint) => endpoints.push(Endpoint {
                weight: weights.of(&endpoint.address),
                ..endpoint
            }),
            Err(error) => rejected.push(RejectedEndpoint {
                address: item.addresses.first().cloned().unwrap_or_default(),
                reason: error.to_string(),
            }),
        }
    }
    Ok(EndpointSlice {
        skipped: has(labels, LABEL_HEADLESS) || has(labels, LABEL_PROXY_NAME),
        names,
        key: SliceKey {
            namespace: key.namespace,
            name: key.name,
        },
        service,
        family,
        ports,
        endpoints,
        rejected,
        ignored,
        triggered_micros: triggered_micros(&object.metadata),
    })
}

/// What cannot be read is nothing: it is for a metric only.
fn triggered_micros(meta: &ObjectMeta) -> Option<i64> {
    let text = meta.annotations.as_ref()?.get(ANNOTATION_TRIGGERED)?;
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(time.as_microsecond())
}

/// The Service of a slice in `namespace` whose label has this value.
pub(crate) fn service_of_slice(namespace: &str, label: &str) -> Option<ServiceKey> {
    (!label.is_empty()).then(|| ServiceKey::new(namespace, label))
}

fn slice_endpoint(field: &str, item: &discovery::Endpoint, family: IpFamily) -> Result<Endpoint> {
    let addresses = format!("{field}.addresses");
    // More than one address is allowed and means nothing: consumers use the first.
    let Some(first) = item.addresses.first() else {
        return error(addresses, "needs one address");
    };
    let address = endpoint_address(&format!("{addresses}[0]"), first)?;
    if IpFamily::of(address) != family {
        return error(
            format!("{addresses}[0]"),
            format!("{address} is not of the slice's addressType"),
        );
    }
    let conditions = item.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = item.hints.clone().unwrap_or_default();
    let zones = hints.for_zones.into_iter().flatten().map(|zone| zone.name);
    let nodes = hints.for_nodes.into_iter().flatten().map(|node| node.name);
    Ok(Endpoint {
        address,
        ready,
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: item.node_name.clone(),
        pod: pod_name(item.target_ref.as_ref()),
        zone_hints: zones.collect(),
        node_hints: nodes.collect(),
        weight: WEIGHT_DEFAULT,
    })
}

/// The pod that an endpoint refers to; it may also refer to something else.
fn pod_name(target: Option<&core::ObjectReference>) -> Option<Box<str>> {
    let target = target.filter(|target| target.kind.as_deref() == Some("Pod"))?;
    target.name.as_deref().map(Box::from)
}

/// A Node.
pub(crate) fn node(object: &core::Node) -> Result<Node> {
    let name = name(&object.metadata)?;
    let mut found = Vec::new();
    let status = object.status.clone().unwrap_or_default();
    for (at, item) in status.addresses.iter().flatten().enumerate() {
        let rank = match item.type_.as_str() {
            "InternalIP" => 0,
            "ExternalIP" => 1,
            _ => continue,
        };
        let field = format!("status.addresses[{at}].address");
        found.push((rank, address(&field, &item.address)?));
    }
    found.sort_by_key(|(rank, _)| *rank);
    let spec = object.spec.clone().unwrap_or_default();
    let mut pod_cidrs = Vec::new();
    for (at, text) in spec.pod_cidrs.iter().flatten().enumerate() {
        pod_cidrs.push(cidr(&format!("spec.podCIDRs[{at}]"), text)?);
    }
    if let (true, Some(text)) = (pod_cidrs.is_empty(), &spec.pod_cidr) {
        pod_cidrs.push(cidr("spec.podCIDR", text)?);
    }
    Ok(Node {
        name,
        addresses: found.into_iter().map(|(_, address)| address).collect(),
        pod_cidrs,
        zone: object
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(LABEL_ZONE))
            .filter(|zone| !zone.is_empty())
            .cloned(),
        leaving: object.metadata.deletion_timestamp.is_some()
            || spec
                .taints
                .iter()
                .flatten()
                .any(|taint| taint.key == TAINT_TO_BE_DELETED),
    })
}

fn service_ports(list: &[core::ServicePort]) -> Result<Vec<ServicePort>> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(list.len());
    for (at, item) in list.iter().enumerate() {
        let field = format!("spec.ports[{at}]");
        let name = item.name.clone().unwrap_or_default();
        if list.len() > 1 && name.is_empty() {
            return error(
                format!("{field}.name"),
                "needed, because there are several ports",
            );
        }
        if ports.iter().any(|port| port.name == name) {
            return error(format!("{field}.name"), format!("{name:?} is there twice"));
        }
        let node_port = match item.node_port {
            None | Some(0) => None,
            Some(number) => Some(port_number(&format!("{field}.nodePort"), number)?),
        };
        let port = ServicePort {
            name,
            protocol: protocol(&format!("{field}.protocol"), item.protocol.as_deref())?,
            port: port_number(&format!("{field}.port"), item.port)?,
            node_port,
        };
        if ports
            .iter()
            .any(|p| (p.port, p.protocol) == (port.port, port.protocol))
        {
            let text = format!("{}/{} is there twice", port.port, port.protocol);
            return error(format!("{field}.port"), text);
        }
        ports.push(port);
    }
    Ok(ports)
}

/// The virtual addresses; none for a headless Service.
fn cluster_ips(spec: &core::ServiceSpec) -> Result<Vec<IpAddr>> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.as_deref().unwrap_or_default();
    if single == "None" || listed.iter().any(|ip| ip == "None") {
        return Ok(Vec::new());
    }
    let found = if listed.is_empty() && !single.is_empty() {
        vec![address("spec.clusterIP", single)?]
    } else {
        addresses("spec.clusterIPs", Some(listed))?
    };
    for (at, ip) in found.iter().enumerate() {
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            let message = format!("{ip} cannot be the virtual address of a Service");
            return error(format!("spec.clusterIPs[{at}]"), message);
        }
    }
    Ok(found)
}

fn load_balancer_ips(
    status: Option<&core::ServiceStatus>,
    ignored: &mut Vec<String>,
) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let ingress = status
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|balancer| balancer.ingress.as_ref());
    for (at, item) in ingress.into_iter().flatten().enumerate() {
        let virtual_ip = item.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
        // An entry with a name only is reached through DNS.
        let Some(ip) = item.ip.as_ref().filter(|ip| virtual_ip && !ip.is_empty()) else {
            continue;
        };
        match external_address(&format!("status.loadBalancer.ingress[{at}].ip"), ip) {
            Ok(address) => found.push(address),
            Err(error) => ignored.push(format!("{error}, ignored")),
        }
    }
    found
}

fn affinity(spec: &core::ServiceSpec) -> Result<Option<u32>> {
    match spec.session_affinity.as_deref() {
        None | Some("None") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            return error(
                "spec.sessionAffinity",
                format!("unknown affinity {other:?}"),
            );
        }
    }
    let seconds = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client| client.timeout_seconds)
        .unwrap_or(DEFAULT_AFFINITY_SECS);
    match u32::try_from(seconds) {
        Ok(secs) if (1..=AFFINITY_SECS_MAX).contains(&seconds) => Ok(Some(secs)),
        _ => error(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{seconds} is not within 1 and {AFFINITY_SECS_MAX}"),
        ),
    }
}

/// A pod of this node. One without a uid, in a manifest, is known by its name.
pub(crate) fn pod(meta: &ObjectMeta) -> Result<Pod> {
    let ServiceKey { namespace, name } = namespaced(meta)?;
    let hash = annotation(meta, ANNOTATION_CONFIG_HASH);
    let uid = hash.or(meta.uid.as_deref()).filter(|uid| !uid.is_empty());
    Ok(Pod {
        uid: uid.unwrap_or(&name).to_owned(),
        key: PodKey { namespace, name },
        sockets_off: says_sockets_off(meta),
    })
}

/// A Namespace.
pub(crate) fn namespace(meta: &ObjectMeta) -> Result<Namespace> {
    Ok(Namespace {
        name: name(meta)?,
        sockets_off: says_sockets_off(meta),
    })
}

fn says_sockets_off(meta: &ObjectMeta) -> bool {
    annotation(meta, ANNOTATION_SOCKET_LB).is_some_and(|word| word.trim() == "off")
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn name(meta: &ObjectMeta) -> Result<String> {
    match meta.name.as_deref() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => error("metadata.name", "missing"),
    }
}

fn namespaced(meta: &ObjectMeta) -> Result<ServiceKey> {
    let namespace = meta.namespace.as_deref().filter(|n| !n.is_empty());
    Ok(ServiceKey::new(namespace.unwrap_or("default"), name(meta)?))
}

fn has(labels: Option<&BTreeMap<String, String>>, label: &str) -> bool {
    labels.is_some_and(|labels| labels.contains_key(label))
}
