// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables as text for people and as JSON for programs.
//!
//! Both show frontends with the backends in their slots, then backends that only finish the flows
//! they have, in an order that depends on nothing but the tables.
//! **Invariant:** what the tables hold is shown as it is: a slot without its backend shows up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use lb_common::abi::{
    Algorithm, Backend, BackendFlags, BackendState, Frontend, FrontendFlags, FrontendKey, Kind,
    List, Policy, Scope, SlotKey,
};
use serde::Serialize;

use crate::model::tables::{FamilyTables, TableContent, protocol_name, socket};
use crate::plan::algorithm_name;
use crate::plan::explain::list_name;
use crate::plan::ids::Ids;

/// One frontend with what it leads to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableText {
    /// `address:port`.
    frontend: String,
    protocol: String,
    /// `namespace/name`, and the port's name if it has one.
    service: String,
    service_id: u32,
    generation: u32,
    kind: String,
    algorithm: String,
    affinity_secs: u32,
    /// What each scope does: list, verdict of an empty list, masquerading.
    policies: BTreeMap<&'static str, PolicyText>,
    source_ranges: Vec<String>,
    backends: Vec<BackendText>,
    /// Slots of the list of this node's backends.
    local: Vec<BackendText>,
    /// Backends without a slot: they keep the flows that they have.
    kept: Vec<BackendText>,
    /// The lookup tables that there are: of the cluster list, of the local one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lookup: Vec<LookupText>,
}

/// A lookup table, as how many of its slots each address has.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LookupText {
    /// `cluster` or `local`.
    list: &'static str,
    /// Slots that it should have.
    size: u16,
    slots: BTreeMap<String, u32>,
}

/// What a scope does, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyText {
    pub(super) list: &'static str,
    pub(super) if_empty: &'static str,
    pub(super) snat: &'static str,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BackendText {
    /// Position in the list; none for one that takes no new flows.
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u16>,
    backend_id: u32,
    /// `address:port`.
    address: String,
    terminating: bool,
    /// It runs on this node.
    local: bool,
    epoch: u32,
}

/// The tables as a list of frontends; `ids` knows the Services' names.
pub fn table_text(content: &TableContent, ids: &Ids) -> Vec<TableText> {
    let mut frontends = family(content, &content.v4, ids);
    frontends.extend(family(content, &content.v6, ids));
    frontends
}

fn family<A>(content: &TableContent, tables: &FamilyTables<A>, ids: &Ids) -> Vec<TableText>
where
    A: Ord + Copy + Into<IpAddr>,
{
    let mut by_service: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (id, backend) in &tables.backends {
        by_service.entry(backend.service).or_default().push(*id);
    }
    let entries = tables.frontends.iter();
    entries
        .map(|(key, value)| {
            let backends = by_service.get(&value.service);
            let backends = backends.map(Vec::as_slice).unwrap_or_default();
            frontend(content, tables, ids, (key, value), backends)
        })
        .collect()
}

fn frontend<A>(
    content: &TableContent,
    tables: &FamilyTables<A>,
    ids: &Ids,
    (key, value): (&FrontendKey<A>, &Frontend),
    all: &[u32],
) -> TableText
where
    A: Ord + Copy + Into<IpAddr>,
{
    let mut used = BTreeSet::new();
    let mut list = |list: List, count: u16| -> Vec<BackendText> {
        let slots = (0..count).map(|slot| {
            let id = content.slots.get(&SlotKey::new(value.service, list, slot));
            let id = id.copied().unwrap_or_default();
            used.insert(id);
            backend(id, tables.backends.get(&id), Some(slot))
        });
        slots.collect()
    };
    let backends = list(List::Cluster, value.cluster_count);
    let local = list(List::Local, value.local_count);
    let kept = all.iter().filter(|id| !used.contains(id));
    let kept = kept.map(|id| backend(*id, tables.backends.get(id), None));
    let restricted = value.flags & FrontendFlags::SOURCE_RANGES != 0;
    let ranges = tables.source_ranges.iter();
    let ranges = ranges.filter(|r| restricted && r.range.service == value.service);
    TableText {
        frontend: socket(key.address.into(), key.port),
        protocol: protocol_name(key.proto),
        service: name(value.service, ids),
        service_id: value.service,
        generation: value.generation,
        kind: kind_text(value.kind),
        algorithm: algorithm_text(value.algorithm),
        affinity_secs: value.affinity_secs,
        policies: Scope::ALL
            .into_iter()
            .map(|scope| (scope_name(scope), policy(value.policy(scope))))
            .collect(),
        source_ranges: ranges
            .map(|r| format!("{}/{}", r.range.address.into(), r.bits()))
            .collect(),
        backends,
        local,
        kept: kept.collect(),
        lookup: lookup_tables(content, tables, value),
    }
}

fn lookup_tables<A>(
    content: &TableContent,
    tables: &FamilyTables<A>,
    frontend: &Frontend,
) -> Vec<LookupText>
where
    A: Ord + Copy + Into<IpAddr>,
{
    let lists = List::ALL.into_iter().filter(|list| {
        // What the packet path looks at: one backend needs no table.
        frontend.table_size > 0 && frontend.count(*list as u16) > 1
    });
    lists
        .map(|list| {
            let mut slots = BTreeMap::new();
            for slot in 0..frontend.table_size {
                let id = content
                    .slots
                    .get(&SlotKey::table(frontend.service, list, slot));
                let id = id.copied().unwrap_or_default();
                let named = backend(id, tables.backends.get(&id), None);
                *slots.entry(named.address).or_default() += 1;
            }
            LookupText {
                list: list_name(list),
                size: frontend.table_size,
                slots,
            }
        })
        .collect()
}

/// The words for the policy of a scope.
pub(super) fn policy(bits: u8) -> PolicyText {
    let has = |bit: u8| bits & bit != 0;
    PolicyText {
        list: if has(Policy::LOCAL_LIST) {
            "local"
        } else {
            "cluster"
        },
        if_empty: if has(Policy::DROP_IF_EMPTY) {
            "drop"
        } else {
            "reject"
        },
        snat: match (has(Policy::SNAT_ALWAYS), has(Policy::SNAT_REMOTE)) {
            (true, _) => "always",
            (false, true) => "remote",
            (false, false) => "never",
        },
    }
}

/// The name of a stored kind.
pub(super) fn kind_text(byte: u8) -> String {
    Kind::from_byte(byte).map_or_else(|| format!("kind {byte}"), |kind| kind_name(kind).to_owned())
}

/// The name of a stored algorithm.
pub(super) fn algorithm_text(byte: u8) -> String {
    Algorithm::from_byte(byte).map_or_else(
        || format!("algorithm {byte}"),
        |algorithm| algorithm_name(algorithm).to_owned(),
    )
}

/// The name of a scope as people read it.
pub(super) fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Pod => "pod",
        Scope::Node => "node",
        Scope::External => "external",
    }
}

/// The name of a kind as people read it.
pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::ClusterIp => "ClusterIP",
        Kind::NodePort => "NodePort",
        Kind::ExternalIp => "ExternalIP",
        Kind::LoadBalancer => "LoadBalancer",
    }
}

fn backend<A>(id: u32, value: Option<&Backend<A>>, slot: Option<u16>) -> BackendText
where
    A: Copy + Into<IpAddr>,
{
    let missing = || "missing".to_owned();
    BackendText {
        slot,
        backend_id: id,
        address: value.map_or_else(missing, |b| socket(b.address.into(), b.port)),
        terminating: value.is_some_and(|b| b.state == BackendState::Terminating as u8),
        local: value.is_some_and(|b| b.flags & BackendFlags::ON_THIS_NODE != 0),
        epoch: value.map_or(0, |b| b.epoch),
    }
}

fn name(service: u32, ids: &Ids) -> String {
    match ids.owner(service) {
        Some(key) if key.name.is_empty() => key.service.to_string(),
        Some(key) => format!("{} {}", key.service, key.name),
        None => "unknown".to_owned(),
    }
}

impl TableText {
    /// The frontend on one line, one more for scopes that differ from the others, and one for each
    /// backend.
    pub fn write_to(&self, text: &mut String) {
        // Writing to a String cannot fail.
        write!(
            text,
            "{} {}  {}  service {}  {}  {}",
            self.frontend, self.protocol, self.service, self.service_id, self.kind, self.algorithm
        )
        .ok();
        if self.affinity_secs > 0 {
            write!(text, "  affinity {} s", self.affinity_secs).ok();
        }
        text.push('\n');
        self.write_policies(text);
        if !self.source_ranges.is_empty() {
            writeln!(text, "  from {}", self.source_ranges.join(", ")).ok();
        }
        for (list, backends) in [("", &self.backends), ("local ", &self.local)] {
            for backend in backends {
                let slot = backend.slot.unwrap_or_default();
                let note = backend.note();
                let (address, id) = (&backend.address, backend.backend_id);
                writeln!(text, "  {list}slot {slot}  {address}  backend {id}{note}").ok();
            }
        }
        for backend in &self.kept {
            let note = backend.note();
            let (address, id) = (&backend.address, backend.backend_id);
            writeln!(text, "  kept  {address}  backend {id}{note}").ok();
        }
        for lookup in &self.lookup {
            let (list, size) = (lookup.list, lookup.size);
            let shares = lookup.slots.iter();
            let shares: Vec<_> = shares
                .map(|(address, n)| format!("{address} {n}"))
                .collect();
            writeln!(text, "  {list} table of {size}: {}", shares.join(", ")).ok();
        }
    }

    /// Scopes that share a policy share a line.
    fn write_policies(&self, text: &mut String) {
        let mut groups: Vec<(&PolicyText, Vec<&str>)> = Vec::new();
        for scope in Scope::ALL.map(scope_name) {
            let Some(policy) = self.policies.get(scope) else {
                continue;
            };
            match groups.iter_mut().find(|(known, _)| *known == policy) {
                Some((_, scopes)) => scopes.push(scope),
                None => groups.push((policy, vec![scope])),
            }
        }
        for (policy, scopes) in groups {
            let empty = match policy.list {
                "local" => self.local.is_empty(),
                _ => self.backends.is_empty(),
            };
            let verdict = if empty { policy.if_empty } else { "forward" };
            let (scopes, list, snat) = (scopes.join(", "), policy.list, policy.snat);
            writeln!(text, "  {scopes}: {verdict}, {list} list, snat {snat}").ok();
        }
    }
}

impl BackendText {
    fn note(&self) -> String {
        let mut note = String::new();
        for (is, word) in [
            (self.local, "  on this node"),
            (self.terminating, "  terminating"),
        ] {
            if is {
                note.push_str(word);
            }
        }
        note
    }
}
