// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looking for things: one function per kind of need.
//!
//! **Invariant:** looking changes nothing, and starts as few processes as it can, because verbs
//! probe before each run; versions are asked for only when a table is printed.
//! Read next: report.rs.

use std::path::{Path, PathBuf};

use super::needs::Need;
use crate::helm::tools;
use crate::image::{Arch, Toolchain};
use crate::process::{command, find_program, first_line, status_field};
use crate::toolchain::{Compiler, Core, find_linker};

/// Capabilities by their bit numbers in linux/capability.h.
const CAPABILITIES: [(u32, &str); 3] = [
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    (39, "CAP_BPF"),
];

/// What a probe says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A program, whose version can be asked for.
    Program(PathBuf),
    /// Something else; the words say what and where.
    Yes(String),
    /// Not here; the words say why.
    No(String),
}

pub(crate) fn program(need: &Need) -> Found {
    match find_program(need.name) {
        Some(path) => Found::Program(path),
        None => Found::No("not on the PATH".to_owned()),
    }
}

pub(crate) fn rust(_: &Need) -> Found {
    // This very program was compiled by it.
    std::env::var_os("CARGO").map_or_else(
        || program_named("cargo"),
        |cargo| Found::Program(PathBuf::from(cargo).with_file_name("rustc")),
    )
}

fn program_named(name: &str) -> Found {
    find_program(name).map_or_else(|| Found::No("not on the PATH".to_owned()), Found::Program)
}

pub(crate) fn bpf_core(_: &Need) -> Found {
    match Compiler::find() {
        Ok(compiler) => {
            let way = match compiler.core {
                Core::Prebuilt => "prebuilt",
                Core::BuildStd => "from rust-src",
            };
            Found::Yes(format!(
                "{} ({}, {way})",
                compiler.rustc.display(),
                compiler.version
            ))
        }
        Err(why) => Found::No(why),
    }
}

pub(crate) fn bpf_linker(_: &Need) -> Found {
    find_linker().map_or_else(Found::No, Found::Program)
}

/// Clippy must come from the compiler that has BPF `core`: metadata of another is refused.
pub(crate) fn bpf_clippy(_: &Need) -> Found {
    let Ok(compiler) = Compiler::find() else {
        return Found::No("no compiler with BPF core".to_owned());
    };
    let driver = compiler.rustc.with_file_name("clippy-driver");
    if driver.is_file() && compiler.cargo.with_file_name("cargo-clippy").is_file() {
        Found::Yes(driver.display().to_string())
    } else {
        Found::No(format!("{} has none", compiler.rustc.display()))
    }
}

/// The standard library for programs of this machine that need no other library.
pub(crate) fn static_std(_: &Need) -> Found {
    match Toolchain::find(Arch::own()) {
        Ok(toolchain) => Found::Yes(toolchain.describe()),
        Err(why) => Found::No(format!("{why:#}")),
    }
}

/// Python with what makes a folder of packages; where that folder is made, its own is enough.
pub(crate) fn python(need: &Need) -> Found {
    if let Some(python) = tools::python().filter(|_| tools::helm().is_some()) {
        return Found::Program(python);
    }
    let Found::Program(path) = program(need) else {
        return Found::No("not on the PATH".to_owned());
    };
    let mut import = command(&path);
    import.args(["-c", "import ensurepip, venv; print()"]);
    if first_line(&mut import).is_some() {
        Found::Program(path)
    } else {
        Found::No(format!("{} has no ensurepip", path.display()))
    }
}

pub(crate) fn helm(_: &Need) -> Found {
    tools::helm().map_or_else(|| Found::No("not in the cache".to_owned()), Found::Program)
}

pub(crate) fn validator(_: &Need) -> Found {
    match tools::python() {
        Some(python) => Found::Yes(python.display().to_string()),
        None => Found::No("not in the cache".to_owned()),
    }
}

pub(crate) fn kernel_btf(_: &Need) -> Found {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    if path.exists() {
        Found::Yes(path.display().to_string())
    } else {
        Found::No(format!("no {}", path.display()))
    }
}

pub(crate) fn privileges(_: &Need) -> Found {
    let missing = missing_capabilities();
    if missing.is_empty() {
        Found::Yes(CAPABILITIES.map(|(_, name)| name).join(" "))
    } else {
        Found::No(format!("no {}", missing.join(" ")))
    }
}

/// Names of the capabilities that this process lacks.
pub(crate) fn missing_capabilities() -> Vec<&'static str> {
    let effective = status_field("CapEff:").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    missing_in(effective.unwrap_or(0))
}

fn missing_in(effective: u64) -> Vec<&'static str> {
    let absent = |bit: &u32| effective & (1 << bit) == 0;
    CAPABILITIES
        .iter()
        .filter(|(bit, _)| absent(bit))
        .map(|(_, name)| *name)
        .collect()
}

pub(crate) fn bpffs(_: &Need) -> Found {
    filesystem("bpf")
}

pub(crate) fn cgroup2(_: &Need) -> Found {
    match mounted("cgroup2") {
        Some(place) => Found::Yes(place),
        None => Found::No("not mounted".to_owned()),
    }
}

/// A file system that is mounted, or that the kernel can mount.
fn filesystem(kind: &str) -> Found {
    if let Some(place) = mounted(kind) {
        return Found::Yes(place);
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known
        .lines()
        .any(|line| line.split_whitespace().last() == Some(kind))
    {
        Found::Yes("the kernel can mount it".to_owned())
    } else {
        Found::No("the kernel does not know it".to_owned())
    }
}

fn mounted(kind: &str) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounted_in(&mounts, kind)
}

fn mounted_in(mounts: &str, kind: &str) -> Option<String> {
    let mut fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.find(|line| line.get(2) == Some(&kind))?;
    found.get(1).map(|place| (*place).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_kind_not_by_its_name() {
        let mounts = "cgroup2 /a tmpfs rw 0 0\nnone /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            mounted_in(mounts, "cgroup2").as_deref(),
            Some("/sys/fs/cgroup/unified")
        );
        assert_eq!(mounted_in(mounts, "bpf"), None);
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_in(u64::MAX), Vec::<&str>::new());
        assert_eq!(missing_in(1 << 39), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    }
}
