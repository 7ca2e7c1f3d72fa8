// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why an endpoint gets no new flows.
//!
//! **Invariant:** every endpoint of a Service is either in a list that some frontend uses or is
//! told here, once for each such list.

use std::net::IpAddr;

use lb_common::abi::List;

use super::encode::LIST_MAX;
use super::endpoints::{Candidate, NodeContext, hinted_away};
use super::rules::PortRules;
use crate::model::endpoint::Endpoint;
use crate::model::service::{IpFamily, Service, ServicePort, ServiceType};
use crate::model::snapshot::ServiceSnapshot;

/// An endpoint that is left out of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// The name of the Service's port; empty for all ports, or the only one.
    pub port_name: String,
    /// Its address as written in the slice.
    pub address: String,
    /// Its port, if the slice has one for the Service's port.
    pub port: Option<u16>,
    /// The node it runs on, if it says.
    pub node: Option<String>,
    /// The list: `cluster` or `local`; none for both.
    pub list: Option<&'static str>,
    /// Why.
    pub reason: String,
}

/// The endpoints of a Service that are left out, sorted.
pub fn left_out(
    snapshot: &ServiceSnapshot<'_>,
    rules: &[PortRules<'_>],
    node: NodeContext<'_>,
) -> Vec<LeftOut> {
    let mut found = Vec::new();
    for slice in &snapshot.slices {
        found.extend(slice.rejected.iter().map(|rejected| LeftOut {
            port_name: String::new(),
            address: rejected.address.clone(),
            port: None,
            node: None,
            list: None,
            reason: rejected.reason.clone(),
        }));
    }
    if let Some(reason) = not_served(snapshot.service) {
        let endpoints = snapshot.slices.iter().flat_map(|slice| &slice.endpoints);
        found.extend(endpoints.map(|e| outside_of_all("", (e, None), reason.to_owned())));
    } else {
        for port in &snapshot.service.ports {
            found.extend(outside_of_ports(snapshot, rules, port));
        }
    }
    for rules in rules {
        for list in rules.lists_used() {
            found.extend(outside_of_list(rules, list, node));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Why no endpoint of the Service is used, if that is so.
fn not_served(service: &Service) -> Option<&'static str> {
    if service.is_served() {
        return None;
    }
    Some(if service.other_proxy {
        "the Service is labelled for another proxy"
    } else if service.service_type == ServiceType::ExternalName {
        "the Service is an alias in DNS"
    } else {
        "the Service has no cluster address"
    })
}

fn outside_of_all(
    port_name: &str,
    (endpoint, port): (&Endpoint, Option<u16>),
    reason: String,
) -> LeftOut {
    LeftOut {
        port_name: port_name.to_owned(),
        address: endpoint.address.to_string(),
        port,
        node: endpoint.node.clone(),
        list: None,
        reason,
    }
}

/// Endpoints of slices that have nothing to do with the port.
fn outside_of_ports(
    snapshot: &ServiceSnapshot<'_>,
    rules: &[PortRules<'_>],
    port: &ServicePort,
) -> Vec<LeftOut> {
    let mut found = Vec::new();
    for slice in &snapshot.slices {
        let served = rules
            .iter()
            .find(|r| r.port == port && r.family == slice.family);
        let named = |p: &&crate::model::endpoint::EndpointPort| {
            p.name == port.name && p.protocol == port.protocol
        };
        let number = slice.ports.iter().find(named).map(|p| p.port);
        let reason = if slice.skipped {
            "its EndpointSlice is labelled headless or for another proxy".to_owned()
        } else if served.is_none() {
            format!(
                "the Service has no frontend of IP{} for this port",
                match slice.family {
                    IpFamily::V4 => "v4",
                    IpFamily::V6 => "v6",
                }
            )
        } else if number.is_none() {
            format!(
                "its EndpointSlice has no port {:?} of {}",
                port.name, port.protocol
            )
        } else {
            continue;
        };
        // Another slice may name the same endpoint for this port.
        let elsewhere = |endpoint: &&Endpoint| {
            let mut candidates = served.into_iter().flat_map(|rules| &rules.candidates);
            candidates.any(|c| c.address.0 == endpoint.address)
        };
        let endpoints = slice.endpoints.iter().filter(|e| !elsewhere(e));
        found.extend(endpoints.map(|e| outside_of_all(&port.name, (e, number), reason.clone())));
    }
    found
}

fn outside_of_list(
    rules: &PortRules<'_>,
    list: List,
    node: NodeContext<'_>,
) -> impl Iterator<Item = LeftOut> {
    let (members, cut) = rules.members(list);
    let left = rules.candidates.iter().enumerate();
    let left = left.filter(|(at, _)| members.binary_search(at).is_err());
    left.map(move |(at, candidate)| {
        let reason = if cut.binary_search(&at).is_ok() {
            format!("a list holds {LIST_MAX} endpoints, and so many come before it")
        } else {
            reason(rules, candidate, list, node)
        };
        let (address, port): (IpAddr, u16) = candidate.address;
        LeftOut {
            port_name: rules.port.name.clone(),
            address: address.to_string(),
            port: Some(port),
            node: candidate.endpoint.node.clone(),
            list: Some(list_name(list)),
            reason,
        }
    })
}

/// The name of a list as people read it.
pub fn list_name(list: List) -> &'static str {
    match list {
        List::Cluster => "cluster",
        List::Local => "local",
    }
}

const WEIGHTLESS: &str = "its weight is 0, and others have more";

/// Whether the list was made of ready endpoints, and not of terminating ones.
fn any_ready(rules: &PortRules<'_>, list: List) -> bool {
    let members = match list {
        List::Cluster => &rules.selection.cluster,
        List::Local => &rules.selection.local,
    };
    let mut members = members.iter().map(|at| &rules.candidates[*at]);
    members.any(|candidate| candidate.endpoint.ready)
}

fn reason(
    rules: &PortRules<'_>,
    candidate: &Candidate<'_>,
    list: List,
    node: NodeContext<'_>,
) -> String {
    let endpoint = candidate.endpoint;
    if list == List::Local && !candidate.local {
        return match &endpoint.node {
            Some(other) => format!("it runs on Node {other}, and the policy is Local"),
            None => "it names no node, and the policy is Local".to_owned(),
        };
    }
    if !endpoint.ready {
        return match (endpoint.terminating, endpoint.serving) {
            (false, _) => "it is not ready",
            (true, false) => "it is terminating and no longer serving",
            (true, true) if endpoint.weight == 0 && !any_ready(rules, list) => WEIGHTLESS,
            (true, true) => "it is terminating, and others are ready",
        }
        .to_owned();
    }
    if endpoint.weight == 0 {
        return WEIGHTLESS.to_owned();
    }
    hinted_away(&rules.candidates, candidate, node)
}
