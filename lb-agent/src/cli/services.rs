// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent services`: what clients can dial on this node, as the pinned maps have it.
//!
//! The JSON is a contract: `lb-agent/inspect.schema.json` describes it. Fields are only ever added.
//! **Invariant:** sorted by name and address, so that two outputs can be compared line by line.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use clap::Args;
use lb_common::abi::{Frontend, FrontendFlags, Kind, Scope, ServiceStats};
use serde::Serialize;

use super::columns::{Column, number, table, text, words};
use super::look::{LookArgs, parse_address};
use super::names::{Names, name_cell, needs_names, problem_lines};
use super::output::{self, Output, terminal_width};
use super::render::{PolicyText, algorithm_text, kind_text, policy, scope_name};
use crate::error_chain;
use crate::model::tables::{FamilyTables, TableContent, protocol_name, socket};

/// The flags of `services`.
#[derive(Debug, Args)]
pub(super) struct ServicesArgs {
    #[command(flatten)]
    look: LookArgs,
    /// Only Services of this namespace.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only Services of this name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only what is dialled at this address, or at this address and port.
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse_address)]
    address: Option<(IpAddr, Option<u16>)>,
}

/// What is shown.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServicesText {
    frontends: Vec<FrontendText>,
    /// Objects that names should be taken from and that cannot be read.
    problems: Vec<String>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FrontendText {
    /// `namespace/name`, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port_name: Option<String>,
    service_id: u32,
    address: IpAddr,
    port: u16,
    protocol: String,
    kind: String,
    backends: u16,
    local_backends: u16,
    algorithm: String,
    affinity_seconds: u32,
    source_ranges: Vec<String>,
    policies: BTreeMap<&'static str, PolicyText>,
    /// Of the service id, which several frontends may share.
    opened: u64,
    rejected: u64,
}

const COLUMNS: [Column; 8] = [
    text("SERVICE"),
    text("FRONTEND"),
    text("KIND"),
    number("BACKENDS"),
    number("LOCAL"),
    number("OPENED"),
    number("REJECTED"),
    words("NOTES"),
];

pub(super) fn services(args: &ServicesArgs) -> Result<(), String> {
    let look = args.look.open()?;
    let content = look.services().map_err(|e| error_chain(&e))?;
    let found = args.look.objects()?;
    let names = Names::new(found.as_ref(), &content);
    if args.namespace.is_some() || args.name.is_some() {
        needs_names(&names)?;
    }
    let mut counted = BTreeMap::new();
    look.stats(&mut |id, stats| {
        counted.insert(id, stats);
    })
    .map_err(|e| error_chain(&e))?;
    let mut shown = ServicesText::new(&content, &names, &counted);
    shown.problems = found.map(|found| found.problems).unwrap_or_default();
    shown.frontends.retain(|frontend| args.wants(frontend));
    let text = match args.look.output {
        Output::Text => shown.to_table(terminal_width()),
        Output::Json => output::json(&shown)?,
    };
    output::print("the Services", &text)
}

impl ServicesArgs {
    fn wants(&self, frontend: &FrontendText) -> bool {
        let service = frontend.service.as_deref().unwrap_or_default();
        let (namespace, name) = service.split_once('/').unwrap_or_default();
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == found)
        };
        let at = self.address.is_none_or(|(address, port)| {
            address == frontend.address && port.is_none_or(|port| port == frontend.port)
        });
        at && is(&self.namespace, namespace) && is(&self.name, name)
    }
}

impl ServicesText {
    fn new(content: &TableContent, names: &Names, counted: &BTreeMap<u32, ServiceStats>) -> Self {
        let mut frontends = family(&content.v4, names, counted);
        frontends.extend(family(&content.v6, names, counted));
        frontends.sort_by_cached_key(|f| {
            let unnamed = f.service.is_none();
            let name = (f.service.clone(), f.port_name.clone(), f.service_id);
            (unnamed, name, f.kind.clone(), f.address, f.port)
        });
        Self {
            frontends,
            problems: Vec::new(),
        }
    }

    fn to_table(&self, width: Option<usize>) -> String {
        let rows = self.frontends.iter().map(FrontendText::cells);
        let mut text = table(&COLUMNS, width, rows);
        text.push_str(&problem_lines(&self.problems));
        text
    }
}

fn family<A>(
    tables: &FamilyTables<A>,
    names: &Names,
    counted: &BTreeMap<u32, ServiceStats>,
) -> Vec<FrontendText>
where
    A: Ord + Copy + Into<IpAddr>,
{
    let ranges_of = ranges(tables);
    let entries = tables.frontends.iter();
    entries
        .map(|(key, value)| {
            let name = names.port(value.service);
            let stats = counted.get(&value.service).copied().unwrap_or_default();
            let restricted = value.flags & FrontendFlags::SOURCE_RANGES != 0;
            let ranges = ranges_of.get(&value.service).filter(|_| restricted);
            FrontendText {
                service: name.map(|name| name.service.to_string()),
                port_name: name.map(|name| name.port.clone()),
                service_id: value.service,
                address: key.address.into(),
                port: key.port,
                protocol: protocol_name(key.proto),
                kind: kind_text(value.kind),
                backends: value.cluster_count,
                local_backends: value.local_count,
                algorithm: algorithm_text(value.algorithm),
                affinity_seconds: value.affinity_secs,
                source_ranges: ranges.cloned().unwrap_or_default().into_iter().collect(),
                policies: policies(value),
                opened: stats.opened,
                rejected: stats.rejected,
            }
        })
        .collect()
}

/// The source ranges of each service id.
fn ranges<A: Ord + Copy + Into<IpAddr>>(
    tables: &FamilyTables<A>,
) -> BTreeMap<u32, BTreeSet<String>> {
    let mut found: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for key in &tables.source_ranges {
        let text = format!("{}/{}", key.range.address.into(), key.bits());
        found.entry(key.range.service).or_default().insert(text);
    }
    found
}

/// The policy of each scope, in words.
pub(super) fn policies(frontend: &Frontend) -> BTreeMap<&'static str, PolicyText> {
    let scopes = Scope::ALL.into_iter();
    scopes
        .map(|scope| (scope_name(scope), policy(frontend.policy(scope))))
        .collect()
}

impl FrontendText {
    fn cells(&self) -> Vec<String> {
        let name = name_cell(
            self.service.as_deref(),
            self.port_name.as_deref(),
            self.service_id,
        );
        vec![
            name,
            format!("{} {}", socket(self.address, self.port), self.protocol),
            self.kind.clone(),
            self.backends.to_string(),
            self.local_backends.to_string(),
            self.opened.to_string(),
            self.rejected.to_string(),
            self.notes().join(", "),
        ]
    }

    /// Whatever is not as it usually is.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.algorithm != "round-robin" {
            notes.push(self.algorithm.clone());
        }
        if self.affinity_seconds > 0 {
            notes.push(format!("affinity {} s", self.affinity_seconds));
        }
        if !self.source_ranges.is_empty() {
            notes.push(format!("from {}", self.source_ranges.join(" ")));
        }
        let mut told: Vec<(Vec<&str>, String)> = Vec::new();
        for (scope, policy) in &self.policies {
            let differs = differs(&self.kind, scope, policy);
            if differs.is_empty() {
                continue;
            }
            match told.iter_mut().find(|(_, known)| *known == differs) {
                Some((scopes, _)) => scopes.push(scope),
                None => told.push((vec![scope], differs)),
            }
        }
        notes.extend(
            told.into_iter()
                .map(|(scopes, what)| format!("{}: {what}", scopes.join("+"))),
        );
        notes
    }
}

/// How a policy differs from the usual one, in words; nothing if it does not.
fn differs(kind: &str, scope: &str, policy: &PolicyText) -> String {
    let is_cluster_ip = kind == kind_text(Kind::ClusterIp as u8);
    let usual = if is_cluster_ip && scope == scope_name(Scope::Pod) {
        "never"
    } else {
        "remote"
    };
    let mut words = Vec::new();
    if policy.list == "local" {
        words.push("local list".to_owned());
    }
    if policy.if_empty == "drop" {
        words.push("drop if empty".to_owned());
    }
    // What chooses from this node's backends keeps the source.
    let is_usual = policy.snat == usual || (policy.list == "local" && policy.snat == "never");
    if !is_usual {
        words.push(format!("snat {}", policy.snat));
    }
    words.join(" ")
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
