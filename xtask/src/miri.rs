// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask miri`: the shared contract and the pure packet path under Miri, in both byte orders.
//!
//! **Invariant:** no part of `test`: Miri is a component of rustup's nightly that not every machine
//! can have.
//! Read next: .github/workflows/ci.yml, where it runs.

use anyhow::{Result, bail};

use crate::process::{command, first_line, run};

/// A big-endian machine, where a forgotten byte order shows.
const BIG_ENDIAN: &str = "s390x-unknown-linux-gnu";

/// Runs the unit tests of lb-common and lb-ebpf under Miri, on this machine's byte order and on a
/// big-endian one.
#[derive(clap::Args)]
pub(crate) struct Miri {
    /// The toolchain that has the component
    #[arg(long, default_value = "nightly")]
    toolchain: String,
}

impl Miri {
    pub(crate) fn run(&self) -> Result<()> {
        let toolchain = format!("+{}", self.toolchain);
        // A proxy without its component answers too, with an error.
        if first_line(command("cargo").args([&toolchain, "miri", "--version"])).is_none() {
            bail!(
                "no Miri here: run `rustup toolchain install {} --component miri,rust-src`",
                self.toolchain
            );
        }
        for target in [&[][..], &["--target", BIG_ENDIAN]] {
            let mut miri = command("cargo");
            miri.args([&toolchain, "miri", "test", "--locked"])
                .args(["--package", "lb-common", "--package", "lb-ebpf", "--lib"])
                .args(target)
                // Fewer cases: an interpreter is some hundred times slower.
                .env("PROPTEST_CASES", "8")
                .env("MIRIFLAGS", "-Zmiri-disable-isolation");
            run(&mut miri)?;
        }
        Ok(())
    }
}
