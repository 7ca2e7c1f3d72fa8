// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask <verb>`: everything that is done to this workspace, by people and by CI alike.
//!
//! This file is the list of verbs; each verb is one file (or folder) of the same name.
//! **Invariant:** depends on no crate of ours, and forbids unsafe code, so that it compiles first
//! and fast on a machine that has nothing but a Rust toolchain.
//! Read next: xtask/README.md, then doctor.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tasks speak to a person"
)]

mod background;
mod bench;
mod bless;
#[path = "../../lb-agent/tests/verifier/budget.rs"]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "comparing is left to the verifier gate")
)]
mod budget;
mod ci;
mod demo;
mod doctor;
mod fmt;
mod fresh;
mod helm;
mod image;
mod lint;
mod miri;
mod process;
mod table;
mod test;
mod tidy;
#[path = "../../lb-ebpf/toolchain.rs"]
mod toolchain;
mod verifier;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The tasks of the workspace. CI calls these and nothing else, so what is green here is green there.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Tasks {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Doctor(doctor::Doctor),
    Demo(demo::Demo),
    Test(test::Test),
    Lint(lint::Lint),
    Fmt(fmt::Fmt),
    Tidy(tidy::Tidy),
    Helm(helm::Helm),
    Verifier(verifier::Verifier),
    Bless(bless::Bless),
    Bench(bench::Bench),
    Image(image::Image),
    Miri(miri::Miri),
    Ci(ci::Ci),
}

fn main() -> ExitCode {
    let done = match Tasks::parse().verb {
        Verb::Doctor(verb) => verb.run(),
        Verb::Demo(verb) => verb.run(),
        Verb::Test(verb) => verb.run(),
        Verb::Lint(verb) => verb.run(),
        Verb::Fmt(verb) => verb.run(),
        Verb::Tidy(verb) => verb.run(),
        Verb::Helm(verb) => verb.run(),
        Verb::Verifier(verb) => verb.run(),
        Verb::Bless(verb) => verb.run(),
        Verb::Bench(verb) => verb.run(),
        Verb::Image(verb) => verb.run(),
        Verb::Miri(verb) => verb.run(),
        Verb::Ci(verb) => verb.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
