// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs that go into machines.
//!
//! **Invariant:** optimised for whole runs: emulation makes everything about twenty times slower, and
//! unoptimised programs would take another factor of ten.
//! Read next: suites.rs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::super::plain::{self, Program};
use super::suites::{SUITES, Suite};
use crate::process::target_dir;

/// How the programs are compiled.
#[derive(Clone, Copy)]
pub(super) enum Profile {
    /// Unoptimised, as all tests are, so that nothing compiles once more: for the short list only.
    Usual,
    /// As a release, and compiled incrementally: what changed is soon compiled again.
    Machine,
}

impl Profile {
    /// The name that cargo knows it by, and that of its folder.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Usual => ("dev", "debug"),
            Self::Machine => ("machine", "machine"),
        }
    }
}

/// What was built.
pub(super) struct Build {
    pub(super) agent: PathBuf,
    programs: Vec<Program>,
}

impl Build {
    /// Builds the agent and the test programs of all suites.
    pub(super) fn make(profile: Profile) -> Result<Self> {
        let (profile, folder) = profile.names();
        let mut targets = vec!["--profile", profile, "--bin", "lb-agent"];
        for suite in &SUITES {
            targets.extend(["--test", suite.name]);
        }
        let programs = plain::build_these(&targets)?;
        Ok(Self {
            agent: target_dir()?.join(folder).join("lb-agent"),
            programs,
        })
    }

    pub(super) fn program(&self, suite: &Suite) -> Result<&Path> {
        let mut programs = self.programs.iter();
        programs
            .find(|program| program.is_test(suite.package, suite.name))
            .map(Program::path)
            .with_context(|| format!("cargo built no test {} of {}", suite.name, suite.package))
    }
}
