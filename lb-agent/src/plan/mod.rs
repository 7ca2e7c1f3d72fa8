// SPDX-License-Identifier: MIT OR Apache-2.0
//! From one Service and its endpoints to the tables it should have.
//!
//! [`plan_service`] is total: whatever cannot be served becomes a [`Warning`] and the rest is
//! planned. [`endpoints`] chooses backends, [`rules`] says what each frontend does for each source,
//! [`ids`] remembers ids and slots, `lists` makes the lists and lookup tables, [`claims`] settles
//! quarrels about frontends, `encode` writes it all down.
//! **Invariant:** no clock, no I/O, no other Service; the same snapshot and the same ids give the
//! same tables.

pub mod claims;
mod encode;
pub mod endpoints;
pub mod explain;
pub mod health;
pub mod ids;
mod lists;
mod maglev;
pub mod node;
mod pool;
pub mod rules;
mod turns;
pub mod warning;

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::abi::{Algorithm, Kind, Scope};

use crate::model::service::{IpFamily, Service};
use crate::model::snapshot::ServiceSnapshot;
use crate::model::tables::TableContent;
use claims::Claims;
use encode::Encoder;
use endpoints::NodeContext;
use ids::Ids;
use node::{NodeAddresses, PlanOptions, TellsPods};
use rules::{PortRules, Verdict};
use warning::Warning;

/// What planning needs beside the Service.
#[derive(Clone, Copy, Debug)]
pub struct PlanContext<'a> {
    /// This node.
    pub node: NodeContext<'a>,
    /// Its addresses.
    pub addresses: &'a NodeAddresses,
    /// Those on its devices at which the host answers, also where they are cluster addresses.
    pub left_to_host: &'a BTreeSet<IpAddr>,
    /// Whether its pods can be told from other sources.
    pub tells_pods: TellsPods,
    /// What the operator chose.
    pub options: &'a PlanOptions,
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
    /// Ports whose endpoints are all on other nodes while a policy wants those of this one.
    pub no_local: NoLocal,
}

/// Numbers of ports without an endpoint on this node that a policy Local wants, by family (IPv4
/// first).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocal {
    /// By the policy for traffic from inside the cluster.
    pub internal: [i64; 2],
    /// By the policy for traffic from outside.
    pub external: [i64; 2],
}

impl NoLocal {
    /// Counts a port in.
    fn add(&mut self, port: &PortRules<'_>) {
        let at = match port.family {
            IpFamily::V4 => 0,
            IpFamily::V6 => 1,
        };
        let dropped = |internal: bool| {
            port.frontends.iter().any(|frontend| {
                let verdict = frontend.scopes[Scope::External as usize].verdict;
                (frontend.kind == Kind::ClusterIp) == internal && verdict == Verdict::Drop
            })
        };
        self.internal[at] += i64::from(dropped(true));
        self.external[at] += i64::from(dropped(false));
    }

    /// What it takes to get from `other` to this.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let minus = |a: [i64; 2], b: [i64; 2]| [a[0] - b[0], a[1] - b[1]];
        Self {
            internal: minus(self.internal, other.internal),
            external: minus(self.external, other.external),
        }
    }
}

/// Plans one Service.
pub fn plan_service(
    snapshot: &ServiceSnapshot<'_>,
    context: PlanContext<'_>,
    ids: &mut Ids,
) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let service = snapshot.service;
    let rules = rules::service_rules(snapshot, context, &mut plan.warnings);
    if rules.is_empty() {
        return plan;
    }
    let encoder = Encoder {
        service,
        algorithm: plan.algorithm(service, context.options.algorithm),
        partial: context.partial,
    };
    for port in &rules {
        plan.no_local.add(port);
        if encoder.port(port, ids, &mut plan).is_err() {
            let port = port.port.to_string();
            plan.warnings.insert(Warning::IdsExhausted(port));
        }
    }
    plan
}

/// The name of an algorithm as people write it, or none if it is unknown.
pub fn parse_algorithm(name: &str) -> Option<Algorithm> {
    ALGORITHMS
        .into_iter()
        .find(|known| algorithm_name(*known) == name)
}

/// All algorithms, in the order of their numbers.
pub const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::Maglev,
    Algorithm::SourceHash,
];

/// The name of an algorithm as people write it.
pub fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RoundRobin => "round-robin",
        Algorithm::Random => "random",
        Algorithm::Maglev => "maglev",
        Algorithm::SourceHash => "source-hash",
    }
}

impl ServicePlan {
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
}
