// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench connect`: what a connect costs with and without programs at the socket.
//!
//! **Invariant:** programs are attached to cgroups of the bench's own only, and nothing is pinned: all
//! of it is gone with this process. A target that is missed is shown and is no failure.
//! Read next: stage.rs, where it happens; calls.rs, what is measured; report.rs.
#![expect(
    clippy::expect_used,
    reason = "the bench ends at the first thing that is not as it set it up"
)]

mod calls;
mod report;
mod stage;
mod tables;

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;

use calls::{Case, Measured, With};
use report::Report;
use stage::Stage;

/// What a connect costs, by sockets of UDP that are connected and sent nowhere
///
/// Needs root. Attaches programs to three cgroups of its own, in a network namespace of its own: none,
/// an empty one, and the agent's with tables of many Services. All of them have their turn in every
/// round. A socket of UDP, because its connect sends nothing: what is measured is the call.
#[derive(Parser)]
struct Args {
    /// A few seconds instead of half a minute: fewer Services and rounds; for a look, not for targets
    #[arg(long)]
    quick: bool,
    /// Services in the tables [default: 10000, with --quick 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    services: Option<u32>,
    /// Rounds, of which fast ones count [default: 120, with --quick 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Only cases whose names contain this, as in the table
    #[arg(long, value_name = "WORDS", default_value = "")]
    only: String,
    /// Also write the numbers to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What cargo passes to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let services = args
        .services
        .unwrap_or(if args.quick { 100 } else { 10_000 });
    let rounds = args.rounds.unwrap_or(if args.quick { 5 } else { 120 });
    let tell = |what: &str| {
        // Nobody may be there to read it.
        writeln!(io::stderr(), "{what}").unwrap_or_default();
    };
    tell(&format!("filling the tables for {services} Services"));
    let mut stage = Stage::open(services)?;
    let cases = Case::all().into_iter();
    let cases = cases.filter(|case| case.name().contains(&args.only));
    let mut measured: Vec<Measured> = cases.map(Measured::new).collect();
    for round in 1..=rounds {
        if round % 10 == 1 {
            tell(&format!("round {round} of {rounds}"));
        }
        // By turns, so that a slow moment of the machine is not one program's alone.
        for with in With::ALL {
            stage.with(with, |stage| {
                measured
                    .iter_mut()
                    .try_for_each(|of| of.measure(stage, with))
            })?;
        }
    }
    let report = Report::new(&measured, services);
    if let Some(path) = &args.json {
        fs::write(path, report.json()?).with_context(|| format!("write {}", path.display()))?;
    }
    io::stdout()
        .write_all(report.table().as_bytes())
        .context("show the table")
}
