// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent doctor`: what this node offers, and what an agent has put in place.
//!
//! **Invariant:** it works beside a running agent and without one, and changes nothing.

use std::path::PathBuf;

use clap::Args;
use tabled::builder::Builder;
use tabled::settings::Style;

use super::output::{self, Output};
use crate::config;
use crate::datapath::{Finding, Health, probe};
use crate::error_chain;

/// The flags of `doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Where the agent pins maps and programs.
    #[arg(long, value_name = "DIR", default_value = config::BPFFS_DEFAULT)]
    bpffs: PathBuf,
    /// The cgroup v2 folder that the agent was given [default: the root of the hierarchy].
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// How to write what was found.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn doctor(args: &DoctorArgs) -> Result<(), String> {
    let cgroup = config::cgroup(args.cgroup.as_deref()).map_err(|e| error_chain(&e))?;
    let found = probe(&args.bpffs, cgroup.as_deref());
    let text = match args.output {
        Output::Text => table(&found),
        Output::Json => output::json(&found)?,
    };
    output::print("what was found", &text)?;
    let lacking = found.iter().filter(|f| f.health == Health::Lacking).count();
    if lacking > 0 {
        return Err(format!("{lacking} of {} things are lacking", found.len()));
    }
    Ok(())
}

fn table(found: &[Finding]) -> String {
    let mut rows = Builder::default();
    rows.push_record(["", "what", "found"]);
    for finding in found {
        let mark = match finding.health {
            Health::Fine => "ok",
            Health::Less => "less",
            Health::Lacking => "LACKING",
        };
        rows.push_record([mark, finding.what, &finding.detail]);
    }
    let mut table = rows.build();
    table.with(Style::blank());
    let lines = table.to_string();
    let lines = lines.lines().map(str::trim_end);
    lines.fold(String::new(), |text, line| text + line + "\n")
}
