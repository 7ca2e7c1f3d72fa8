// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent backends`: where traffic to Services goes, as the pinned maps have it.
//!
//! The JSON is a contract: `lb-agent/inspect.schema.json` describes it. Fields are only ever added.
//! **Invariant:** sorted by name and address. A backend that no list has is shown as well: it keeps the
//! flows that it has.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::Args;
use lb_common::abi::{BackendFlags, BackendState, List};
use serde::Serialize;

use super::columns::{Column, number, table, text};
use super::look::{LookArgs, parse_address};
use super::names::{Names, ServiceArg, name_cell, needs_names, problem_lines};
use super::output::{self, Output, terminal_width};
use crate::datapath::{Flow, FlowVisitor, Look};
use crate::error_chain;
use crate::model::tables::{FamilyTables, TableContent, protocol_name, socket};

/// The flags of `backends`.
#[derive(Debug, Args)]
pub(super) struct BackendsArgs {
    #[command(flatten)]
    look: LookArgs,
    /// Only those of this Service.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<ServiceArg>,
    /// Only those at this address, or at this address and port.
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse_address)]
    address: Option<(IpAddr, Option<u16>)>,
}

/// What is shown.
#[derive(Debug, Default, PartialEq, Serialize)]
struct BackendsText {
    backends: Vec<BackendText>,
    /// Objects that names should be taken from and that cannot be read.
    problems: Vec<String>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct BackendText {
    /// `namespace/name`, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port_name: Option<String>,
    service_id: u32,
    backend_id: u32,
    address: IpAddr,
    port: u16,
    /// None when no frontend leads to its Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// It runs on this node.
    local: bool,
    /// `serving`; `terminating`; `kept`: it is in no list and finishes the flows that it has.
    state: &'static str,
    /// Slots in the list of all backends, and in that of the backends on this node.
    slots: u32,
    local_slots: u32,
    /// Established flows.
    flows: u64,
}

const COLUMNS: [Column; 8] = [
    text("SERVICE"),
    text("BACKEND"),
    text("STATE"),
    number("SLOTS"),
    number("LOCAL"),
    number("FLOWS"),
    text("POD"),
    text("NODE"),
];

/// Slots by backend id, in the cluster list and in the local one.
type Slots = BTreeMap<u32, [u32; List::ALL.len()]>;

pub(super) fn backends(args: &BackendsArgs) -> Result<(), String> {
    let look = args.look.open()?;
    let content = look.services().map_err(|e| error_chain(&e))?;
    let found = args.look.objects()?;
    let names = Names::new(found.as_ref(), &content);
    if args.service.is_some() {
        needs_names(&names)?;
    }
    let slots = slots(&look)?;
    let mut flows = FlowCounts::default();
    look.flows(&mut flows).map_err(|e| error_chain(&e))?;
    let mut shown = BackendsText::new(&content, &names, &slots, &flows.0);
    shown.problems = found.map(|found| found.problems).unwrap_or_default();
    shown.backends.retain(|backend| args.wants(backend));
    let text = match args.look.output {
        Output::Text => shown.to_table(terminal_width()),
        Output::Json => output::json(&shown)?,
    };
    output::print("the backends", &text)
}

fn slots(look: &Look) -> Result<Slots, String> {
    let mut slots = Slots::new();
    look.slots(&mut |key, backend| {
        // Lookup tables are not lists.
        if let Some(count) = slots
            .entry(backend)
            .or_default()
            .get_mut(usize::from(key.list))
        {
            *count += 1;
        }
    })
    .map_err(|e| error_chain(&e))?;
    Ok(slots)
}

/// Established flows by backend id.
#[derive(Default)]
struct FlowCounts(BTreeMap<u32, u64>);

impl FlowVisitor for FlowCounts {
    fn meets(&mut self, _: u32, backend: u32, half_open: bool) -> bool {
        if !half_open {
            *self.0.entry(backend).or_default() += 1;
        }
        false
    }

    fn takes(&mut self, _: Flow) -> bool {
        true
    }
}

impl BackendsArgs {
    fn wants(&self, backend: &BackendText) -> bool {
        let of_service = self.service.as_ref().is_none_or(|ServiceArg(wanted)| {
            backend.service.as_deref() == Some(&wanted.to_string())
        });
        let at = self.address.is_none_or(|(address, port)| {
            address == backend.address && port.is_none_or(|port| port == backend.port)
        });
        of_service && at
    }
}

impl BackendsText {
    fn new(
        content: &TableContent,
        names: &Names,
        slots: &Slots,
        flows: &BTreeMap<u32, u64>,
    ) -> Self {
        let mut backends = family(&content.v4, names, slots, flows);
        backends.extend(family(&content.v6, names, slots, flows));
        backends.sort_by_cached_key(|b| {
            let unnamed = b.service.is_none();
            let name = (b.service.clone(), b.port_name.clone(), b.service_id);
            (unnamed, name, b.address, b.port)
        });
        Self {
            backends,
            problems: Vec::new(),
        }
    }

    fn to_table(&self, width: Option<usize>) -> String {
        let mut text = table(
            &COLUMNS,
            width,
            self.backends.iter().map(BackendText::cells),
        );
        text.push_str(&problem_lines(&self.problems));
        text
    }
}

fn family<A>(
    tables: &FamilyTables<A>,
    names: &Names,
    slots: &Slots,
    flows: &BTreeMap<u32, u64>,
) -> Vec<BackendText>
where
    A: Ord + Copy + Into<IpAddr>,
{
    let entries = tables.backends.iter();
    entries
        .map(|(id, value)| {
            let name = names.port(value.service);
            let address = value.address.into();
            let endpoint = names.endpoint(value.service, address);
            let [in_cluster, in_local] = slots.get(id).copied().unwrap_or_default();
            let state = match value.state {
                state if state == BackendState::Terminating as u8 => "terminating",
                _ if in_cluster + in_local == 0 => "kept",
                _ => "serving",
            };
            BackendText {
                service: name.map(|name| name.service.to_string()),
                port_name: name.map(|name| name.port.clone()),
                service_id: value.service,
                backend_id: *id,
                address,
                port: value.port,
                protocol: names.protocol(value.service).map(protocol_name),
                pod: endpoint.and_then(|endpoint| endpoint.pod.clone()),
                node: endpoint.and_then(|endpoint| endpoint.node.clone()),
                local: value.flags & BackendFlags::ON_THIS_NODE != 0,
                state,
                slots: in_cluster,
                local_slots: in_local,
                flows: flows.get(id).copied().unwrap_or_default(),
            }
        })
        .collect()
}

impl BackendText {
    fn cells(&self) -> Vec<String> {
        let name = name_cell(
            self.service.as_deref(),
            self.port_name.as_deref(),
            self.service_id,
        );
        let at = socket(self.address, self.port);
        let known = |cell: &Option<String>| cell.clone().unwrap_or_else(|| "-".to_owned());
        let node = match (&self.node, self.local) {
            (Some(node), true) => format!("{node} (this node)"),
            (None, true) => "this node".to_owned(),
            (node, false) => known(node),
        };
        vec![
            name,
            match &self.protocol {
                Some(protocol) => format!("{at} {protocol}"),
                None => at,
            },
            self.state.to_owned(),
            self.slots.to_string(),
            self.local_slots.to_string(),
            self.flows.to_string(),
            known(&self.pod),
            node,
        ]
    }
}

#[cfg(test)]
#[path = "backends_tests.rs"]
mod tests;
