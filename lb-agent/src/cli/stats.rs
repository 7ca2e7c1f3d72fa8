// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent stats`: what was counted on this node, and how full the pinned maps are.
//!
//! The JSON is a contract: `lb-agent/inspect.schema.json` describes it. Fields are only ever added.
//! **Invariant:** counted since the maps were made, which a restart of the agent does not change.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::Args;
use lb_common::Class;
use serde::Serialize;

use super::columns::{Column, number, table, text, words};
use super::look::LookArgs;
use super::names::Names;
use super::output::{self, Output, terminal_width};
use crate::datapath::{Flow, FlowVisitor, Look, Masquerades};
use crate::error_chain;
use crate::model::tables::{protocol_name, socket};

/// The flags of `stats`.
#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    #[command(flatten)]
    look: LookArgs,
    /// Show so many Services, those that were dialled most; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Show every reason and every map in the table, also those without entries.
    #[arg(long)]
    all: bool,
}

/// What is shown.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatsText {
    flows: FlowsText,
    reasons: Vec<ReasonText>,
    maps: Vec<MapText>,
    services: Vec<ServiceText>,
    masquerades: Vec<MasqueradeText>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FlowsText {
    established: u64,
    half_open: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct ReasonText {
    name: &'static str,
    code: u32,
    /// What becomes of a packet: `pass`, `drop`, `reject`, `note`.
    class: &'static str,
    count: u64,
    meaning: &'static str,
}

#[derive(Debug, PartialEq, Serialize)]
struct MapText {
    name: &'static str,
    entries: u64,
    capacity: u32,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceText {
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port_name: Option<String>,
    service_id: u32,
    /// None when no frontend leads to it any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    opened: u64,
    rejected: u64,
    #[serde(skip)]
    cell: String,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct MasqueradeText {
    address: IpAddr,
    flows: u64,
    /// Most ports that are in use towards one backend, and which one that is: each has all ports of the
    /// address for itself.
    most_ports: u32,
    most_address: IpAddr,
    most_port: u16,
    most_protocol: String,
}

pub(super) fn stats(args: &StatsArgs) -> Result<(), String> {
    let look = args.look.open()?;
    let content = look.services().map_err(|e| error_chain(&e))?;
    let found = args.look.objects()?;
    let names = Names::new(found.as_ref(), &content);
    let shown = StatsText::read(&look, &names, args.top)?;
    let text = match args.look.output {
        Output::Text => shown.to_table(args.all, terminal_width()),
        Output::Json => output::json(&shown)?,
    };
    output::print("the counters", &text)
}

impl FlowVisitor for FlowsText {
    fn meets(&mut self, _: u32, _: u32, half_open: bool) -> bool {
        if half_open {
            self.half_open += 1;
        } else {
            self.established += 1;
        }
        false
    }

    fn takes(&mut self, _: Flow) -> bool {
        true
    }
}

impl StatsText {
    fn read(look: &Look, names: &Names, top: usize) -> Result<Self, String> {
        let mut shown = Self::default();
        look.flows(&mut shown.flows).map_err(|e| error_chain(&e))?;
        let reasons = look.reasons().map_err(|e| error_chain(&e))?.into_iter();
        let reasons = reasons.map(|(reason, count)| ReasonText {
            name: reason.name(),
            code: reason as u32,
            class: class_name(reason.class()),
            count,
            meaning: reason.meaning(),
        });
        shown.reasons = reasons.collect();
        let maps = look.fill().map_err(|e| error_chain(&e))?.into_iter();
        let maps = maps.map(|fill| MapText {
            name: fill.name,
            entries: fill.entries,
            capacity: fill.capacity,
        });
        shown.maps = maps.collect();
        look.stats(&mut |id, stats| {
            shown.services.push(ServiceText {
                service: names.port(id).map(|name| name.service.to_string()),
                port_name: names.port(id).map(|name| name.port.clone()),
                service_id: id,
                family: names.family(id),
                protocol: names.protocol(id).map(protocol_name),
                opened: stats.opened,
                rejected: stats.rejected,
                cell: names.cell(id),
            });
        })
        .map_err(|e| error_chain(&e))?;
        shown.keep_top(top);
        let masquerades = look.masquerades().map_err(|e| error_chain(&e))?;
        shown.masquerades = masquerade_texts(&masquerades);
        Ok(shown)
    }

    /// The Services that were dialled most, also in vain.
    fn keep_top(&mut self, top: usize) {
        let dialled = |s: &ServiceText| s.opened.saturating_add(s.rejected);
        self.services
            .sort_by(|a, b| (dialled(b), &a.cell).cmp(&(dialled(a), &b.cell)));
        if top > 0 {
            self.services.truncate(top);
        }
    }

    fn to_table(&self, all: bool, width: Option<usize>) -> String {
        let mut parts = vec![format!(
            "{} established flows, {} half-open\n",
            self.flows.established, self.flows.half_open
        )];
        parts.push(self.reason_table(all, width));
        parts.push(self.map_table(all, width));
        if !self.services.is_empty() {
            const COLUMNS: [Column; 5] = [
                text("SERVICE"),
                text("FAMILY"),
                text("PROTOCOL"),
                number("OPENED"),
                number("REJECTED"),
            ];
            let rows = self.services.iter().map(|service| {
                vec![
                    service.cell.clone(),
                    service.family.unwrap_or("-").to_owned(),
                    service.protocol.clone().unwrap_or_else(|| "-".to_owned()),
                    service.opened.to_string(),
                    service.rejected.to_string(),
                ]
            });
            parts.push(table(&COLUMNS, width, rows));
        }
        if !self.masquerades.is_empty() {
            const COLUMNS: [Column; 4] = [
                text("MASQUERADE ADDRESS"),
                number("FLOWS"),
                number("MOST PORTS"),
                text("TOWARDS"),
            ];
            let rows = self.masquerades.iter().map(|of| {
                let towards = socket(of.most_address, of.most_port);
                vec![
                    of.address.to_string(),
                    of.flows.to_string(),
                    of.most_ports.to_string(),
                    format!("{towards} {}", of.most_protocol),
                ]
            });
            parts.push(table(&COLUMNS, width, rows));
        }
        parts.join("\n")
    }

    fn reason_table(&self, all: bool, width: Option<usize>) -> String {
        const COLUMNS: [Column; 4] = [
            text("REASON"),
            text("PACKET"),
            number("COUNT"),
            words("MEANING"),
        ];
        let counted = self.reasons.iter().filter(|reason| all || reason.count > 0);
        let rows: Vec<_> = counted
            .map(|reason| {
                let (name, class) = (reason.name.to_owned(), reason.class.to_owned());
                vec![
                    name,
                    class,
                    reason.count.to_string(),
                    reason.meaning.to_owned(),
                ]
            })
            .collect();
        if rows.is_empty() {
            return "no packet was dropped, refused or worth a note\n".to_owned();
        }
        table(&COLUMNS, width, rows.into_iter())
    }

    fn map_table(&self, all: bool, width: Option<usize>) -> String {
        const COLUMNS: [Column; 4] = [text("MAP"), number("ENTRIES"), number("OF"), number("FULL")];
        let maps = self.maps.iter().filter(|map| all || map.entries > 0);
        let rows = maps.map(|map| {
            let percent = map.entries.saturating_mul(100) / u64::from(map.capacity.max(1));
            vec![
                map.name.to_owned(),
                map.entries.to_string(),
                map.capacity.to_string(),
                format!("{percent}%"),
            ]
        });
        table(&COLUMNS, width, rows)
    }
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::Pass => "pass",
        Class::Drop => "drop",
        Class::Reject => "reject",
        Class::Note => "note",
    }
}

fn masquerade_texts(found: &BTreeMap<IpAddr, Masquerades>) -> Vec<MasqueradeText> {
    let texts = found.iter().filter_map(|(address, of)| {
        let most = of.towards.iter().max_by_key(|(_, ports)| **ports);
        let ((most_address, most_port, proto), most_ports) = most?;
        Some(MasqueradeText {
            address: *address,
            flows: of.flows,
            most_ports: *most_ports,
            most_address: *most_address,
            most_port: *most_port,
            most_protocol: protocol_name(*proto),
        })
    });
    texts.collect()
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
