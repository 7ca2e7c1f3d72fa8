// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a demo ends early.
//!
//! **Invariant:** what was told and did not happen is a [`DemoError::Claim`] with what was seen
//! in its place, so the reader need not run anything again to know. Read next: the demo's front.

use std::io;

use crate::error::LabError;

/// An error of the demo.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The lab, the agent or a helper program failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A program that the demo shows is not installed.
    #[error("the demo needs {tool}: `cargo xtask doctor --fix` installs it")]
    MissingTool {
        /// The program's name.
        tool: &'static str,
    },
    /// Something was not as told.
    #[error("not as told: {claim}\nseen instead: {seen}")]
    Claim {
        /// What should have been so.
        claim: String,
        /// What was so.
        seen: String,
    },
    /// The screen could not be written to.
    #[error("write to the screen")]
    Screen(#[from] io::Error),
}

/// Checks a claim; `seen` is asked only if it does not hold.
pub(super) fn claim(
    holds: bool,
    claim: impl Into<String>,
    seen: impl FnOnce() -> String,
) -> Result<(), DemoError> {
    if holds {
        return Ok(());
    }
    Err(DemoError::Claim {
        claim: claim.into(),
        seen: seen(),
    })
}
