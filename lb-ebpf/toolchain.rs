// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds, by probing, what compiles Rust for the BPF target on this machine.
//!
//! Two ways exist, and the first that needs no download wins: a compiler that ships `core` for BPF
//! (distributions package one), or one with `rust-src`, whose `core` is built along (`build-std`).
//! **Invariant:** the standard library only, because lb-agent/build.rs and xtask both include this
//! file by path; nothing is installed here, that is what `cargo xtask doctor --fix` does.
//! Read next: lb-agent/build.rs.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Little-endian BPF: every machine the agent runs on today.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// BPF instruction set. `v3` has the 32-bit and atomic instructions (Linux 5.12 and later).
pub(crate) const TARGET_CPU: &str = "v3";
/// The linker that turns LLVM bitcode into an object the kernel's loader understands.
pub(crate) const LINKER: &str = "bpf-linker";

/// Where `core` for the BPF target comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    /// The compiler's sysroot has it.
    Prebuilt,
    /// It is compiled from the toolchain's `rust-src`.
    BuildStd,
}

/// A compiler and its cargo that can produce code for [`TARGET`].
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    /// The cargo to call.
    pub(crate) cargo: PathBuf,
    /// The compiler that cargo is told to use.
    pub(crate) rustc: PathBuf,
    /// Where its `core` comes from.
    pub(crate) core: Core,
    /// First line of `rustc --version`.
    pub(crate) version: String,
    sysroot: PathBuf,
}

/// Everything a build of the BPF programs needs.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// The compiler, with its cargo.
    pub(crate) compiler: Compiler,
    /// Path of [`LINKER`].
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// Probes the machine. The error is one sentence that says what to do.
    pub(crate) fn find() -> Result<Self, String> {
        Ok(Self {
            compiler: Compiler::find()?,
            linker: find_linker()?,
        })
    }

    /// `cargo <subcommand>` for the BPF target: a clean environment, then the target's flags.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.compiler.cargo);
        for (name, _) in env::vars_os() {
            if is_inherited_build_state(&name) {
                command.env_remove(&name);
            }
        }
        let mut flags = vec![
            format!("-Clinker={}", self.linker.display()),
            "-Clink-arg=--btf".to_owned(),
            "-Cdebuginfo=2".to_owned(),
            format!("-Ctarget-cpu={TARGET_CPU}"),
        ];
        command.arg(subcommand).args(["--target", TARGET]);
        if self.compiler.core == Core::BuildStd {
            command.args(["-Z", "build-std=core"]);
            // The sources of `core` hold warnings of their own on this target.
            flags.push("--cap-lints=warn".to_owned());
        }
        command
            .env("RUSTC", &self.compiler.rustc)
            // aya-ebpf and build-std use unstable features; this lets a stable compiler have them.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        let bin = self.compiler.cargo.parent();
        prepend(&mut command, "PATH", bin.map(Path::to_path_buf));
        // bpf-linker borrows LLVM from a Rust toolchain and looks for it on this path.
        prepend(&mut command, "LD_LIBRARY_PATH", llvm_dir(&self.compiler));
        command
    }

    /// One line for people: what compiles, and where `core` comes from.
    pub(crate) fn describe(&self) -> String {
        let core = match self.compiler.core {
            Core::Prebuilt => "prebuilt core",
            Core::BuildStd => "core from rust-src",
        };
        let Compiler { version, rustc, .. } = &self.compiler;
        format!(
            "{version} at {}, {core}, {TARGET} {TARGET_CPU}",
            rustc.display()
        )
    }
}

impl Compiler {
    /// The first compiler that has what it takes, those with a prebuilt `core` first.
    /// `LB_BPF_RUSTC` (and `LB_BPF_CARGO`) name one by hand.
    pub(crate) fn find() -> Result<Self, String> {
        if let Some(rustc) = env::var_os("LB_BPF_RUSTC").map(PathBuf::from) {
            let sysroot = sysroot(&rustc)
                .ok_or_else(|| format!("LB_BPF_RUSTC={} is no compiler", rustc.display()))?;
            return Self::with(rustc, sysroot).ok_or_else(|| {
                "LB_BPF_RUSTC names a compiler without core for BPF and without rust-src".to_owned()
            });
        }
        let mut found: Vec<Self> = candidates().filter_map(|(r, s)| Self::with(r, s)).collect();
        let best = found
            .iter()
            .position(|c| c.core == Core::Prebuilt)
            .unwrap_or(0);
        if found.is_empty() {
            return Err(format!(
                "no Rust compiler here has `core` for {TARGET}: run `cargo xtask doctor --fix`, \
                 or `rustup component add rust-src`"
            ));
        }
        Ok(found.swap_remove(best))
    }

    fn with(rustc: PathBuf, sysroot: PathBuf) -> Option<Self> {
        let rustlib = sysroot.join("lib/rustlib");
        let core = if has_file(&rustlib.join(TARGET).join("lib"), "libcore-") {
            Core::Prebuilt
        } else if rustlib.join("src/rust/library/core/Cargo.toml").is_file() {
            Core::BuildStd
        } else {
            return None;
        };
        let cargo = env::var_os("LB_BPF_CARGO").map(PathBuf::from);
        let cargo =
            cargo.or_else(|| Some(rustc.with_file_name("cargo")).filter(|c| c.is_file()))?;
        let version = output(Command::new(&rustc).arg("--version"))?;
        Some(Self {
            cargo,
            rustc,
            core,
            version,
            sysroot,
        })
    }
}

/// The path of [`LINKER`]: on the PATH, or where `cargo install` puts it.
pub(crate) fn find_linker() -> Result<PathBuf, String> {
    let cargo_home = home("CARGO_HOME", ".cargo").map(|home| home.join("bin"));
    path_dirs()
        .chain(cargo_home)
        .map(|dir| dir.join(LINKER))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{LINKER} is not installed: run `cargo xtask doctor --fix`"))
}

/// Compilers with their sysroots: rustup's toolchains by their folders (no process is started
/// for them), then what lies on the PATH and in /usr/bin.
fn candidates() -> impl Iterator<Item = (PathBuf, PathBuf)> {
    let rustup = rustup_toolchains()
        .into_iter()
        .map(|dir| (dir.join("bin/rustc"), dir));
    let usual = [PathBuf::from("/usr/bin"), PathBuf::from("/usr/local/bin")];
    let system = path_dirs().chain(usual).filter_map(|dir| {
        let rustc = dir.join("rustc");
        // A rustup proxy stands for a toolchain that the first list has.
        let proxy = dir.join("rustup").exists();
        let own = !proxy && rustc.is_file();
        let root = dir
            .parent()
            .filter(|root| root.join("lib/rustlib").is_dir())?;
        own.then(|| (rustc, root.to_path_buf()))
    });
    rustup.chain(system)
}

/// Folders of rustup's toolchains, the active one first.
fn rustup_toolchains() -> Vec<PathBuf> {
    let Some(root) = home("RUSTUP_HOME", ".rustup") else {
        return Vec::new();
    };
    let Ok(dirs) = fs::read_dir(root.join("toolchains")) else {
        return Vec::new();
    };
    let mut all: Vec<PathBuf> = dirs.flatten().map(|entry| entry.path()).collect();
    all.sort();
    let active = env::var_os("RUSTUP_TOOLCHAIN").unwrap_or_else(|| OsString::from("stable"));
    let active = active.to_string_lossy().into_owned();
    all.sort_by_key(|dir| {
        !dir.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&active))
    });
    all
}

/// The folder with an LLVM that bpf-linker can load: the compiler's own (never older than the
/// bitcode it is to read), else one of rustup's.
fn llvm_dir(compiler: &Compiler) -> Option<PathBuf> {
    let own = compiler.sysroot.join("lib");
    std::iter::once(own)
        .chain(rustup_toolchains().into_iter().map(|dir| dir.join("lib")))
        .find(|dir| has_file(dir, "librustc_driver-") && has_file(dir, "libLLVM"))
}

/// State of an outer cargo (a build script's environment, flags, wrappers) that would leak into
/// ours. Where crates come from, and how to reach it, is kept.
fn is_inherited_build_state(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let kept = ["CARGO_HOME", "CARGO_BUILD_JOBS", "CARGO_TERM_COLOR"].contains(&name.as_ref())
        || [
            "CARGO_HTTP_",
            "CARGO_NET_",
            "CARGO_REGISTR",
            "CARGO_SOURCE_",
        ]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    let leaks = name.starts_with("CARGO")
        || name.starts_with("RUSTC")
        || name.starts_with("DEP_")
        || name.starts_with("CLIPPY_")
        || [
            "RUSTFLAGS",
            "RUSTDOC",
            "RUSTDOCFLAGS",
            "RUSTUP_TOOLCHAIN",
            "MAKEFLAGS",
            "MFLAGS",
        ]
        .contains(&name.as_ref())
        || [
            "TARGET",
            "HOST",
            "OUT_DIR",
            "PROFILE",
            "OPT_LEVEL",
            "DEBUG",
            "NUM_JOBS",
        ]
        .contains(&name.as_ref());
    leaks && !kept
}

fn prepend(command: &mut Command, variable: &str, dir: Option<PathBuf>) {
    let Some(dir) = dir else { return };
    let old = env::var_os(variable).unwrap_or_default();
    let rest = env::split_paths(&old).filter(|path| !path.as_os_str().is_empty());
    if let Ok(joined) = env::join_paths(std::iter::once(dir).chain(rest)) {
        command.env(variable, joined);
    }
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    output(Command::new(rustc).args(["--print", "sysroot"])).map(PathBuf::from)
}

fn output(command: &mut Command) -> Option<String> {
    let done = command.output().ok().filter(|done| done.status.success())?;
    let text = String::from_utf8(done.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

fn has_file(dir: &Path, prefix: &str) -> bool {
    let Ok(entries) = fs::read_dir(dir) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
}

fn path_dirs() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).collect::<Vec<_>>().into_iter()
}

fn home(variable: &str, default: &str) -> Option<PathBuf> {
    let named = env::var_os(variable).map(PathBuf::from);
    named.or_else(|| env::home_dir().map(|home| home.join(default)))
}
