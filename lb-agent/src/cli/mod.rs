// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line. One verb, one file.
//!
//! **Invariant:** flags are kebab-case, every default is told by `--help`, and a wrong value is
//! refused before anything is done.

mod describe;
mod options;
mod plan;
mod render;
mod run;

use clap::{Parser, Subcommand, ValueEnum};
use lb_common::abi::Algorithm;

use crate::telemetry::LogFormat;

pub use describe::PlanText;
pub use options::planning_options;
pub use render::{TableText, table_text};

/// Balances Kubernetes Services in the kernel of this node.
#[derive(Debug, Parser)]
#[command(
    name = "lb-agent",
    version,
    about,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Option<run::RunArgs>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: read objects, write tables, follow changes (the default).
    Run(run::RunArgs),
    /// Show the tables that manifests lead to, without touching the kernel.
    Plan(plan::PlanArgs),
}

/// How backends are chosen for new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AlgorithmName {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Uniformly at random.
    Random,
}

impl From<AlgorithmName> for Algorithm {
    fn from(name: AlgorithmName) -> Self {
        match name {
            AlgorithmName::RoundRobin => Self::RoundRobin,
            AlgorithmName::Random => Self::Random,
        }
    }
}

impl Cli {
    /// How to write the log.
    pub fn log_format(&self) -> LogFormat {
        match (&self.command, &self.run) {
            (Some(Command::Run(args)), _) | (None, Some(args)) => args.log_format,
            (Some(Command::Plan(_)) | None, _) => LogFormat::Text,
        }
    }

    /// Does what was asked for. The error is one sentence for the person who asked.
    pub fn execute(self) -> Result<(), String> {
        match (self.command, self.run) {
            (Some(Command::Run(args)), _) | (None, Some(args)) => run::run(&args),
            (Some(Command::Plan(args)), _) => plan::plan(&args),
            (None, None) => Err("no source of objects: give --manifests DIR".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn help_says_that_the_cgroup_is_not_used_yet() {
        let mut command = Cli::command();
        let run = command.find_subcommand_mut("run").unwrap();
        let cgroup = run.get_arguments().find(|arg| arg.get_id() == "cgroup");
        let help = cgroup.unwrap().get_help().unwrap().to_string();
        assert!(help.contains("checked and not used"), "{help}");
    }
}
