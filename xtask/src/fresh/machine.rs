// SPDX-License-Identifier: MIT OR Apache-2.0
//! A bare machine: a minimal Debian root with rustup's toolchain and a clone of this repository.
//!
//! **Invariant:** mounts are made inside a mount namespace only, processes in a pid namespace, so both
//! are gone with the last command; removal never crosses into another file system.
//! Read next: archive.rs, for where the minimal root comes from.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result, bail};

use super::archive::Archive;
use crate::process::{cache_dir, command, first_line, home, quietly, root};

/// Where temporary roots lie, before the process id of their maker.
const PREFIX: &str = "lb-fresh-";
/// Where the clone lies on the bare machine.
const CLONE: &str = "/home/lb";
/// Where certificates lie that a variable names.
const CERTIFICATES: &str = "/usr/local/share/lb-certificates";
/// The programs that rustup's installer makes.
const PROXIES: [&str; 7] = [
    "cargo",
    "rustc",
    "rustdoc",
    "rustfmt",
    "cargo-fmt",
    "cargo-clippy",
    "clippy-driver",
];
/// Variables without which this machine's own cargo may not reach its registry.
const PASSED: [&str; 13] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "PIP_INDEX_URL",
    "TERM",
];
/// Beginnings of such variables.
const PASSED_PREFIXES: [&str; 4] = [
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_SOURCE_",
];
/// Mounts what every machine has (a root that is a mount, too), then becomes the command. `$1` is the root, `$2` the command. The
/// shell stays the first process of its namespace, so that interrupts reach the command.
const ENTER: &str = r#"
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t sysfs sys "$1/sys"
mount --rbind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/run"
mount -t cgroup2 none "$1/sys/fs/cgroup"
if grep -q ' bpf ' /proc/mounts; then mount -t bpf bpf "$1/sys/fs/bpf"; fi
exec chroot "$1" /bin/bash -c 'cd "$0" && { eval "$1"; }; exit $?' "$3" "$2"
"#;

/// A bare machine, removed on drop.
pub(super) struct Machine {
    dir: PathBuf,
    kept: bool,
}

impl Machine {
    /// Unpacks the minimal root (made on the first call), and brings toolchain and clone.
    pub(super) fn make(offline_crates: bool) -> Result<Self> {
        remove_stale();
        let archive = Archive::of_this_machine()?;
        let base = base(&archive)?;
        let dir = env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let machine = Self { dir, kept: false };
        let mut unpack = command("tar");
        unpack.arg("-xpf").arg(&base).arg("-C").arg(&machine.dir);
        quietly("unpack the minimal root", &mut unpack)?;
        machine.reach_the_archives(&archive)?;
        machine.add_toolchain()?;
        if offline_crates {
            machine.add_crates()?;
        }
        let mut clone = command("git");
        clone.args(["clone", "--quiet", "--no-local", "--depth", "1"]);
        clone
            .arg(format!("file://{}", root().display()))
            .arg(machine.inside(CLONE));
        quietly("clone the committed state", &mut clone)?;
        Ok(machine)
    }

    /// Runs a line as a person would type it in the clone, as root, with its output shown.
    pub(super) fn run(&self, line: &str) -> Result<ExitStatus> {
        let mut enter = Command::new("unshare");
        enter.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--uts",
            "--ipc",
        ]);
        enter
            .args(["sh", "-c", ENTER, "sh"])
            .arg(&self.dir)
            .args([line, CLONE]);
        enter.env_clear();
        for (name, value) in passed_variables() {
            enter.env(name, certificate(&value));
        }
        enter
            .env("HOME", "/root")
            .env("USER", "root")
            .env("LANG", "C.UTF-8");
        enter.env("LB_REQUIRE_BPF", "1");
        let usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        enter.env("PATH", format!("/root/.cargo/bin:{usual}"));
        enter.status().context("enter the bare machine")
    }

    /// Leaves the files on disk.
    pub(super) fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.dir.clone()
    }

    fn inside(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.dir.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Names, certificates and apt's settings of this machine.
    fn reach_the_archives(&self, archive: &Archive) -> Result<()> {
        let mut files = vec![
            PathBuf::from("/etc/resolv.conf"),
            PathBuf::from("/etc/hosts"),
        ];
        files.push(PathBuf::from("/etc/ssl/certs/ca-certificates.crt"));
        files.extend(archive.files.iter().cloned());
        for file in files.iter().filter(|file| file.is_file()) {
            let to = self.inside(file);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            }
            // A link (resolv.conf often is one) must not be written through.
            drop(fs::remove_file(&to));
            fs::copy(file, &to).with_context(|| format!("copy {}", file.display()))?;
        }
        if archive
            .files
            .iter()
            .any(|file| file.starts_with("/etc/apt/sources.list.d"))
        {
            // debootstrap wrote the same archive a second time.
            drop(fs::remove_file(self.inside("/etc/apt/sources.list")));
        }
        Ok(())
    }

    /// rustup, its proxies and the active toolchain: what its installer leaves, and nothing else.
    fn add_toolchain(&self) -> Result<()> {
        let active = first_line(command("rustup").args(["show", "active-toolchain"]))
            .context("rustup has no active toolchain")?;
        let active = active.split_whitespace().next().unwrap_or(&active);
        let rustup_home = home("RUSTUP_HOME", ".rustup")?;
        let (bin, toolchains) = (self.inside("/root/.cargo/bin"), "/root/.rustup/toolchains");
        for dir in [&bin, &self.inside(toolchains)] {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let rustup = home("CARGO_HOME", ".cargo")?.join("bin/rustup");
        let rustup = fs::canonicalize(&rustup)
            .with_context(|| format!("find rustup at {}", rustup.display()))?;
        fs::copy(&rustup, bin.join("rustup")).context("copy rustup")?;
        for proxy in PROXIES {
            symlink("rustup", bin.join(proxy)).with_context(|| format!("make {proxy}"))?;
        }
        let settings =
            format!("default_toolchain = \"{active}\"\nprofile = \"default\"\nversion = \"12\"\n");
        fs::write(self.inside("/root/.rustup/settings.toml"), settings)
            .context("write rustup's settings")?;
        let from = rustup_home.join("toolchains").join(active);
        let from = fs::canonicalize(&from).with_context(|| format!("find {}", from.display()))?;
        let to = self.inside(toolchains).join(active);
        let mut copy = command("cp");
        copy.args(["-a", "--reflink=auto"]).arg(from).arg(to);
        quietly("copy the toolchain", &mut copy)
    }

    /// The crates that this user's cargo has downloaded.
    fn add_crates(&self) -> Result<()> {
        let registry = home("CARGO_HOME", ".cargo")?.join("registry");
        let to = self.inside("/root/.cargo/registry");
        fs::create_dir_all(&to).with_context(|| format!("make {}", to.display()))?;
        let mut copy = command("cp");
        copy.args(["-a", "--reflink=auto"]);
        copy.args([registry.join("cache"), registry.join("index")])
            .arg(to);
        quietly("copy downloaded crates", &mut copy)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove(&self.dir)
        {
            eprintln!("{error:#}");
        }
    }
}

/// The variables of this machine that the bare one gets.
fn passed_variables() -> impl Iterator<Item = (String, OsString)> {
    env::vars_os().filter_map(|(name, value)| {
        let name = name.to_string_lossy().into_owned();
        let prefix = || {
            PASSED_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        (PASSED.contains(&name.as_str()) || prefix()).then_some((name, value))
    })
}

/// A variable's value on the bare machine: where it names a file, that file's copy, because the
/// packages of the bare machine write the usual places themselves.
fn certificate(value: &OsStr) -> OsString {
    let path = Path::new(value);
    match path.file_name() {
        Some(name) if path.is_absolute() && path.is_file() => {
            Path::new(CERTIFICATES).join(name).into_os_string()
        }
        _ => value.to_owned(),
    }
}

/// The minimal root as an archive in the user's cache, made on the first call.
fn base(archive: &Archive) -> Result<PathBuf> {
    let base = cache_dir()?.join(format!("minbase-{}.tar", archive.release));
    if base.is_file() {
        return Ok(base);
    }
    // Under the name that stale roots have, so that a killed run is cleaned up, too.
    let dir = env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
    let made = debootstrap(archive, &dir, &base);
    remove(&dir)?;
    made.map(|()| base)
}

fn debootstrap(archive: &Archive, dir: &Path, base: &Path) -> Result<()> {
    let mut make = command("debootstrap");
    // rustup's own installer cannot do without certificates, so every machine with rustup has them.
    make.args([
        "--variant=minbase",
        "--include=ca-certificates",
        &archive.release,
    ]);
    make.arg(dir).arg(&archive.mirror);
    quietly(
        &format!("debootstrap {} (once)", archive.release),
        &mut make,
    )?;
    let part = base.with_extension("part");
    let mut pack = command("tar");
    pack.arg("-cpf")
        .arg(&part)
        .arg("-C")
        .arg(dir)
        .args(["--one-file-system", "."]);
    quietly("pack the minimal root", &mut pack)?;
    fs::rename(&part, base).with_context(|| format!("keep {}", base.display()))
}

/// Removes roots whose makers are gone.
fn remove_stale() {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let numeric = pid.parse::<u32>().is_ok();
        if numeric
            && !Path::new("/proc").join(pid).exists()
            && let Err(error) = remove(&entry.path())
        {
            eprintln!("{error:#}");
        }
    }
}

fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = format!(" {}/", dir.display());
    if mounts.contains(&below) {
        bail!(
            "{} has mounts below it; unmount them, then remove it",
            dir.display()
        );
    }
    let mut remove = command("rm");
    remove.args(["-rf", "--one-file-system"]).arg(dir);
    quietly("remove the bare machine", &mut remove)
}
