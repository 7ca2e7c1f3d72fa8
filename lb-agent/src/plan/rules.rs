// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each frontend of a Service does for each kind of source, before there are any ids.
//!
//! Which list is chosen from, what happens when it is empty, and when the source is masqueraded:
//! the rules of kube-proxy 1.36, row by row in [`scope_rules`]. `encode.rs` puts the answer into
//! tables, `lb-agent plan` prints it.
//! **Invariant:** pure, and depends on one Service, its endpoints and the node only.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::abi::{Kind, List, Scope};

use super::PlanContext;
use super::claims::{FrontendAddress, wanted_by};
use super::endpoints::{Candidate, Selection, candidates, select};
use super::warning::Warning;
use crate::model::prefix::Prefix;
use crate::model::service::{IpFamily, Service, ServicePort, TrafficPolicy};
use crate::model::snapshot::ServiceSnapshot;

/// What becomes of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It gets a backend.
    Forward,
    /// Its client is refused at once.
    Reject,
    /// It is dropped in silence.
    Drop,
}

/// When the source is replaced by an address of this node. A backend that is the source itself is
/// always reached that way, whatever is said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Snat {
    /// The backend sees the client.
    Never,
    /// When the backend is on another node.
    Remote,
    /// Always.
    Always,
}

/// What holds for one scope of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScopeRule {
    /// The list to choose from.
    pub list: List,
    /// What becomes of a new flow.
    pub verdict: Verdict,
    /// When its source is replaced, if it is forwarded.
    pub snat: Snat,
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendRule {
    /// What clients dial.
    pub at: FrontendAddress,
    /// What it was made from.
    pub kind: Kind,
    /// By [`Scope`].
    pub scopes: [ScopeRule; 3],
    /// Who may dial it; empty for everybody.
    pub source_ranges: Vec<Prefix>,
}

/// One port of a Service in one family.
#[derive(Clone, Debug)]
pub struct PortRules<'a> {
    /// The port.
    pub port: &'a ServicePort,
    /// The family.
    pub family: IpFamily,
    /// Its frontends, at least one.
    pub frontends: Vec<FrontendRule>,
    /// Its endpoints, each address and port once, in order.
    pub candidates: Vec<Candidate<'a>>,
    /// Which of them are used.
    pub selection: Selection,
}

/// The rules of every port that this Service has frontends for; what cannot be served is added to
/// `warnings`.
pub fn service_rules<'a>(
    snapshot: &ServiceSnapshot<'a>,
    context: PlanContext<'_>,
    warnings: &mut impl Extend<Warning>,
) -> Vec<PortRules<'a>> {
    let service = snapshot.service;
    if !service.is_served() {
        return Vec::new();
    }
    warnings.extend(general_warnings(snapshot, context));
    let own = own_addresses(service, &context.addresses.node_ports);
    let mut granted: Vec<FrontendAddress> = Vec::new();
    let mut rules = Vec::new();
    for port in &service.ports {
        for family in [IpFamily::V4, IpFamily::V6] {
            let mut mine: Vec<(FrontendAddress, Kind)> = Vec::new();
            for (at, kind) in wanted_by(service, port, family, &context.addresses.node_ports) {
                if kind == Kind::ClusterIp && context.left_to_host.contains(&at.address) {
                    warnings.extend([Warning::LeftToHost(at.address)]);
                    continue;
                }
                match context.claims.owner(&at) {
                    Some(owner) if *owner != service.key => {
                        warnings.extend([Warning::FrontendTaken(at, owner.clone())]);
                    }
                    // The same port under two names: an external address that the load balancer
                    // announces too.
                    _ if mine.iter().any(|(other, _)| *other == at) => {}
                    _ if granted.contains(&at) || (kind == Kind::NodePort && own.contains(&at)) => {
                        warnings.extend([Warning::FrontendRepeated(at)]);
                    }
                    _ => mine.push((at, kind)),
                }
            }
            granted.extend(mine.iter().map(|(at, _)| *at));
            if !mine.is_empty() {
                rules.push(port_rules(snapshot, context, (port, family), mine));
            }
        }
    }
    rules
}

/// What the Service names as an address of its own; a node port comes after it, also where the two
/// are of different ports.
fn own_addresses(service: &Service, node_ports: &[IpAddr]) -> BTreeSet<FrontendAddress> {
    if service.ports.iter().all(|port| port.node_port.is_none()) {
        return BTreeSet::new();
    }
    let ports = service.ports.iter();
    ports
        .flat_map(|port| [(port, IpFamily::V4), (port, IpFamily::V6)])
        .flat_map(|(port, family)| wanted_by(service, port, family, node_ports))
        .filter(|(_, kind)| *kind != Kind::NodePort)
        .map(|(at, _)| at)
        .collect()
}

fn port_rules<'a>(
    snapshot: &ServiceSnapshot<'a>,
    context: PlanContext<'_>,
    (port, family): (&'a ServicePort, IpFamily),
    frontends: Vec<(FrontendAddress, Kind)>,
) -> PortRules<'a> {
    let service = snapshot.service;
    let candidates = candidates(&snapshot.slices, family, port, context.node);
    let selection = select(
        &candidates,
        service.uses_cluster(),
        service.uses_local(),
        context.node,
    );
    let tells_pods = context.tells_pods.of(family);
    let frontends = frontends
        .into_iter()
        .map(|(at, kind)| FrontendRule {
            at,
            kind,
            scopes: Scope::ALL.map(|scope| {
                let rule = scope_rules(service, kind, scope, context, tells_pods);
                resolve(rule, &selection)
            }),
            source_ranges: match kind {
                Kind::LoadBalancer => source_ranges(service, family, context),
                Kind::ClusterIp | Kind::NodePort | Kind::ExternalIp => Vec::new(),
            },
        })
        .collect();
    PortRules {
        port,
        family,
        frontends,
        candidates,
        selection,
    }
}

/// The list and the source address, before it is known what is in the list.
fn scope_rules(
    service: &Service,
    kind: Kind,
    scope: Scope,
    context: PlanContext<'_>,
    tells_pods: bool,
) -> (List, Snat) {
    let options = context.options;
    let masquerade = if options.masquerade_all || options.snat_local_backends {
        Snat::Always
    } else {
        Snat::Remote
    };
    if kind == Kind::ClusterIp {
        let list = match service.internal_policy {
            TrafficPolicy::Cluster => List::Cluster,
            TrafficPolicy::Local => List::Local,
        };
        let snat = match scope {
            _ if options.masquerade_all => Snat::Always,
            // A node's process chose its source before the backend was known, and replies to
            // others would not come back through this node.
            Scope::Node | Scope::External if tells_pods => masquerade,
            Scope::Pod | Scope::Node | Scope::External => Snat::Never,
        };
        return (list, snat);
    }
    if !service.is_external_policy_local() {
        return (List::Cluster, masquerade);
    }
    match scope {
        // As if the pod's traffic had gone out to the load balancer and come back.
        Scope::Pod if tells_pods => (List::Cluster, Snat::Never),
        // The source may be the virtual address itself.
        Scope::Node => (List::Cluster, masquerade),
        Scope::Pod | Scope::External => (List::Local, Snat::Never),
    }
}

fn resolve((list, snat): (List, Snat), selection: &Selection) -> ScopeRule {
    let empty = match list {
        List::Cluster => selection.cluster.is_empty(),
        List::Local => selection.local.is_empty(),
    };
    let verdict = match (empty, selection.has_any) {
        (false, _) => Verdict::Forward,
        (true, false) => Verdict::Reject,
        (true, true) => Verdict::Drop,
    };
    ScopeRule {
        list,
        verdict,
        snat,
    }
}

/// Who may dial the load balancer's addresses of `family`; empty for everybody.
fn source_ranges(service: &Service, family: IpFamily, context: PlanContext<'_>) -> Vec<Prefix> {
    let of_family = service
        .source_ranges
        .iter()
        .filter(|r| r.family() == family);
    let mut ranges: Vec<Prefix> = of_family.copied().collect();
    if ranges.iter().any(|range| range.bits() == 0) {
        return Vec::new();
    }
    let primary = context.addresses.primary.iter();
    let mut own = primary.filter(|ip| IpFamily::of(**ip) == family);
    if own.any(|ip| ranges.iter().any(|range| range.contains(*ip))) {
        // Where the address is on a loopback device, the node's own requests carry it as source.
        let addresses = service.load_balancer_ips.iter();
        let addresses = addresses.filter(|ip| IpFamily::of(**ip) == family);
        ranges.extend(addresses.map(|ip| Prefix::host(*ip)));
    }
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

/// What is wrong with the Service as a whole.
fn general_warnings(snapshot: &ServiceSnapshot<'_>, context: PlanContext<'_>) -> Vec<Warning> {
    let service = snapshot.service;
    let ignored = service.ignored.iter().cloned().map(Warning::Ignored);
    let mut warnings: Vec<Warning> = ignored.collect();
    let slices = snapshot.slices.iter();
    let slices = slices.filter(|slice| !slice.skipped && !slice.names);
    warnings.extend(slices.flat_map(|slice| {
        let rejected = slice.rejected.iter();
        rejected.map(|r| Warning::EndpointRejected(slice.key.name.clone(), r.reason.clone()))
    }));
    let slices = snapshot.slices.iter().filter(|slice| !slice.skipped);
    warnings.extend(slices.flat_map(|slice| {
        let ignored = slice.ignored.iter();
        ignored.map(|what| Warning::Ignored(format!("EndpointSlice {}: {what}", slice.key.name)))
    }));
    let invalid = snapshot.invalid.iter().cloned();
    warnings.extend(invalid.map(Warning::Unreadable));
    let unread = snapshot.unread.iter().cloned();
    warnings.extend(unread.map(Warning::NeverRead));
    if snapshot.endpoints_ignored {
        warnings.push(Warning::EndpointsIgnored);
    }
    if service.ports.iter().any(|port| port.node_port.is_some())
        && context.addresses.node_ports.is_empty()
    {
        warnings.push(Warning::NoNodeAddress(context.node.name.to_owned()));
    }
    if service.is_served()
        && let Some(port) = service.health_check()
        && let Some(owner) = context.claims.health_check_owner(port)
        && *owner != service.key
    {
        warnings.push(Warning::HealthCheckTaken(port, owner.clone()));
    }
    for ip in no_family(service) {
        warnings.push(Warning::NoFamily(ip));
    }
    warnings
}

/// Addresses of a family in which the Service has no virtual address: they are not served.
fn no_family(service: &Service) -> Vec<IpAddr> {
    let has = |family| {
        service
            .cluster_ips
            .iter()
            .any(|ip| IpFamily::of(*ip) == family)
    };
    let outside = service
        .external_ips
        .iter()
        .chain(&service.load_balancer_ips);
    outside
        .filter(|ip| !has(IpFamily::of(**ip)))
        .copied()
        .collect()
}
