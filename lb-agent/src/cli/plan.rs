// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent plan`: manifests in, tables out, no kernel and no privilege.
//!
//! It runs the same code as `run` on tables in memory, as after a start on empty tables.
//! **Invariant:** tables go to stdout, everything else to stderr, so the output can be piped.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{AlgorithmName, table_text};
use crate::config;
use crate::error_chain;
use crate::model::snapshot::Update;
use crate::plan::ids::IdLimits;
use crate::reconcile::{Reconciler, Settings};
use crate::source::manifests;
use crate::tables::Memory;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// The flags of `plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Folder of Kubernetes manifests (*.yaml, *.yml, *.json).
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Plan for this node [default: the host name].
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The algorithm of Services that name none.
    #[arg(long, value_enum, default_value_t)]
    algorithm: AlgorithmName,
    /// How to write the tables.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn plan(args: &PlanArgs) -> Result<(), String> {
    let (objects, problems) = manifests::load(&args.manifests).map_err(|e| error_chain(&e))?;
    for problem in problems {
        tracing::warn!("{problem}");
    }
    let settings = Settings {
        node_name: config::node_name(args.node.as_deref()).map_err(|e| error_chain(&e))?,
        algorithm: args.algorithm.into(),
        id_limits: IdLimits::default(),
    };
    let mut tables = Memory::default();
    let mut reconciler = Reconciler::restore(settings, tables.content(), 1);
    reconciler.receive(Update::Reset(objects));
    reconciler.sync(&mut tables);
    let frontends = table_text(tables.content(), reconciler.ids());
    let text = match args.output {
        Output::Text => {
            let mut text = String::new();
            for frontend in &frontends {
                frontend.write_to(&mut text);
            }
            text
        }
        Output::Json => {
            let json = serde_json::to_string_pretty(&frontends);
            json.map_err(|e| error_chain(&e))? + "\n"
        }
    };
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(|e| format!("write the tables: {e}"))
}
