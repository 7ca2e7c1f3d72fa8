// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line. One verb, one file.
//!
//! **Invariant:** flags are kebab-case, every default is told by `--help`, and a wrong value is
//! refused before anything is done.

#[cfg(test)]
mod asking;
mod audits;
mod backends;
mod check;
mod cleanup;
mod columns;
mod connections;
#[cfg(test)]
mod contract;
mod describe;
mod differences;
mod doctor;
#[cfg(test)]
mod fixture;
mod flags;
mod health;
mod healthz;
mod kernel;
mod listen;
mod look;
mod metrics;
mod names;
mod node_state;
mod objects;
mod options;
mod output;
mod path_counters;
mod per_backend;
mod per_service;
mod plan;
mod probes;
mod process;
mod progress;
mod remember;
mod render;
mod run;
mod services;
mod settings;
mod source;
mod stats;
mod surfaces;
mod sync_metrics;
mod text_format;

use std::ffi::OsString;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use lb_common::abi::Algorithm;

use crate::telemetry::LogFormat;

pub use describe::PlanText;
pub use options::planning_options;
pub use render::{TableText, table_text};
pub use settings::{Refused, config_schema};

/// Balances Kubernetes Services in the kernel of this node.
#[derive(Debug, Parser)]
#[command(
    name = "lb-agent",
    version,
    about,
    args_conflicts_with_subcommands = true,
    after_help = settings::HELP
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: flags::RunArgs,
    #[arg(skip)]
    origins: settings::Origins,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: read objects, write tables, follow changes (the default).
    #[command(after_help = settings::HELP)]
    Run(Box<flags::RunArgs>),
    /// Show the tables that manifests lead to, without touching the kernel.
    Plan(plan::PlanArgs),
    /// Show what clients can dial on this node, from the pinned maps; works while no agent runs.
    Services(services::ServicesArgs),
    /// Show where it goes, from the pinned maps; works while no agent runs.
    Backends(backends::BackendsArgs),
    /// Show who talks to whom through Services, from the pinned maps; works while no agent runs.
    Connections(connections::ConnectionsArgs),
    /// Show what was counted and how full the pinned maps are; works while no agent runs.
    Stats(stats::StatsArgs),
    /// Compare the pinned maps with what the API server or manifests ask for, and tell what disturbs
    /// on this node; exit code 1 if something differs.
    Check(check::CheckArgs),
    /// Show what this node offers for packets and sockets, and what is lacking; exit code 1 if
    /// something is.
    Doctor(doctor::DoctorArgs),
    /// Take away what agents have put into the kernel of this node, and nothing else; with --drain
    /// without cutting flows.
    Cleanup(cleanup::CleanupArgs),
}

/// How backends are chosen for new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AlgorithmName {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Uniformly at random.
    Random,
    /// By the flow's tuple, the same on every node, little changed when backends come and go.
    Maglev,
    /// By the client's address, likewise.
    SourceHash,
}

impl From<AlgorithmName> for Algorithm {
    fn from(name: AlgorithmName) -> Self {
        match name {
            AlgorithmName::RoundRobin => Self::RoundRobin,
            AlgorithmName::Random => Self::Random,
            AlgorithmName::Maglev => Self::Maglev,
            AlgorithmName::SourceHash => Self::SourceHash,
        }
    }
}

impl Cli {
    /// What the command line, the environment and the file of `--config` say.
    pub fn read(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Refused> {
        let arguments = arguments.into_iter().collect();
        let environment: Vec<_> = environment.into_iter().collect();
        let mut command = Self::command();
        let (matches, origins) = settings::read(&mut command, arguments, &environment)?;
        let mut cli = Self::from_arg_matches(&matches).map_err(Refused::ByClap)?;
        cli.origins = origins;
        Ok(cli)
    }

    /// How to write the log.
    pub fn log_format(&self) -> LogFormat {
        match &self.command {
            Some(Command::Run(args)) => args.log_format,
            None => self.run.log_format,
            Some(_) => LogFormat::Text,
        }
    }

    /// Does what was asked for. The error is one sentence for the person who asked.
    pub fn execute(self) -> Result<(), String> {
        for note in &self.origins.notes {
            tracing::warn!("{note}");
        }
        let done = match self.command {
            Some(Command::Run(args)) => run::run(&args),
            Some(Command::Plan(args)) => plan::plan(&args),
            Some(Command::Services(args)) => services::services(&args),
            Some(Command::Backends(args)) => backends::backends(&args),
            Some(Command::Connections(args)) => connections::connections(&args),
            Some(Command::Stats(args)) => stats::stats(&args),
            Some(Command::Check(args)) => check::check(&args),
            Some(Command::Doctor(args)) => doctor::doctor(&args),
            Some(Command::Cleanup(args)) => cleanup::cleanup(&args),
            None => run::run(&self.run),
        };
        done.map_err(|sentence| self.origins.explain(sentence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_source_and_the_api_server_needs_no_flag() {
        let parses = |words: &[&str]| Cli::try_parse_from(words).is_ok();
        assert!(parses(&["lb-agent"]));
        assert!(parses(&[
            "lb-agent",
            "run",
            "--kubeconfig",
            "f",
            "--api-server",
            "u"
        ]));
        assert!(parses(&[
            "lb-agent",
            "--manifests",
            "d",
            "--state-dir",
            "s"
        ]));
        assert!(!parses(&[
            "lb-agent",
            "--manifests",
            "d",
            "--kubeconfig",
            "f"
        ]));
        assert!(!parses(&[
            "lb-agent",
            "run",
            "--manifests",
            "d",
            "--api-server",
            "u"
        ]));
    }
}
