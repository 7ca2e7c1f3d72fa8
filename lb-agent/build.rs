// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiles the BPF programs of lb-ebpf, so that a plain `cargo build` is all it takes.
//!
//! The object lands in `OUT_DIR/lb-ebpf.o`; the loader includes it from there. Beside it lies
//! `lb-ebpf-bench.o`, which only the bench includes. The inner cargo has a target directory of its
//! own, because the outer one holds the lock of the usual one.
//! `LB_SKIP_BPF=1` writes empty objects instead: for editors and documentation.
//! Read next: lb-ebpf/toolchain.rs, which finds the compiler.

#[path = "../lb-ebpf/toolchain.rs"]
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::{env, fs};

/// What the object is made of, relative to the workspace.
const INPUTS: [&str; 7] = [
    "Cargo.toml",
    "lb-common/Cargo.toml",
    "lb-common/src",
    "lb-ebpf/Cargo.toml",
    "lb-ebpf/src",
    "lb-ebpf/toolchain.rs",
    "lb-agent/build.rs",
];

/// The programs of the packet path, and those that only `cargo xtask bench packet` runs.
const BINS: [&str; 2] = ["lb-ebpf", "lb-ebpf-bench"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            println!("cargo::error={sentence}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    let out = PathBuf::from(variable("OUT_DIR")?);
    for input in INPUTS {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    for name in ["LB_SKIP_BPF", "LB_BPF_RUSTC", "LB_BPF_CARGO"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let objects = BINS.map(|bin| out.join(bin).with_extension("o"));
    if env::var_os("LB_SKIP_BPF").is_some_and(|value| value != "0") {
        println!("cargo::rustc-env=LB_BPF_TOOLCHAIN=none (LB_SKIP_BPF)");
        return objects.iter().try_for_each(|object| write(object, &[]));
    }
    let toolchain = toolchain::Toolchain::find()?;
    println!("cargo::rustc-env=LB_BPF_TOOLCHAIN={}", toolchain.describe());
    let built = compile(&toolchain, &workspace, &out.join("bpf"))?;
    for (bin, object) in BINS.iter().zip(&objects) {
        let built = built.join(bin);
        let bytes = fs::read(&built).map_err(|e| format!("read {}: {e}", built.display()))?;
        write(object, &bytes)?;
    }
    Ok(())
}

/// Builds the programs and returns the folder with the ELF objects.
fn compile(
    toolchain: &toolchain::Toolchain,
    workspace: &Path,
    target_dir: &Path,
) -> Result<PathBuf, String> {
    // The features of this crate that are the programs' as well.
    let features = if env::var_os("CARGO_FEATURE_LAYOUT_NEXT").is_some() {
        "layout-next"
    } else {
        ""
    };
    let status = toolchain
        .cargo("build")
        .current_dir(workspace)
        .args(["--features", features])
        .args([
            "--package",
            "lb-ebpf",
            "--bins",
            "--profile",
            "bpf",
            "--locked",
        ])
        .arg("--target-dir")
        .arg(target_dir)
        .stdout(Stdio::null())
        .status()
        .map_err(|e| format!("start the cargo for BPF ({}): {e}", toolchain.describe()))?;
    if !status.success() {
        return Err(format!(
            "the BPF programs did not build ({status}; {}): the compiler's words are above",
            toolchain.describe()
        ));
    }
    Ok(target_dir.join(toolchain::TARGET).join("bpf"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|e| format!("write {}: {e}", path.display()))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("cargo did not set {name}: {e}"))
}
