// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log, on stderr.
//!
//! `LB_LOG` chooses what is logged (`info` by default; `lb_agent=debug` for more).
//! **Invariant:** nothing else writes to stderr, so a log in JSON is JSON on every line.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. Called once, by `main`.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("LB_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let started = match format {
        LogFormat::Text => {
            use std::io::IsTerminal as _;
            log.with_ansi(std::io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => log.json().try_init(),
    };
    // A second start, which only tests can cause, keeps the first log.
    started.ok();
}
