// SPDX-License-Identifier: MIT OR Apache-2.0
//! Getting what is missing: apt first (cargo's installs need a C compiler), then rustup, pip, cargo.
//!
//! **Invariant:** one apt call for all packages; nothing outside the missing findings is touched.
//! Read next: needs.rs, which says what comes from where.

use anyhow::{Context as _, Result};

use super::needs::Fix;
use super::{Finding, report};
use crate::helm::tools;
use crate::image::Arch;
use crate::process::{cargo, command, find_program, first_line, is_root, quietly};

/// Debian's compiler with a prebuilt BPF `core`; bookworm and later, in the security archive.
const BPF_CORE_PACKAGES: [&str; 4] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "rust-web-llvm",
];

/// Installs what the findings miss. What cannot be installed here is said, not failed on: the
/// caller probes again and knows.
pub(crate) fn fix(findings: &[Finding]) -> Result<()> {
    let missing: Vec<_> = findings
        .iter()
        .filter(|finding| finding.is_missing())
        .collect();
    by_hand(&missing);
    let wants_core = missing
        .iter()
        .any(|finding| finding.need.fix == Fix::BpfCore);
    let mut packages: Vec<&str> = Vec::new();
    for finding in &missing {
        if let Fix::Apt(names) = finding.need.fix {
            packages.extend(names);
        }
    }
    if wants_core || !packages.is_empty() {
        packages = apt(packages, wants_core)?;
    }
    if wants_core && !packages.contains(&BPF_CORE_PACKAGES[0]) {
        rust_src()?;
    }
    for finding in &missing {
        match finding.need.fix {
            Fix::Chart => tools::get_helm()?,
            Fix::Validator => tools::get_validator()?,
            Fix::StaticStd => static_std()?,
            Fix::Apt(_) | Fix::Cargo { .. } | Fix::BpfCore | Fix::Person(_) => {}
        }
    }
    for finding in &missing {
        if let Fix::Cargo {
            package,
            version,
            args,
        } = finding.need.fix
        {
            let mut install = cargo("install");
            install
                .args(["--locked", "--version", version, package])
                .args(args);
            // A target folder or linker flags of this workspace are not meant for it.
            install
                .env_remove("CARGO_TARGET_DIR")
                .env_remove("RUSTFLAGS");
            quietly(&format!("cargo install {package} {version}"), &mut install)?;
        }
    }
    Ok(())
}

/// Says what no program can do.
fn by_hand(missing: &[&Finding]) {
    for finding in missing {
        if let Fix::Person(_) = finding.need.fix {
            eprintln!("doctor: {}", report::remedy_of(finding.need));
        }
    }
}

/// Installs the packages, with those for BPF `core` where the archive has them. Returns what was
/// installed.
fn apt(mut packages: Vec<&'static str>, wants_core: bool) -> Result<Vec<&'static str>> {
    if find_program("apt-get").is_none() || !is_root() {
        if !packages.is_empty() {
            let who = if is_root() {
                "with this system's packager"
            } else {
                "as root"
            };
            eprintln!("doctor: install {who}: {}", packages.join(" "));
        }
        return Ok(Vec::new());
    }
    let mut update = command("apt-get");
    quietly("apt-get update", update.args(["-q", "update"]))?;
    if wants_core && has_candidate(BPF_CORE_PACKAGES[2]) {
        packages.extend(BPF_CORE_PACKAGES);
    }
    // Some packages exist in some releases only: what the archive lacks is left to the next probe.
    packages.retain(|package| has_candidate(package));
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(packages);
    }
    let mut install = command("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Programs are wanted, not the servers that come with them: neither systemctl nor invoke-rc.d
        // starts one then.
        .env("SYSTEMD_OFFLINE", "1")
        .env("RUNLEVEL", "1")
        .args(["-q", "install", "-y", "--no-install-recommends"])
        .args(&packages);
    quietly(
        &format!("apt-get install {}", packages.join(" ")),
        &mut install,
    )?;
    Ok(packages)
}

/// Whether the archive offers the package.
fn has_candidate(package: &str) -> bool {
    let mut show = command("apt-cache");
    show.args(["show", "--no-all-versions", package]);
    first_line(&mut show).is_some_and(|line| line.starts_with("Package:"))
}

/// Gets the standard library for static programs.
fn static_std() -> Result<()> {
    if find_program("rustup").is_none() {
        eprintln!("doctor: rustup is not here to add a target");
        return Ok(());
    }
    let target = Arch::own().target();
    let mut add = command("rustup");
    add.args(["target", "add", &target]);
    quietly(&format!("rustup target add {target}"), &mut add)
        .context("get the library of static programs")
}

/// The other way to a BPF `core`: its sources, for the active toolchain.
fn rust_src() -> Result<()> {
    if find_program("rustup").is_none() {
        eprintln!(
            "doctor: no packaged compiler has BPF core and rustup is not here to add rust-src"
        );
        return Ok(());
    }
    let mut add = command("rustup");
    add.args(["component", "add", "rust-src"]);
    quietly("rustup component add rust-src", &mut add).context("get the sources of core")
}
