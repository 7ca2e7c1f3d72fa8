// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask doctor`: what is needed, whether it is there, and with `--fix` gets what is not.
//!
//! **Invariant:** state is probed, never remembered: a tool that was removed is missed at once, and
//! a second run changes nothing. When all is there, a probe for a verb takes well under a second.
//! Read next: needs.rs, the list itself.

mod fix;
mod kernel;
mod needs;
mod probe;
mod report;

use anyhow::{Result, bail};
use clap::ValueEnum;

use self::needs::{NEEDS, Need};
use self::probe::Found;

/// Says what this machine has of what the workspace needs, found where, needed for what.
///
/// Exits with 1 when something is missing. `--fix` installs it: as root on a Debian-like system by
/// apt, cargo's tools by cargo, BPF `core` by whichever of both has it. What only a person can do
/// is said in one sentence.
#[derive(clap::Args)]
pub(crate) struct Doctor {
    /// Install what is missing
    #[arg(long)]
    fix: bool,
    /// What the machine is to be able to do
    #[arg(long = "for", value_enum, default_value_t = Scope::All, value_name = "SCOPE")]
    scope: Scope,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// What somebody wants to do here; each need lists the scopes that cannot do without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scope {
    /// `cargo build`: compile the agent and its BPF programs
    Build,
    /// `cargo xtask demo`
    Demo,
    /// `cargo xtask test`
    Test,
    /// `cargo xtask lint`
    Lint,
    /// `cargo xtask helm`
    Helm,
    /// `cargo xtask image`
    Image,
    /// `cargo xtask image --program-only`
    Program,
    /// `cargo xtask test fresh`
    Fresh,
    /// `cargo xtask test vm`
    Vm,
    /// Everything
    All,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// A need and what the probe said.
struct Finding {
    need: &'static Need,
    found: Found,
}

impl Doctor {
    pub(crate) fn run(&self) -> Result<()> {
        let mut findings = probe_all(self.scope);
        if self.fix && findings.iter().any(Finding::is_missing) {
            fix::fix(&findings)?;
            findings = probe_all(self.scope);
        }
        match self.output {
            Format::Table => print!("{}", report::table(&findings)),
            Format::Json => println!("{}", report::json(&findings)),
        }
        let missing: Vec<_> = findings.iter().filter(|f| f.is_missing()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let fixable = missing.iter().any(|f| f.need.fix.is_automatic());
        let hint = if fixable && !self.fix {
            "; `--fix` installs what it can"
        } else {
            ""
        };
        bail!(
            "{} of {} needs are missing{hint}",
            missing.len(),
            findings.len()
        );
    }
}

impl Finding {
    fn is_missing(&self) -> bool {
        matches!(self.found, Found::No(_))
    }
}

/// What a verb calls first: gets what the scope needs, or fails with what a person must do.
pub(crate) fn prepare(scope: Scope) -> Result<()> {
    let missing = missing(scope);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|finding| finding.need.name).collect();
    eprintln!("doctor: missing here: {}", names.join(", "));
    fix::fix(&missing)?;
    let left = self::missing(scope);
    if left.is_empty() {
        return Ok(());
    }
    eprint!("{}", report::table(&left));
    bail!("this machine lacks what is listed above; `cargo xtask doctor` shows everything");
}

fn missing(scope: Scope) -> Vec<Finding> {
    // What only a person can change (privileges, the kernel) stops the verb where it matters.
    let automatic = NEEDS
        .iter()
        .filter(|need| need.serves(scope) && need.fix.is_automatic());
    automatic
        .map(|need| Finding {
            need,
            found: (need.probe)(need),
        })
        .filter(Finding::is_missing)
        .collect()
}

fn probe_all(scope: Scope) -> Vec<Finding> {
    let needs = NEEDS.iter().filter(|need| need.serves(scope));
    needs
        .map(|need| Finding {
            need,
            found: (need.probe)(need),
        })
        .collect()
}

/// Fails with a sentence where this process may not do what `why` says.
pub(crate) fn require_privileges(why: &str) -> Result<()> {
    let missing = missing_privileges();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "{why}, and this process lacks {}: run it as root, for example \
         `sudo -E env PATH=\"$PATH\" cargo xtask ...`",
        missing.join(", ")
    );
}

/// Names of the capabilities that tests and demo need and this process lacks.
pub(crate) fn missing_privileges() -> Vec<&'static str> {
    probe::missing_capabilities()
}
