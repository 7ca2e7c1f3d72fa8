// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent check`: do the pinned maps hold what the objects ask for, and does anything disturb?
//!
//! The maps are taken as the tables of a node that starts, in memory; the same code as that of `run` plans
//! and writes there, and what it writes is what differs.
//! **Invariant:** nothing is changed. What a running agent is about to write is no difference: what differs
//! is looked at twice.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::columns::{Column, table, text, words};
use super::differences::{Difference, differences};
use super::names::{PortName, name_cell};
use super::objects::SourceArgs;
use super::options::PlanningArgs;
use super::output::{self, Output, terminal_width};
use crate::datapath::{Finding, Health, Look, NodeLook, Patterns, disturbances, look_at_node};
use crate::model::snapshot::Update;
use crate::plan::ids::IdLimits;
use crate::reconcile::{Reconciler, Settings};
use crate::tables::Memory;
use crate::{config, error_chain};

/// Time for a running agent to write what it has just learned.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Columns of what was found on the node.
const FOUND: [Column; 3] = [text("NODE"), text(""), words("FOUND")];

/// The flags of `check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Where the agent pins maps and programs.
    #[arg(long, value_name = "DIR", default_value = config::BPFFS_DEFAULT)]
    bpffs: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    planning: PlanningArgs,
    /// Devices to manage even if they are not found to need it, as the agent was told.
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    include_interfaces: Vec<String>,
    /// Devices to leave alone, as the agent was told.
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    exclude_interfaces: Vec<String>,
    /// The cgroup v2 folder that the agent was given [default: the root of the hierarchy].
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// How to write it; the JSON is described by lb-agent/inspect.schema.json.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What is shown.
#[derive(Debug, Default, Serialize)]
struct CheckText {
    services: usize,
    entries: usize,
    differences: Vec<Difference>,
    findings: Vec<Finding>,
    warnings: Vec<Warning>,
}

/// What cannot be read, or not be served in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Warning {
    object: String,
    message: String,
}

pub(super) fn check(args: &CheckArgs) -> Result<(), String> {
    let look = Look::open(&args.bpffs).map_err(|e| error_chain(&e))?;
    let cgroup = config::cgroup(args.cgroup.as_deref()).map_err(|e| error_chain(&e))?;
    let settings = Settings {
        node_name: config::node_name(args.source.node.as_deref()).map_err(|e| error_chain(&e))?,
        options: args.planning.options()?,
        id_limits: IdLimits::default(),
    };
    let patterns = Patterns {
        include: args.include_interfaces.clone(),
        exclude: args.exclude_interfaces.clone(),
    };
    let compare = || -> Result<(CheckText, NodeLook), String> {
        let node = node_now(&look, &patterns)?;
        Ok((compare(&look, args, &settings, &node)?, node))
    };
    let (mut shown, mut node) = compare()?;
    if !shown.differences.is_empty() || !node.lacking.is_empty() {
        std::thread::park_timeout(SECOND_LOOK);
        let (second, later) = compare()?;
        let before = std::mem::replace(&mut shown, second).differences;
        shown.differences.retain(|still| before.contains(still));
        node = later;
    }
    shown.findings = disturbances(look.bpffs(), cgroup.as_deref(), &node);
    let text = match args.output {
        Output::Text => shown.to_table(terminal_width()),
        Output::Json => output::json(&shown)?,
    };
    output::print("what was found", &text)?;
    shown.verdict()
}

/// The devices and addresses of this node.
fn node_now(look: &Look, patterns: &Patterns) -> Result<NodeLook, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("start the runtime: {e}"))?;
    let node = runtime.block_on(look_at_node(look, patterns.clone()));
    node.map_err(|e| error_chain(&e))
}

/// What differs now.
fn compare(
    look: &Look,
    args: &CheckArgs,
    settings: &Settings,
    node: &NodeLook,
) -> Result<CheckText, String> {
    // ORDER: the objects first. A Service that comes in between is no more than extra for a moment.
    let found = args.source.load()?;
    let actual = look.content().map_err(|e| error_chain(&e))?;
    let mut tables = Memory::with_content(actual.clone());
    let mut reconciler = Reconciler::restore(settings.clone(), &actual, 1);
    let mut warnings: Vec<Warning> = Vec::new();
    for problem in &found.problems {
        let object = "objects".to_owned();
        let message = format!("{problem}; what it asks for is not compared");
        warnings.push(Warning { object, message });
    }
    let update = if found.problems.is_empty() {
        Update::reset(found.objects)
    } else {
        Update::Partial {
            objects: found.objects,
            unreadable: found.problems,
        }
    };
    // What it says of Services is part of the output; the log would say it as if it had been done.
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
        reconciler.receive_addresses(node.addresses.clone());
        reconciler.receive(update);
        reconciler.sync(&mut tables);
    });
    for message in reconciler.node_warnings() {
        let object = format!("Node {}", reconciler.node_name());
        warnings.push(Warning { object, message });
    }
    for (service, warning) in reconciler.warnings() {
        let (object, message) = (format!("Service {service}"), warning.to_string());
        warnings.push(Warning { object, message });
    }
    let name_of = |id| {
        let owner = reconciler.ids().owner(id)?;
        Some(PortName {
            service: owner.service.clone(),
            port: owner.name.clone(),
        })
    };
    Ok(CheckText {
        services: reconciler.services_len(),
        entries: actual.len(),
        differences: differences(&actual, tables.content(), &name_of),
        findings: Vec::new(),
        warnings,
    })
}

impl CheckText {
    /// An error if something is not as it should be.
    fn verdict(&self) -> Result<(), String> {
        let lacking = self.findings.iter();
        let lacking = lacking.filter(|f| f.health == Health::Lacking).count();
        match (self.differences.len(), lacking) {
            (0, 0) => Ok(()),
            (0, _) => Err(format!("{lacking} things are lacking on this node")),
            (differing, 0) => Err(format!(
                "{differing} things in the maps are not as the objects ask for"
            )),
            (differing, _) => Err(format!(
                "{differing} things in the maps are not as the objects ask for, and {lacking} are lacking \
                 on this node"
            )),
        }
    }

    fn to_table(&self, width: Option<usize>) -> String {
        let mut parts = Vec::new();
        if self.differences.is_empty() {
            let (services, entries) = (self.services, self.entries);
            parts.push(format!(
                "the maps hold what {services} Services ask for ({entries} entries)\n"
            ));
        } else {
            const COLUMNS: [Column; 4] =
                [text("SERVICE"), text("WHAT"), text("IS"), words("DETAIL")];
            parts.push(table(&COLUMNS, width, self.differences.iter().map(cells)));
        }
        let rows = self.findings.iter().map(|finding| {
            let mark = match finding.health {
                Health::Fine => "ok",
                Health::Less => "less",
                Health::Lacking => "LACKING",
            };
            let what = finding.what.to_owned();
            vec![what, mark.to_owned(), finding.detail.clone()]
        });
        parts.push(table(&FOUND, width, rows));
        if !self.warnings.is_empty() {
            const WARNINGS: [Column; 2] = [text("WARNING"), words("MESSAGE")];
            let rows = self.warnings.iter();
            let rows = rows.map(|warning| vec![warning.object.clone(), warning.message.clone()]);
            parts.push(table(&WARNINGS, width, rows));
        }
        parts.join("\n")
    }
}

fn cells(difference: &Difference) -> Vec<String> {
    let service = name_cell(
        difference.service.as_deref(),
        difference.port_name.as_deref(),
        difference.service_id,
    );
    vec![
        service,
        difference.object.clone(),
        difference.is.to_owned(),
        difference.detail.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::contract;

    fn shown(differences: usize, health: Health) -> CheckText {
        let difference = |service| Difference {
            service: Some("default/web".to_owned()),
            port_name: Some("http".to_owned()),
            service_id: service,
            object: "frontend 10.0.1.175:80 TCP".to_owned(),
            is: "missing",
            detail: "ClusterIP".to_owned(),
        };
        CheckText {
            services: 3,
            entries: 12,
            differences: (1..).map(difference).take(differences).collect(),
            findings: vec![Finding {
                what: "devices",
                health,
                detail: "programs are at all 3 that need them".to_owned(),
            }],
            warnings: vec![Warning {
                object: "Service default/web".to_owned(),
                message: "port 80/TCP: words".to_owned(),
            }],
        }
    }

    #[test]
    fn only_what_differs_or_is_lacking_is_a_failure() {
        assert_eq!(shown(0, Health::Fine).verdict(), Ok(()));
        assert_eq!(shown(0, Health::Less).verdict(), Ok(()));
        assert!(shown(0, Health::Lacking).verdict().is_err());
        let verdict = shown(2, Health::Fine).verdict().unwrap_err();
        assert!(verdict.starts_with("2 things in the maps"), "{verdict}");
    }

    #[test]
    fn what_is_found_is_told_in_words_and_by_the_schema() {
        let shown = shown(1, Health::Fine);
        assert_eq!(contract::broken("check", &shown), [""; 0]);
        let expected = "\
SERVICE           WHAT                        IS       DETAIL
default/web http  frontend 10.0.1.175:80 TCP  missing  ClusterIP

NODE         FOUND
devices  ok  programs are at all 3 that need them

WARNING              MESSAGE
Service default/web  port 80/TCP: words
";
        assert_eq!(shown.to_table(None), expected);
    }
}
