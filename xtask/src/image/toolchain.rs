// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds, by probing, what compiles a static program with musl as its C library.
//!
//! A toolchain that has the standard library for the target: rustup's, after `rustup target add`.
//! **Invariant:** nothing is installed here, that is what `cargo xtask doctor --fix --for image` does.
//! Read next: mod.rs, and lb-ebpf/toolchain.rs, which does the like for BPF.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{command, first_line, home};

/// A processor that images are made for, in the three languages that name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// x86-64
    Amd64,
    /// 64-bit Arm
    Arm64,
}

impl Arch {
    /// This machine's.
    pub(crate) fn own() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Arm64
        } else {
            Self::Amd64
        }
    }

    /// As OCI names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust and Debian name it.
    pub(crate) const fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The target to compile for.
    pub(crate) fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.machine())
    }

    /// What compiles the C and assembly of dependencies, which need no C library.
    pub(crate) fn c_compiler(self) -> String {
        if self == Self::own() {
            "musl-gcc".to_owned()
        } else {
            format!("{}-linux-gnu-gcc", self.machine())
        }
    }
}

/// A compiler, its cargo, and its standard library for the target.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    pub(crate) arch: Arch,
    /// Its folder, with bin and lib.
    root: PathBuf,
}

impl Toolchain {
    /// The first toolchain that has what it takes.
    pub(crate) fn find(arch: Arch) -> Result<Self> {
        let has = |root: &PathBuf| {
            let target = root.join("lib/rustlib").join(arch.target());
            has_file(&target.join("lib"), "libstd-")
        };
        match roots().into_iter().find(has) {
            Some(root) => Ok(Self { arch, root }),
            None => bail!(
                "no Rust compiler here has the standard library for {0}: run `rustup target add {0}`",
                arch.target()
            ),
        }
    }

    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        let rustc = self.root.join("bin/rustc");
        let version = first_line(Command::new(&rustc).arg("--version"));
        version.unwrap_or_else(|| rustc.display().to_string())
    }

    /// `cargo build` for the target. Paths of this machine do not get into the program.
    pub(crate) fn build(&self) -> Result<Command> {
        let bin = self.root.join("bin");
        let mut build = command(bin.join("cargo"));
        build.args(["build", "--target", &self.arch.target()]);
        let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
        let hidden = [
            (crate::process::root(), "/lb"),
            (home("CARGO_HOME", ".cargo")?, "/cargo"),
            (self.root.clone(), "/rust"),
        ];
        for (folder, name) in hidden {
            flags.push(format!("--remap-path-prefix={}={name}", folder.display()));
        }
        let variable = |name: &str| {
            let target = self.arch.target().replace('-', "_");
            format!("CARGO_TARGET_{}_{name}", target.to_uppercase())
        };
        if self.arch != Arch::own() {
            // The toolchain's own linker knows every processor, as gcc does not.
            build.env(variable("LINKER"), "rust-lld");
        }
        let c_compiler = format!("CC_{}", self.arch.target().replace('-', "_"));
        build
            .env("RUSTC", bin.join("rustc"))
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env(c_compiler, self.arch.c_compiler())
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTUP_TOOLCHAIN");
        Ok(build)
    }
}

/// Folders of toolchains: rustup's, the one that runs this task first, then the system's.
fn roots() -> Vec<PathBuf> {
    let own = std::env::var_os("CARGO").map(PathBuf::from);
    let own = own.and_then(|cargo| Some(cargo.parent()?.parent()?.to_path_buf()));
    let mut roots: Vec<PathBuf> = own.into_iter().collect();
    if let Ok(rustup) = home("RUSTUP_HOME", ".rustup") {
        let dirs = fs::read_dir(rustup.join("toolchains"));
        let mut dirs: Vec<PathBuf> = dirs
            .into_iter()
            .flatten()
            .flatten()
            .map(|d| d.path())
            .collect();
        dirs.sort();
        roots.extend(dirs);
    }
    roots.extend(["/usr/local", "/usr"].map(PathBuf::from));
    roots.retain(|root| root.join("bin/rustc").is_file() && root.join("bin/cargo").is_file());
    roots
}

fn has_file(dir: &Path, prefix: &str) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name())
        .any(|name| name.to_string_lossy().starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_a_name_in_each_language() {
        assert_eq!(Arch::Amd64.target(), "x86_64-unknown-linux-musl");
        assert_eq!(Arch::Arm64.target(), "aarch64-unknown-linux-musl");
        assert_eq!(Arch::Arm64.name(), "arm64");
        let other = if Arch::own() == Arch::Amd64 {
            Arch::Arm64
        } else {
            Arch::Amd64
        };
        assert!(other.c_compiler().ends_with("-linux-gnu-gcc"));
    }
}
