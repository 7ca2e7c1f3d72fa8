// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask demo`: from a fresh clone to a Service balanced in the kernel, with one command.
//!
//! **Invariant:** gets what is missing first, builds, and leaves everything else to `lb-lab demo`,
//! which also cleans up; an interrupt goes to it, this task only waits.
//! Read next: lb-lab/README.md.

use anyhow::Result;

use crate::doctor::{self, Scope};
use crate::process::{cargo, command, run, target_dir, wait_through_interrupts};

/// Builds, makes a cluster of network namespaces, and shows a Service balanced in the kernel.
///
/// Needs root. Gets what the machine lacks first, as `doctor --fix --for demo` does. Leaves nothing
/// behind, unless told to.
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Leave the cluster up, and print the commands to play in it
    #[arg(long)]
    keep: bool,
}

impl Demo {
    pub(crate) fn run(&self) -> Result<()> {
        doctor::require_privileges("the demo makes network namespaces and loads BPF programs")?;
        doctor::prepare(Scope::Demo)?;
        run(cargo("build").args(["--locked", "--package", "lb-agent", "--package", "lb-lab"]))?;
        let built = target_dir()?.join("debug");
        let mut demo = command(built.join("lb-lab"));
        demo.arg("demo").env("LB_AGENT", built.join("lb-agent"));
        if self.keep {
            demo.arg("--keep");
        }
        wait_through_interrupts()?;
        run(&mut demo)
    }
}
