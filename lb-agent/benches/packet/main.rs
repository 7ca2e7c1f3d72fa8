// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench packet`: the flags, and what a person gets to see.
//!
//! **Invariant:** a target that is missed is shown and is no failure: the machine may be a slow one.
//! Read next: bench/mod.rs.

mod bench;

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use bench::Options;
use bench::cluster::Family;
use bench::wire::Proto;

/// What a packet costs in the tc programs that the agent carries, by `BPF_PROG_TEST_RUN`
///
/// Needs root. Attaches nothing: programs and maps are this process's own, in a network namespace of
/// its own. Each number is the time of a driver that restores a packet and jumps to the program, less
/// the time of the driver with an empty program behind it, plus that of the empty program alone.
#[derive(Parser)]
struct Args {
    /// Half a minute instead of two: 100 Services, 1,024 flows, one round; for a look, not for targets
    #[arg(long)]
    quick: bool,
    /// How often everything is measured; the best round counts [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: Option<u8>,
    /// Services in the tables [default: 10000, with --quick 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    services: Option<u32>,
    /// Established flows of each family and protocol [default: 65536, with --quick 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    flows: Option<u32>,
    /// Only this family
    #[arg(long, value_enum)]
    family: Option<FamilyArg>,
    /// Only this protocol
    #[arg(long, value_enum)]
    proto: Option<ProtoArg>,
    /// Only cases whose names contain this, as in the table
    #[arg(long, value_name = "WORDS", default_value = "")]
    only: String,
    /// Also single operations on maps: lookups, insertions, evictions
    #[arg(long)]
    micro: bool,
    /// Also write the numbers to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What cargo passes to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum FamilyArg {
    V4,
    V6,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProtoArg {
    Tcp,
    Udp,
}

impl Args {
    fn options(&self) -> Options {
        let or = |given: Option<u32>, normal, quick| {
            given.unwrap_or(if self.quick { quick } else { normal })
        };
        Options {
            services: or(self.services, 10_000, 100),
            flows: or(self.flows, 65_536, 1_024),
            rounds: self
                .rounds
                .map_or(if self.quick { 1 } else { 3 }, usize::from),
            runs: if self.quick { 5 } else { 8 },
            families: match self.family {
                None => Family::ALL.to_vec(),
                Some(FamilyArg::V4) => vec![Family::V4],
                Some(FamilyArg::V6) => vec![Family::V6],
            },
            protos: match self.proto {
                None => Proto::ALL.to_vec(),
                Some(ProtoArg::Tcp) => vec![Proto::Tcp],
                Some(ProtoArg::Udp) => vec![Proto::Udp],
            },
            only: self.only.clone(),
            micro: self.micro,
            real_time: true,
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut tell = |what: &str| {
        // Nobody may be there to read it.
        writeln!(io::stderr(), "{what}").unwrap_or_default();
    };
    let report = bench::run(&args.options(), &mut tell)?;
    if let Some(path) = &args.json {
        fs::write(path, report.json()?).with_context(|| format!("write {}", path.display()))?;
    }
    io::stdout()
        .write_all(report.table().as_bytes())
        .context("show the table")
}
