// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `lb-agent` program. Everything it does is in the library; read `cli` next.
//!
//! **Invariant:** an error ends it with one sentence in the log and exit code 1; a wrong flag with
//! clap's own message and exit code 2.

use std::process::ExitCode;

use clap::Parser as _;
use lb_agent::cli::Cli;
use lb_agent::{memory, telemetry};

fn main() -> ExitCode {
    memory::share_one_arena();
    let cli = Cli::parse();
    telemetry::start(cli.log_format());
    match cli.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            tracing::error!("{sentence}");
            ExitCode::FAILURE
        }
    }
}
