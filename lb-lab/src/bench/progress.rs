// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the bench is doing right now: a spinner on a terminal, a line for each step elsewhere.
//!
//! **Invariant:** goes to standard error and never into the result.
//! Read next: `cluster`, which tells it.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// From one picture of the spinner to the next: rarely, because it shares the processors with what is measured.
const TICK: Duration = Duration::from_millis(250);

/// Tells what is being done.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // The template is a constant, but a wrong one is no reason to stop.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar }
    }

    /// Something that takes a while begins.
    pub(super) fn step(&self, of: &str, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.reset_elapsed();
                bar.set_message(format!("{of}: {what}"));
            }
            // Nobody may be there to read it.
            None => writeln!(io::stderr(), "{of}: {what}").unwrap_or_default(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
