// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test vm`: the same tests on other kernels, in virtual machines, as one table.
//!
//! For kernels older and newer than the running one, and for what a kernel may lack that has no modules,
//! such as SCTP sockets and VLAN devices.
//! **Invariant:** machines need no root and change nothing here but the cache and the target folder; a
//! test without a result, a panic and a machine that does not end are failures.
//! Read next: suites.rs, what runs; one.rs, a machine; kernel.rs, image.rs, boot.rs, what it is made of.

mod boot;
mod builds;
mod cache;
mod excerpt;
mod image;
mod kernel;
mod machines;
mod one;
mod own;
mod progress;
mod record;
mod report;
mod stage;
mod suites;
mod summary;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail};
use clap::ValueEnum as _;

use self::boot::Limits;
use self::builds::{Build, Profile};
use self::kernel::{Kernel, Release};
use self::machines::{Machine, Ran, Which, at_once, room};
use self::one::Common;
use self::progress::Board;
use self::record::Blessing;
use self::suites::{Chosen, Wish};
use crate::doctor::{self, Scope};
use crate::fresh::archive::Archive;
use crate::process::{interrupted, is_root, wait_through_interrupts};

/// How long a machine may take to come up.
const BOOT_LIMIT: Duration = Duration::from_mins(3);
/// How long all tests of a machine may take together.
const TESTS_LIMIT: Duration = Duration::from_mins(40);
/// The same of the short list, which takes three and is part of all tests.
const QUICK_LIMIT: Duration = Duration::from_mins(6);
/// The program whose tests are for machines only.
pub(super) const PROGRAM: &str = "vm";

/// Verifier, packets and end to end on other kernels, as a table
///
/// Fetches each of Debian's kernels once (into the user's cache folder) and boots it by software
/// emulation, with the agent and the tests inside; `own` is the running kernel. Needs a Debian on x86-64,
/// and root for `own`.
#[derive(clap::Args, Default)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct Vm {
    /// Kernels to try [default: all]
    #[arg(value_enum, value_name = "KERNEL")]
    kernels: Vec<Which>,
    /// Only tests whose names contain this, or those of a program or a row of the table
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Only what `all` runs on two of the kernels
    #[arg(long)]
    quick: bool,
    /// Take what comes out as what is expected: the numbers of the verifier, and the tables in the READMEs
    #[arg(long, conflicts_with = "quick")]
    bless: bool,
    /// Why the verifier needs more than before; --bless asks for it then
    #[arg(long, value_name = "TEXT", requires = "bless")]
    reason: Option<String>,
    /// Run nothing: show the table and the failures of what machines said last, each with its age
    #[arg(long, conflicts_with_all = ["bless", "fetch", "loud"])]
    last: bool,
    /// Fetch the kernels anew
    #[arg(long)]
    fetch: bool,
    /// Show the machines' serial lines
    #[arg(long)]
    loud: bool,
}

/// Why there cannot be machines here, whatever anybody does about it.
pub(super) fn impossible() -> Option<&'static str> {
    if std::env::consts::ARCH != "x86_64" {
        return Some("needs x86-64: the machines are emulated for that only");
    }
    (!Archive::is_of_debian()).then_some("needs a Debian, whose archive has the kernels")
}

/// Whether there can be machines here; an error says why not.
fn possible() -> Result<()> {
    if let Some(why) = impossible() {
        bail!(why);
    }
    Archive::of_this_machine().context("find Debian's archive, which has the kernels")?;
    Ok(())
}

/// Runs the short list on the oldest and on the newest kernel, as a stage of all tests; gives how many
/// passed and failed.
pub(super) fn quick() -> Result<(u64, u64)> {
    let vm = Vm {
        kernels: vec![Which::Debian(Release::V5_10), Which::Debian(Release::V7)],
        quick: true,
        ..Vm::default()
    };
    possible()?;
    vm.on_all()
}

impl Vm {
    pub(crate) fn run(&self) -> Result<()> {
        wait_through_interrupts()?;
        possible()?;
        match self.on_all()? {
            (_, 0) => Ok(()),
            (_, failed) => bail!("{failed} failed"),
        }
    }

    /// Runs the tests on all kernels; gives how many passed and what failed.
    fn on_all(&self) -> Result<(u64, u64)> {
        let kernels = self.kernels();
        if kernels.contains(&Which::Own) && !self.last && !is_root() {
            bail!(
                "tests on the running kernel (`own`) need root: run this as root, for example \
                 `sudo -E env PATH=\"$PATH\" cargo xtask test vm`, or name the other kernels"
            );
        }
        // What is only read needs no machines, but the list of tests.
        doctor::prepare(if self.last { Scope::Build } else { Scope::Vm })?;
        let build = Build::make(if self.quick {
            Profile::Usual
        } else {
            Profile::Machine
        })?;
        let wish = Wish {
            quick: self.quick,
            only: self.only.as_deref(),
        };
        let chosen = suites::choose(&build, wish)?;
        let machines = self.machines(&kernels, &build, &chosen)?;
        let planned = kernels.len() * chosen.len();
        let left_out = planned - machines.len();
        let ran = Ran::by_kernel(&kernels, machines);
        let (passed, mut failed) = summary::finish(&ran, &chosen);
        if left_out > 0 {
            eprintln!("interrupted: {left_out} of {planned} machines did not run");
            failed += left_out as u64;
        }
        if self.bless {
            self.take(&kernels, &ran, &chosen, failed)?;
        }
        Ok((passed, failed))
    }

    fn kernels(&self) -> Vec<Which> {
        let mut kernels = self.kernels.clone();
        if kernels.is_empty() {
            kernels = Which::value_variants().to_vec();
        }
        kernels.sort_unstable();
        kernels.dedup();
        kernels
    }

    /// Takes what came out as what is expected, and says what of it.
    fn take(&self, kernels: &[Which], ran: &[Ran], chosen: &[Chosen], failed: u64) -> Result<()> {
        if failed > 0 {
            eprintln!("nothing was blessed, because {failed} failed: mend that and run this again");
            return Ok(());
        }
        let blessing = Blessing {
            ran,
            results: &summary::table(ran, chosen),
            all_kernels: kernels == Which::value_variants(),
            only: self.only.is_some(),
            reason: self.reason.as_deref(),
        };
        for sentence in blessing.take()? {
            eprintln!("{sentence}");
        }
        Ok(())
    }

    /// A machine for each kernel and each suite, as far as nobody interrupts.
    fn machines(
        &self,
        kernels: &[Which],
        build: &Build,
        chosen: &[Chosen],
    ) -> Result<Vec<Machine>> {
        let missing = self.fetch_all(kernels);
        let board = Board::new(self.loud);
        let common = Common {
            build,
            board: &board,
            limits: Limits {
                boot: BOOT_LIMIT,
                tests: if self.quick { QUICK_LIMIT } else { TESTS_LIMIT },
            },
            bless: self.bless,
            last: self.last,
        };
        let run = |(which, chosen): (Which, &Chosen)| match missing.get(&which) {
            Some(error) => Machine::lost(which, chosen.suite.name, PathBuf::new(), error),
            None => common.on(which, chosen),
        };
        let jobs = kernels
            .iter()
            .flat_map(|which| chosen.iter().map(|chosen| (*which, chosen)));
        let (own, machines): (Vec<_>, Vec<_>) = jobs.partition(|(which, _)| *which == Which::Own);
        let mut done = at_once(machines, room(), interrupted, &run)?;
        // Alone: here bounds are as tight as in other tests.
        done.extend(at_once(own, 1, interrupted, &run)?);
        Ok(done)
    }

    /// Gets the kernels, one after the other and before several machines could want the same; gives
    /// those that are not to be had.
    fn fetch_all(&self, kernels: &[Which]) -> BTreeMap<Which, Error> {
        let mut missing = BTreeMap::new();
        for which in kernels {
            if let Which::Debian(release) = which
                && !self.last
                && !interrupted()
                && let Err(error) = Kernel::get(*release, self.fetch)
            {
                missing.insert(*which, error);
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        vm: Vm,
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        Typed::command().debug_assert();
        let parses = |words: &[&str]| Typed::try_parse_from([&["vm"], words].concat());
        for wrong in [
            ["--last", "--bless"],
            ["--last", "--fetch"],
            ["--bless", "--quick"],
            ["5.10", "--reason=x"],
        ] {
            assert!(parses(&wrong).is_err(), "{wrong:?}");
        }
        let typed = parses(&["own", "5.10", "own", "--bless", "--reason=x"]);
        let kernels = typed.map(|typed| typed.vm.kernels()).ok();
        assert_eq!(
            kernels,
            Some(vec![Which::Debian(Release::V5_10), Which::Own])
        );
    }
}
