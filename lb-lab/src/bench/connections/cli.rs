// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flags of `lb-lab bench connections`, and what a person gets to see.
//!
//! **Invariant:** a target that is missed is shown and is no failure: the machine may be a slow one.
//! Read next: the front of this bench.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Options, load, run};
use crate::agent::find_binary;
use crate::error::LabError;

/// What `lb-lab bench connections` is told.
#[derive(Debug, Args)]
pub(in crate::bench) struct Connections {
    /// Numbers of Services, one lab each [default: 10,1000,10000, with --quick without the last]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(2..=60_000))]
    services: Vec<u32>,
    /// Rounds, of which the medians are shown [default: 8, with --quick 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: Option<u32>,
    /// Milliseconds that each way through each contestant has in each round [default: 500, with --quick 100]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    turn_ms: Option<u32>,
    /// The processor of all clients and servers [default: the last one]
    #[arg(long)]
    cpu: Option<usize>,
    /// A minute instead of ten: fewer and shorter rounds, no 10,000 Services
    #[arg(long)]
    quick: bool,
    /// Also write the numbers to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Connections {
    /// Measures, shows a table and writes the numbers where they were asked for.
    pub(in crate::bench) fn run(&self, out: &mut impl Write) -> Result<(), LabError> {
        let report = run(&self.options()?)?;
        if let Some(path) = &self.json {
            fs::write(path, report.json()?).map_err(LabError::file("write", path))?;
        }
        let shown = out.write_all(report.table().as_bytes());
        shown.map_err(LabError::io("show the table"))
    }

    fn options(&self) -> Result<Options, LabError> {
        let all: &[u32] = if self.quick {
            &[10, 1_000]
        } else {
            &[10, 1_000, 10_000]
        };
        let or = |given: Option<u32>, normal, quick| {
            given.unwrap_or(if self.quick { quick } else { normal })
        };
        Ok(Options {
            agent: find_binary()?,
            services: if self.services.is_empty() {
                all.to_vec()
            } else {
                self.services.clone()
            },
            rounds: or(self.rounds, 8, 3),
            turn: Duration::from_millis(or(self.turn_ms, 500, 100).into()),
            cpu: match self.cpu {
                Some(cpu) => cpu,
                None => load::last_cpu()?,
            },
        })
    }
}
