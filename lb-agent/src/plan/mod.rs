// SPDX-License-Identifier: MIT OR Apache-2.0
//! From one Service and its endpoints to the tables it should have.
//!
//! [`plan_service`] is total: whatever cannot be served becomes a [`Warning`] and the rest is
//! planned. [`endpoints`] chooses backends, [`ids`] remembers ids and slots, [`claims`] settles
//! quarrels about frontends.
//! **Invariant:** no clock, no I/O, no other Service; the same snapshot and the same ids give the
//! same tables.

pub mod claims;
pub mod endpoints;
pub mod ids;
mod pool;
pub mod warning;

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::abi::{Algorithm, BackendState, Frontend, FrontendFlags, SlotKey, limits};

use crate::model::service::{IpFamily, Protocol, Service, ServicePort, ServiceType, TrafficPolicy};
use crate::model::snapshot::ServiceSnapshot;
use crate::model::tables::TableContent;
use claims::{Claims, FrontendAddress};
use endpoints::{Candidate, EndpointAddress, NodeContext, candidates, select};
use ids::{BackendId, Exhausted, Ids, PortKey};
use warning::Warning;

/// What planning needs beside the Service.
#[derive(Clone, Copy, Debug)]
pub struct PlanContext<'a> {
    /// This node.
    pub node: NodeContext<'a>,
    /// The algorithm of Services that name none.
    pub algorithm: Algorithm,
    /// Who owns which frontend.
    pub claims: &'a Claims,
    /// Some objects could not be read yet: backends from the tables that no object has named so
    /// far stay beside those that are named.
    pub partial: bool,
}

/// What one Service should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// Its share of the tables.
    pub tables: TableContent,
    /// What a person should know, each thing once.
    pub warnings: BTreeSet<Warning>,
}

/// Plans one Service.
pub fn plan_service(
    snapshot: &ServiceSnapshot<'_>,
    context: PlanContext<'_>,
    ids: &mut Ids,
) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let service = snapshot.service;
    if !service.is_served() {
        return plan;
    }
    plan.warn_of_parts_not_served(snapshot);
    let algorithm = plan.algorithm(service, context.algorithm);
    for port in &service.ports {
        if port.protocol == Protocol::Sctp {
            let what = format!("protocol SCTP of port {port}");
            plan.warnings.insert(Warning::NotServedYet(what));
            continue;
        }
        for family in [IpFamily::V4, IpFamily::V6] {
            let frontends = plan.frontends(service, port, family, context.claims);
            if frontends.is_empty() {
                continue;
            }
            let job = PortJob {
                snapshot,
                port,
                family,
                frontends,
                algorithm,
                node: context.node,
                partial: context.partial,
            };
            if plan.port(&job, ids).is_err() {
                plan.warnings
                    .insert(Warning::IdsExhausted(port.to_string()));
            }
        }
    }
    plan
}

/// The name of an algorithm as people write it, or none if it is unknown.
pub fn parse_algorithm(name: &str) -> Option<Algorithm> {
    match name {
        "round-robin" => Some(Algorithm::RoundRobin),
        "random" => Some(Algorithm::Random),
        _ => None,
    }
}

/// One port of one Service in one family.
struct PortJob<'a> {
    snapshot: &'a ServiceSnapshot<'a>,
    port: &'a ServicePort,
    family: IpFamily,
    frontends: Vec<FrontendAddress>,
    algorithm: Algorithm,
    node: NodeContext<'a>,
    partial: bool,
}

/// The endpoints of one port that get a backend.
struct Chosen<'a> {
    /// Those that take new flows.
    list: Vec<Candidate<'a>>,
    /// Those that only keep the flows they have.
    draining: Vec<Candidate<'a>>,
    /// There are endpoints, but the policy excludes all of them.
    excluded: bool,
    /// All that are named, in whatever state.
    named: Vec<EndpointAddress>,
}

impl PortJob<'_> {
    fn choose(&self) -> Chosen<'_> {
        let service = self.snapshot.service;
        let all = candidates(&self.snapshot.slices, self.family, self.port, self.node);
        let selection = select(
            &all,
            service.uses_cluster(),
            service.uses_local(),
            self.node,
        );
        let local_only = service.internal_policy == TrafficPolicy::Local;
        let picked = if local_only {
            &selection.local
        } else {
            &selection.cluster
        };
        let in_list: BTreeSet<usize> = picked.iter().copied().collect();
        let drains = |at: usize| {
            all[at].draining() && !in_list.contains(&at) && (all[at].local || !local_only)
        };
        Chosen {
            list: picked.iter().map(|at| all[*at]).collect(),
            draining: (0..all.len())
                .filter(|at| drains(*at))
                .map(|at| all[at])
                .collect(),
            excluded: picked.is_empty() && selection.has_any,
            named: all.iter().map(|candidate| candidate.address).collect(),
        }
    }
}

impl ServicePlan {
    fn warn_of_parts_not_served(&mut self, snapshot: &ServiceSnapshot<'_>) {
        let service = snapshot.service;
        let mut not_yet = |what: String| {
            self.warnings.insert(Warning::NotServedYet(what));
        };
        for port in service.ports.iter().filter(|port| port.node_port.is_some()) {
            not_yet(format!("NodePort {}", port.node_port.unwrap_or_default()));
        }
        if !service.external_ips.is_empty() {
            not_yet(format!("externalIPs {}", joined(&service.external_ips)));
        }
        if !service.load_balancer_ips.is_empty() {
            not_yet(format!(
                "load balancer addresses {}",
                joined(&service.load_balancer_ips)
            ));
        } else if service.service_type == ServiceType::LoadBalancer {
            not_yet("type LoadBalancer".to_owned());
        }
        if service.affinity_timeout_secs.is_some() {
            not_yet("sessionAffinity ClientIP".to_owned());
        }
        if snapshot.endpoints_ignored {
            self.warnings.insert(Warning::EndpointsIgnored);
        }
    }

    fn algorithm(&mut self, service: &Service, default: Algorithm) -> Algorithm {
        let Some(name) = &service.algorithm else {
            return default;
        };
        parse_algorithm(name).unwrap_or_else(|| {
            self.warnings
                .insert(Warning::UnknownAlgorithm(name.clone()));
            default
        })
    }

    /// The frontends of `port` in `family` that are this Service's to have.
    fn frontends(
        &mut self,
        service: &Service,
        port: &ServicePort,
        family: IpFamily,
        claims: &Claims,
    ) -> Vec<FrontendAddress> {
        let mut frontends = Vec::new();
        for ip in service
            .cluster_ips
            .iter()
            .filter(|ip| IpFamily::of(**ip) == family)
        {
            let frontend = FrontendAddress::new(*ip, port.port, port.protocol.number());
            match claims.owner(&frontend) {
                Some(owner) if *owner != service.key => {
                    let taken = Warning::FrontendTaken(frontend, owner.clone());
                    self.warnings.insert(taken);
                }
                _ if self.has(&frontend) => {
                    self.warnings.insert(Warning::FrontendRepeated(frontend));
                }
                _ => frontends.push(frontend),
            }
        }
        frontends
    }

    fn has(&self, frontend: &FrontendAddress) -> bool {
        let same = |port: u16, proto: u8| port == frontend.port && proto == frontend.proto;
        match frontend.address {
            IpAddr::V4(a) => {
                let mut keys = self.tables.v4.frontends.keys();
                keys.any(|key| key.address == a.octets() && same(key.port, key.proto))
            }
            IpAddr::V6(a) => {
                let mut keys = self.tables.v6.frontends.keys();
                keys.any(|key| key.address == a.octets() && same(key.port, key.proto))
            }
        }
    }

    /// Plans the frontends, backends and slots of one port in one family.
    fn port(&mut self, job: &PortJob<'_>, ids: &mut Ids) -> Result<(), Exhausted> {
        let service = job.snapshot.service;
        let key = PortKey {
            service: service.key.clone(),
            family: job.family,
            name: job.port.name.clone(),
            protocol: job.port.protocol,
        };
        let (id, generation) = ids.port(&key, &service.uid, &job.frontends)?;
        let mut chosen = job.choose();
        self.shorten(job.port, &mut chosen.list);
        let mut wanted = Vec::new();
        let mut exhausted = Ok(());
        for candidate in &chosen.list {
            match self.backend(id, candidate, ids) {
                Ok(backend) => wanted.push(backend.id),
                Err(error) => exhausted = Err(error),
            }
        }
        for candidate in &chosen.draining {
            exhausted = exhausted.and(self.backend(id, candidate, ids).map(|_| ()));
        }
        for address in &chosen.named {
            ids.confirm(id, address);
        }
        if job.partial {
            self.keep_unconfirmed(id, &mut wanted, ids);
        }
        let mut count = 0;
        for backend in ids.arrange(id, &wanted) {
            self.tables.slots.insert(SlotKey::main(id, count), backend);
            count = count.saturating_add(1);
        }
        let flags = if chosen.excluded && count == 0 {
            FrontendFlags::DROP_IF_EMPTY
        } else {
            0
        };
        let frontend = Frontend {
            service: id,
            generation,
            count,
            algorithm: job.algorithm as u8,
            flags,
        };
        for key in &job.frontends {
            self.tables
                .put_frontend(key.address, key.port, key.proto, frontend);
        }
        exhausted
    }

    fn shorten(&mut self, port: &ServicePort, list: &mut Vec<Candidate<'_>>) {
        let limit = limits::BACKENDS_PER_SERVICE;
        let fit = usize::try_from(limit).unwrap_or(usize::MAX);
        if list.len() > fit {
            self.warnings.insert(Warning::TooManyEndpoints {
                port: port.to_string(),
                count: list.len(),
                limit,
            });
            list.truncate(fit);
        }
    }

    /// Adds the backends of `service` that only the tables tell of.
    fn keep_unconfirmed(&mut self, service: u32, wanted: &mut Vec<u32>, ids: &Ids) {
        let fit = usize::try_from(limits::BACKENDS_PER_SERVICE).unwrap_or(usize::MAX);
        for kept in ids.unconfirmed(service) {
            let state = if kept.in_list {
                BackendState::Active
            } else {
                BackendState::Terminating
            };
            if kept.in_list && wanted.len() < fit {
                wanted.push(kept.backend.id);
            }
            let owner = (service, kept.backend.epoch);
            self.tables
                .put_backend(kept.backend.id, owner, kept.address, state);
        }
    }

    fn backend(
        &mut self,
        service: u32,
        candidate: &Candidate<'_>,
        ids: &mut Ids,
    ) -> Result<BackendId, Exhausted> {
        let backend = ids.backend(service, candidate.address)?;
        let state = if candidate.endpoint.ready {
            BackendState::Active
        } else {
            BackendState::Terminating
        };
        let owner = (service, backend.epoch);
        self.tables
            .put_backend(backend.id, owner, candidate.address, state);
        Ok(backend)
    }
}

fn joined(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    texts.join(", ")
}
