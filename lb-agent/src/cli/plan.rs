// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent plan`: manifests in, the plan out, no kernel and no privilege.
//!
//! It runs the same code as `run` on tables in memory, as after a start on empty tables.
//! **Invariant:** the plan goes to stdout, everything else to stderr, so the output can be piped.

use std::path::PathBuf;

use clap::Args;

use super::PlanText;
use super::options::PlanningArgs;
use super::output::{self, Output};
use crate::config;
use crate::error_chain;
use crate::model::snapshot::Update;
use crate::plan::ids::IdLimits;
use crate::reconcile::{Reconciler, Settings};
use crate::source::manifests;
use crate::tables::Memory;

/// The flags of `plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Folder of Kubernetes manifests (*.yaml, *.yml, *.json).
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Plan for this node [default: the host name].
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    #[command(flatten)]
    planning: PlanningArgs,
    /// How to write the plan; the JSON is described by lb-agent/plan.schema.json.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Also list every endpoint that gets no new flows, with the reason.
    #[arg(long)]
    explain: bool,
}

pub(super) fn plan(args: &PlanArgs) -> Result<(), String> {
    config::manifests(&args.manifests).map_err(|e| error_chain(&e))?;
    let settings = Settings {
        node_name: config::node_name(args.node.as_deref()).map_err(|e| error_chain(&e))?,
        options: args.planning.options()?,
        id_limits: IdLimits::default(),
    };
    let (objects, problems) = manifests::load(&args.manifests).map_err(|e| error_chain(&e))?;
    let mut tables = Memory::default();
    let mut reconciler = Reconciler::restore(settings, tables.content(), 1);
    // Warnings of Services are part of the output; the log would say them twice.
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
        reconciler.receive(Update::reset(objects));
        reconciler.sync(&mut tables);
    });
    let mut plan = PlanText::new(&reconciler, args.explain);
    for problem in &problems {
        tracing::warn!("{problem}");
        plan.warn(problem.subject(), problem.detail());
    }
    let text = match args.output {
        Output::Text => plan.to_table(),
        Output::Json => output::json(&plan)?,
    };
    output::print("the plan", &text)
}
