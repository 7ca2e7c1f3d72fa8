// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `lb-agent plan` prints: the plan in the words of Kubernetes, without ids.
//!
//! The JSON is a contract; `lb-agent/plan.schema.json` describes it and a test holds the two
//! together. Fields are only ever added.
//! **Invariant:** sorted, so that two plans can be compared line by line.

use std::net::IpAddr;

use lb_common::abi::{Kind, List, Scope};
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

use super::render::{kind_name, scope_name};
use crate::model::endpoint::EndpointSlice;
use crate::model::service::{Protocol, ServiceKey};
use crate::model::snapshot::ServiceSnapshot;
use crate::model::tables::socket;
use crate::plan::explain::{LeftOut, left_out};
use crate::plan::health::{HealthCheck, health_check};
use crate::plan::rules::{FrontendRule, PortRules, ScopeRule, Snat, Verdict};
use crate::reconcile::Reconciler;

/// A plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanText {
    frontends: Vec<FrontendText>,
    health_checks: Vec<HealthCheckText>,
    warnings: Vec<WarningText>,
    /// With `--explain`: endpoints that get no new flows.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<Vec<LeftOutText>>,
}

/// Ordered as the fields are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct FrontendText {
    #[serde(serialize_with = "as_text")]
    service: ServiceKey,
    port_name: String,
    #[serde(serialize_with = "as_kind")]
    kind: Kind,
    address: IpAddr,
    port: u16,
    #[serde(serialize_with = "as_text")]
    protocol: Protocol,
    #[serde(serialize_with = "as_scopes")]
    scopes: Vec<Scope>,
    verdict: &'static str,
    snat: &'static str,
    affinity_seconds: u32,
    source_ranges: Vec<String>,
    backends: Vec<BackendText>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct BackendText {
    address: IpAddr,
    port: u16,
    node: String,
    local: bool,
    terminating: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthCheckText {
    service: String,
    port: u16,
    local_endpoints: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct WarningText {
    object: String,
    message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct LeftOutText {
    service: String,
    port_name: String,
    address: String,
    port: Option<u16>,
    node: String,
    list: Option<&'static str>,
    reason: String,
}

fn as_text<T: ToString, S: serde::Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn as_kind<S: serde::Serializer>(kind: &Kind, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(kind_name(*kind))
}

fn as_scopes<S: serde::Serializer>(scopes: &[Scope], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(scopes.iter().map(|scope| scope_name(*scope)))
}

impl PlanText {
    /// Everything that `reconciler` knows; with endpoints that are left out if `explain`.
    pub fn new(reconciler: &Reconciler, explain: bool) -> Self {
        let mut plan = Self {
            left_out: explain.then(Vec::new),
            ..Self::default()
        };
        reconciler.describe(|snapshot, rules, context| {
            for rules in rules {
                plan.port(snapshot, rules);
            }
            let check = health_check(snapshot, context);
            plan.health_checks.extend(check.map(HealthCheckText::from));
            if let Some(left) = &mut plan.left_out {
                let service = &snapshot.service.key;
                let found = left_out(snapshot, rules, context.node);
                left.extend(found.into_iter().map(|one| LeftOutText::new(service, one)));
            }
        });
        if let Some(left) = &mut plan.left_out {
            let strays = reconciler.stray_slices();
            left.extend(strays.flat_map(|(slice, reason)| LeftOutText::strays(slice, &reason)));
        }
        for warning in reconciler.node_warnings() {
            plan.warn(format!("Node {}", reconciler.node_name()), warning);
        }
        for (service, warning) in reconciler.warnings() {
            plan.warn(format!("Service {service}"), warning.to_string());
        }
        plan.sort();
        plan
    }

    /// Adds a warning about an object.
    pub fn warn(&mut self, object: String, message: String) {
        self.warnings.push(WarningText { object, message });
        self.warnings.sort();
    }

    fn sort(&mut self) {
        self.frontends.sort();
        self.health_checks.sort();
        self.warnings.sort();
        if let Some(left) = &mut self.left_out {
            left.sort();
        }
    }

    fn port(&mut self, snapshot: &ServiceSnapshot<'_>, rules: &PortRules<'_>) {
        for frontend in &rules.frontends {
            for (rule, scopes) in grouped(frontend) {
                self.frontends
                    .push(frontend_text(snapshot, rules, frontend, rule, scopes));
            }
        }
    }

    /// The plan for people.
    pub fn to_table(&self) -> String {
        let mut text = self.frontend_table();
        if !self.health_checks.is_empty() {
            let rows = self.health_checks.iter();
            let rows = rows.map(|check| {
                let endpoints = check.local_endpoints.to_string();
                vec![check.service.clone(), check.port.to_string(), endpoints]
            });
            text.push('\n');
            text.push_str(&table(&["HEALTH CHECK", "PORT", "LOCAL ENDPOINTS"], rows));
        }
        if let Some(left) = self.left_out.as_ref().filter(|left| !left.is_empty()) {
            let rows = left.iter().map(LeftOutText::cells);
            text.push('\n');
            text.push_str(&table(
                &["LEFT OUT", "PORT", "ENDPOINT", "LIST", "REASON"],
                rows,
            ));
        }
        if !self.warnings.is_empty() {
            let rows = self.warnings.iter();
            let rows = rows.map(|warning| vec![warning.object.clone(), warning.message.clone()]);
            text.push('\n');
            text.push_str(&table(&["WARNING", "MESSAGE"], rows));
        }
        text
    }

    fn frontend_table(&self) -> String {
        let rows = self.frontends.iter().map(|frontend| {
            let service = if frontend.port_name.is_empty() {
                frontend.service.to_string()
            } else {
                format!("{} {}", frontend.service, frontend.port_name)
            };
            let at = socket(frontend.address, frontend.port);
            let scopes: Vec<&str> = frontend.scopes.iter().map(|s| scope_name(*s)).collect();
            let mut verdict = frontend.verdict.to_owned();
            if frontend.affinity_seconds > 0 {
                verdict += ", affinity ";
                verdict += &frontend.affinity_seconds.to_string();
                verdict += " s";
            }
            if !frontend.source_ranges.is_empty() {
                verdict += ", from ";
                verdict += &frontend.source_ranges.join(" ");
            }
            let backends: Vec<String> = frontend.backends.iter().map(BackendText::line).collect();
            vec![
                service,
                kind_name(frontend.kind).to_owned(),
                format!("{at} {}", frontend.protocol),
                scopes.join(", "),
                verdict,
                frontend.snat.to_owned(),
                backends.join("\n"),
            ]
        });
        let heads = [
            "SERVICE", "KIND", "FRONTEND", "SCOPES", "VERDICT", "SNAT", "BACKENDS",
        ];
        table(&heads, rows)
    }
}

/// Columns that align, two spaces apart.
fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut builder = Builder::default();
    builder.push_record(heads.iter().copied());
    rows.for_each(|row| builder.push_record(row));
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
    let text = table.to_string();
    text.lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// The rules of a frontend, each with the scopes that share it.
fn grouped(frontend: &FrontendRule) -> Vec<(ScopeRule, Vec<Scope>)> {
    // What is not forwarded has neither a list nor a source to replace.
    let visible = |rule: ScopeRule| match rule.verdict {
        Verdict::Forward => rule,
        Verdict::Reject | Verdict::Drop => ScopeRule {
            list: List::Cluster,
            snat: Snat::Never,
            ..rule
        },
    };
    let mut groups: Vec<(ScopeRule, Vec<Scope>)> = Vec::new();
    for scope in Scope::ALL {
        let rule = visible(frontend.scopes[scope as usize]);
        match groups.iter_mut().find(|(known, _)| *known == rule) {
            Some((_, scopes)) => scopes.push(scope),
            None => groups.push((rule, vec![scope])),
        }
    }
    groups
}

fn frontend_text(
    snapshot: &ServiceSnapshot<'_>,
    rules: &PortRules<'_>,
    frontend: &FrontendRule,
    rule: ScopeRule,
    scopes: Vec<Scope>,
) -> FrontendText {
    let service = snapshot.service;
    let members = match (rule.verdict, rule.list) {
        (Verdict::Reject | Verdict::Drop, _) => &[][..],
        (Verdict::Forward, list) => rules.members(list).0,
    };
    let members = members.iter().filter_map(|at| rules.candidates.get(*at));
    let backends = members.map(|candidate| BackendText {
        address: candidate.address.0,
        port: candidate.address.1,
        node: candidate.endpoint.node.clone().unwrap_or_default(),
        local: candidate.local,
        terminating: candidate.endpoint.terminating,
    });
    FrontendText {
        service: service.key.clone(),
        port_name: rules.port.name.clone(),
        kind: frontend.kind,
        address: frontend.at.address,
        port: frontend.at.port,
        protocol: rules.port.protocol,
        scopes,
        verdict: match rule.verdict {
            Verdict::Forward => "forward",
            Verdict::Reject => "reject",
            Verdict::Drop => "drop",
        },
        snat: match rule.snat {
            Snat::Never => "never",
            Snat::Remote => "remote",
            Snat::Always => "always",
        },
        affinity_seconds: service.affinity_timeout_secs.unwrap_or(0),
        source_ranges: frontend
            .source_ranges
            .iter()
            .map(ToString::to_string)
            .collect(),
        backends: backends.collect(),
    }
}

impl BackendText {
    fn line(&self) -> String {
        let mut line = socket(self.address, self.port);
        if !self.node.is_empty() {
            line += " ";
            line += &self.node;
        }
        if self.local {
            line.push_str(" (this node)");
        }
        if self.terminating {
            line.push_str(" terminating");
        }
        line
    }
}

impl From<HealthCheck> for HealthCheckText {
    fn from(check: HealthCheck) -> Self {
        Self {
            service: check.service.to_string(),
            port: check.port,
            local_endpoints: check.local_endpoints,
        }
    }
}

impl LeftOutText {
    /// The endpoints of a slice that serves no Service.
    fn strays(slice: &EndpointSlice, reason: &str) -> Vec<Self> {
        let namespace = &slice.key.namespace;
        let service = match &slice.service {
            Some(key) => key.to_string(),
            None => format!("{namespace}/-"),
        };
        let reason = format!("its EndpointSlice {} {reason}", slice.key.name);
        let left = |address: String, node: &Option<String>| Self {
            service: service.clone(),
            port_name: String::new(),
            address,
            port: None,
            node: node.clone().unwrap_or_default(),
            list: None,
            reason: reason.clone(),
        };
        let endpoints = slice.endpoints.iter();
        let endpoints = endpoints.map(|e| left(e.address.to_string(), &e.node));
        let rejected = slice.rejected.iter();
        let rejected = rejected.map(|it| left(it.address.clone(), &None));
        endpoints.chain(rejected).collect()
    }

    fn new(service: &ServiceKey, left: LeftOut) -> Self {
        Self {
            service: service.to_string(),
            port_name: left.port_name,
            address: left.address,
            port: left.port,
            node: left.node.unwrap_or_default(),
            list: left.list,
            reason: left.reason,
        }
    }

    fn cells(&self) -> Vec<String> {
        let endpoint = match self.port {
            Some(port) => format!("{} port {port}", self.address),
            None => self.address.clone(),
        };
        vec![
            self.service.clone(),
            self.port_name.clone(),
            endpoint,
            self.list.unwrap_or("every").to_owned(),
            self.reason.clone(),
        ]
    }
}
