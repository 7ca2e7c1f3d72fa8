// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the verbs that show something write it: for people or for programs, to stdout.
//!
//! **Invariant:** who reads stdout may stop reading at any time, as `head` does; that is no error.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde::Serialize;

use crate::error_chain;

/// For whom something is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Writes a text to stdout; `what` it is stands in the error.
pub(super) fn print(what: &str, text: &str) -> Result<(), String> {
    settle(what, io::stdout().write_all(text.as_bytes()))
}

/// The JSON of `value`, as it is written.
pub(super) fn json<T: Serialize>(value: &T) -> Result<String, String> {
    let text = serde_json::to_string_pretty(value).map_err(|e| error_chain(&e))?;
    Ok(text + "\n")
}

/// What becomes of a write of `what`: nothing is wrong when nobody reads on.
pub(super) fn settle(what: &str, written: io::Result<()>) -> Result<(), String> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(format!("write {what}: {error}")),
        Ok(()) => Ok(()),
    }
}

/// Columns of the terminal that stdout is, if it is one.
pub(super) fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout
        .is_terminal()
        .then(|| terminal_size::terminal_size_of(stdout))?;
    size.map(|(width, _)| usize::from(width.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is() {
        let gone = Err(io::ErrorKind::BrokenPipe.into());
        assert_eq!(settle("the plan", gone), Ok(()));
        let full = settle("the plan", Err(io::Error::other("no space left")));
        assert_eq!(full, Err("write the plan: no space left".to_owned()));
    }
}
