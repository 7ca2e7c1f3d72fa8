// SPDX-License-Identifier: MIT OR Apache-2.0
//! The image's only file: built static, and looked at whether it is.
//!
//! **Invariant:** a program that needs anything beside itself is refused here, not found out on a node.
//! Read next: toolchain.rs, who compiles it; archive.rs, where it goes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use object::Endianness;
use object::elf::{DT_NEEDED, EM_AARCH64, EM_X86_64, ET_DYN, FileHeader64, PT_DYNAMIC, PT_INTERP};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};

use super::toolchain::{Arch, Toolchain};
use crate::process::run;

/// A program that runs by itself.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// Whether the kernel may load it anywhere.
    pub(crate) movable: bool,
}

/// Builds the program below `work` and checks it.
pub(crate) fn build(toolchain: &Toolchain, work: &Path) -> Result<Program> {
    let target = work.join("build");
    let mut build = toolchain.build()?;
    build.args([
        "--locked",
        "--profile",
        "image",
        "--package",
        "lb-agent",
        "--bin",
        "lb-agent",
    ]);
    run(build.arg("--target-dir").arg(&target))?;
    let built = target.join(toolchain.arch.target()).join("image/lb-agent");
    let path = work.join("lb-agent");
    fs::copy(&built, &path).with_context(|| format!("write {}", path.display()))?;
    look_at(&path, toolchain.arch)
}

/// Checks that a program is one for `arch` and needs neither an interpreter nor a library.
pub(crate) fn look_at(path: &Path, arch: Arch) -> Result<Program> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let movable = check(&bytes, arch).with_context(|| format!("look at {}", path.display()))?;
    Ok(Program {
        path: path.to_path_buf(),
        bytes: u64::try_from(bytes.len())?,
        movable,
    })
}

/// Whether the kernel may load it anywhere; an error if it is not static.
fn check(bytes: &[u8], arch: Arch) -> Result<bool> {
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let machine = match arch {
        Arch::Amd64 => EM_X86_64,
        Arch::Arm64 => EM_AARCH64,
    };
    if header.e_machine(endian) != machine {
        bail!("it is no program for {}", arch.name());
    }
    for segment in header.program_headers(endian, bytes)? {
        match segment.p_type(endian) {
            PT_INTERP => bail!("it is not static: it needs an interpreter"),
            PT_DYNAMIC => {
                let entries = segment.dynamic(endian, bytes)?.unwrap_or_default();
                if entries.iter().any(|entry| entry.d_tag(endian) == DT_NEEDED) {
                    bail!("it is not static: it needs a library");
                }
            }
            _ => {}
        }
    }
    Ok(header.e_type(endian) == ET_DYN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_linked_with_libraries_is_refused() {
        // This test's own program is one.
        let own = std::env::current_exe().unwrap();
        let refused = look_at(&own, Arch::own()).unwrap_err();
        assert!(format!("{refused:#}").contains("not static"), "{refused:#}");
    }
}
