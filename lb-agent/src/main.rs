// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `lb-agent` program. Everything it does is in the library; read `cli` next.
//!
//! **Invariant:** an error ends it with one sentence in the log and exit code 1; a wrong flag with
//! clap's own message and exit code 2, a wrong setting elsewhere with a sentence in the log and 2.

use std::process::ExitCode;

use lb_agent::cli::{Cli, Refused};
use lb_agent::{memory, telemetry};

fn main() -> ExitCode {
    memory::share_one_arena();
    let cli = match Cli::read(std::env::args_os(), std::env::vars_os()) {
        Ok(cli) => cli,
        Err(Refused::ByClap(error)) => error.exit(),
        Err(Refused::Sentence(sentence)) => {
            telemetry::start(telemetry::LogFormat::default());
            tracing::error!("{sentence}");
            return ExitCode::from(2);
        }
    };
    telemetry::start(cli.log_format());
    match cli.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            tracing::error!("{sentence}");
            ExitCode::FAILURE
        }
    }
}
