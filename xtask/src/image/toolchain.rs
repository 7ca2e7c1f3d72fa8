// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds, by probing, what compiles a static program with musl as its C library.
//!
//! Two ways: a toolchain that has the standard library for the target (`rustup target add`), else one
//! with the library's sources, which are compiled along and linked with Debian's musl.
//! **Invariant:** nothing is installed here, that is what `cargo xtask doctor --fix --for image` does.
//! Read next: mod.rs, and lb-ebpf/toolchain.rs, which does the like for BPF.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{command, find_program, first_line, home};

/// Where Debian and musl's own installer put the C library.
const MUSL_DIRS: [&str; 2] = ["/usr/lib/ARCH-linux-musl", "/usr/local/musl/lib"];

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

/// Where the standard library for the target comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Std {
    /// The toolchain has it, with a C library and what starts a program.
    Prebuilt,
    /// It is compiled from sources; the C library is in this folder.
    Sources { musl: PathBuf },
}

/// A compiler, its cargo, and its standard library.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    pub(crate) arch: Arch,
    pub(crate) std: Std,
    /// Its folder, with bin and lib.
    root: PathBuf,
}

impl Toolchain {
    /// The first toolchain that has what it takes, those with a library that is compiled before others.
    pub(crate) fn find(arch: Arch) -> Result<Self> {
        let mut with_sources = None;
        for root in roots() {
            let rustlib = root.join("lib/rustlib");
            if has_file(&rustlib.join(arch.target()).join("lib"), "libstd-") {
                let std = Std::Prebuilt;
                return Ok(Self { arch, std, root });
            }
            let sources = rustlib.join("src/rust/library/std/Cargo.toml");
            if with_sources.is_none() && arch == Arch::own() && sources.is_file() {
                with_sources = Some(root);
            }
        }
        let (Some(root), Some(musl)) = (with_sources, musl_dir(arch)) else {
            bail!(
                "no Rust compiler here has the standard library for {0}: run `rustup target add {0}`",
                arch.target()
            );
        };
        let std = Std::Sources { musl };
        Ok(Self { arch, std, root })
    }

    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        let rustc = self.root.join("bin/rustc");
        let version = first_line(Command::new(&rustc).arg("--version"));
        let version = version.unwrap_or_else(|| rustc.display().to_string());
        match &self.std {
            Std::Prebuilt => format!("{version}, its own musl"),
            Std::Sources { musl } => {
                format!("{version}, std from sources, musl of {}", musl.display())
            }
        }
    }

    /// `cargo build` for the target. Paths of this machine do not get into the program.
    pub(crate) fn build(&self, work: &Path) -> Result<Command> {
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
        match &self.std {
            Std::Prebuilt if self.arch != Arch::own() => {
                // The toolchain's own linker knows every processor, as gcc does not.
                build.env(variable("LINKER"), "rust-lld");
            }
            Std::Prebuilt => {}
            Std::Sources { musl } => {
                let libraries = unwinder(&work.join("lib"))?;
                build.args(["-Z", "build-std=std,panic_abort"]);
                // Stable compilers have `build-std` behind this door only.
                build.env("RUSTC_BOOTSTRAP", "1");
                build.env(variable("LINKER"), self.arch.c_compiler());
                // musl-gcc starts programs of a fixed address only.
                flags.push("-Crelocation-model=static".to_owned());
                flags.push("-Clink-self-contained=no".to_owned());
                for folder in [&libraries, musl] {
                    flags.push(format!("-Lnative={}", folder.display()));
                }
            }
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

/// A folder with gcc's unwinder under the name by which Rust's library asks for it.
fn unwinder(folder: &Path) -> Result<PathBuf> {
    let mut ask = command("gcc");
    let path = first_line(ask.arg("-print-file-name=libgcc_eh.a"));
    let path = path.context("ask gcc for libgcc_eh.a: install gcc")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    fs::copy(&path, folder.join("libunwind.a")).with_context(|| format!("copy {path}"))?;
    Ok(folder.to_path_buf())
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

fn musl_dir(arch: Arch) -> Option<PathBuf> {
    find_program("musl-gcc")?;
    let dirs = MUSL_DIRS.map(|dir| PathBuf::from(dir.replace("ARCH", arch.machine())));
    dirs.into_iter().find(|dir| dir.join("libc.a").is_file())
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
