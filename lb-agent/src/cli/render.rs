// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables as text for people and as JSON for programs.
//!
//! Both show frontends with the backends in their slots, then backends that only finish the flows
//! they have, in an order that depends on nothing but the tables.
//! **Invariant:** what the tables hold is shown as it is: a slot without its backend shows up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use lb_common::abi::{Algorithm, Backend, BackendState, Frontend, FrontendKey, SlotKey};
use serde::Serialize;

use crate::model::tables::{FamilyTables, TableContent, protocol_name, socket};
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
    algorithm: String,
    drop_if_empty: bool,
    backends: Vec<BackendText>,
    draining: Vec<BackendText>,
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
    let mut backends = Vec::new();
    for slot in 0..value.count {
        let id = content
            .slots
            .get(&SlotKey::main(value.service, slot))
            .copied();
        let id = id.unwrap_or_default();
        backends.push(backend(id, tables.backends.get(&id), Some(slot)));
        used.insert(id);
    }
    let draining = all.iter().filter(|id| !used.contains(id));
    TableText {
        frontend: socket(key.address.into(), key.port),
        protocol: protocol_name(key.proto),
        service: name(value.service, ids),
        service_id: value.service,
        generation: value.generation,
        algorithm: match Algorithm::from_byte(value.algorithm) {
            Some(Algorithm::RoundRobin) => "round-robin".to_owned(),
            Some(Algorithm::Random) => "random".to_owned(),
            None => format!("algorithm {}", value.algorithm),
        },
        drop_if_empty: value.flags & lb_common::abi::FrontendFlags::DROP_IF_EMPTY != 0,
        backends,
        draining: draining
            .map(|id| backend(*id, tables.backends.get(id), None))
            .collect(),
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
    /// The frontend on one line and each backend on one more.
    pub fn write_to(&self, text: &mut String) {
        let empty = match (self.backends.is_empty(), self.drop_if_empty) {
            (false, _) => "",
            (true, false) => "  no backend",
            (true, true) => "  no backend on this node",
        };
        // Writing to a String cannot fail.
        writeln!(
            text,
            "{} {}  {}  service {}  {}{empty}",
            self.frontend, self.protocol, self.service, self.service_id, self.algorithm
        )
        .ok();
        for backend in &self.backends {
            let slot = backend.slot.unwrap_or_default();
            let note = if backend.terminating {
                "  terminating"
            } else {
                ""
            };
            let (address, id) = (&backend.address, backend.backend_id);
            writeln!(text, "  slot {slot}  {address}  backend {id}{note}").ok();
        }
        for backend in &self.draining {
            let (address, id) = (&backend.address, backend.backend_id);
            writeln!(text, "  draining  {address}  backend {id}").ok();
        }
    }
}
