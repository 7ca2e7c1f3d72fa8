// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian's kernels, as packages: fetched once, unpacked, and made ready to be booted.
//!
//! Exact versions disappear from the archive, so each is found by the package that depends on it.
//! **Invariant:** nothing is installed; a kernel is in the user's cache folder as a whole or not at
//! all, one that works stays until another is whole, and the packages are signed by the archive's keyring.
//! Read next: cache.rs; image.rs, which takes modules from here.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::cache::{beside, swap, sweep};
use crate::fresh::archive::Archive;
use crate::process::{cache_dir, command, quietly};

/// Who signs the archive.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that Debian has as a package for virtual machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Release {
    /// Debian 11
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12
    #[value(name = "6.1")]
    V6_1,
    /// Debian 12 with the kernel of Debian 13
    #[value(name = "6.12")]
    V6_12,
    /// The newest in Debian's next release
    #[value(name = "7")]
    V7,
}

impl Release {
    /// As it is typed and shown.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7 => "7",
        }
    }

    /// Debian's release, whether security updates are there, and the package that always depends on
    /// the newest image.
    const fn package(self) -> (&'static str, bool, &'static str) {
        match self {
            Self::V5_10 => ("bullseye", true, "linux-image-cloud-amd64"),
            Self::V6_1 => ("bookworm", true, "linux-image-cloud-amd64"),
            Self::V6_12 => ("bookworm", true, "linux-image-6.12-cloud-amd64"),
            Self::V7 => ("forky", false, "linux-image-cloud-amd64"),
        }
    }
}

/// A kernel that can be booted.
pub(super) struct Kernel {
    /// As `uname -r` has it.
    pub(super) version: String,
    /// The kernel itself, an ELF file.
    pub(super) vmlinux: PathBuf,
    /// The folder that holds `lib/modules`.
    pub(super) base: PathBuf,
}

impl Kernel {
    /// The kernel from the cache, fetched at first or when it is asked for anew.
    pub(super) fn get(release: Release, anew: bool) -> Result<Self> {
        let cache = cache_dir()?;
        let dir = cache.join(format!("kernel-{}", release.name()));
        if anew || !dir.is_dir() {
            sweep(&cache)?;
            let part = beside(&dir, "part");
            // One that this process began before is not whole.
            if part.exists() {
                fs::remove_dir_all(&part).with_context(|| format!("remove {}", part.display()))?;
            }
            make(release, &part)?;
            swap(&part, &dir, anew)?;
        }
        let (base, version) = modules_of(&dir)?;
        Ok(Self {
            version,
            vmlinux: dir.join("vmlinux"),
            base,
        })
    }

    /// The modules that these need, themselves included, in the order of loading; what is built in
    /// is left out.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            let mut probe = command("modprobe");
            probe.arg("-d").arg(&self.base);
            probe.args(["-S", &self.version, "-D", name]);
            let output = probe.output().context("start modprobe")?;
            if !output.status.success() {
                bail!("Linux {} has no module {name}", self.version);
            }
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            for file in text.lines().filter_map(insmod) {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// The file of a line `insmod FILE [PARAMETERS]`.
fn insmod(line: &str) -> Option<PathBuf> {
    let file = line.strip_prefix("insmod ")?.split_whitespace().next()?;
    Some(file.into())
}

/// Fetches and unpacks a kernel into a new folder.
fn make(release: Release, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let packages = fetch(release, dir)?;
    for package in &packages {
        let mut unpack = command("dpkg");
        unpack.arg("-x").arg(package).arg(dir.join("root"));
        quietly("unpack a kernel package", &mut unpack)?;
        fs::remove_file(package).with_context(|| format!("remove {}", package.display()))?;
    }
    let (base, version) = modules_of(dir)?;
    let mut depmod = command("depmod");
    depmod.arg("-b").arg(&base).arg(&version);
    quietly("depmod", &mut depmod)?;
    // Newer packages have the image among the modules.
    let places = [
        dir.join("root/boot").join(format!("vmlinuz-{version}")),
        base.join("lib/modules").join(&version).join("vmlinuz"),
    ];
    let image = places.iter().find(|place| place.is_file());
    let image = image.with_context(|| format!("find the image of Linux {version}"))?;
    extract(image, &dir.join("vmlinux"))
}

/// Downloads the packages of a kernel by an apt of its own, which knows no other source.
fn fetch(release: Release, dir: &Path) -> Result<Vec<PathBuf>> {
    let archive = Archive::of_this_machine()?;
    let (suite, has_security, meta) = release.package();
    let source =
        |mirror: &str, suite: &str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    let mut sources = source(&archive.mirror, suite);
    if has_security {
        let mirror = archive.security_mirror()?;
        sources += &source(&mirror, &format!("{suite}-security"));
    }
    let apt = dir.join("apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        let folder = apt.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let settings = format!(
        "Dir::Etc::sourcelist \"{apt}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
         Dir::State::lists \"{apt}/lists\";\nDir::State::status \"/dev/null\";\n\
         Dir::Cache \"{apt}/cache\";\nAcquire::Languages \"none\";\nAPT::Sandbox::User \"root\";\n\
         APT::Architecture \"amd64\";\nAPT::Get::AllowUnauthenticated \"false\";\n\
         Acquire::AllowInsecureRepositories \"false\";\n",
        apt = apt.display()
    );
    let write = |name: &str, text: &str| {
        let path = apt.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("sources.list", &sources)?;
    write("apt.conf", &settings)?;
    let with_settings = |program: &str| {
        let mut apt_program = command(program);
        apt_program.env("APT_CONFIG", apt.join("apt.conf"));
        apt_program
    };
    let label = format!("apt-get update for Linux {}", release.name());
    quietly(&label, with_settings("apt-get").args(["-q", "update"]))?;
    let depends = |package: &str, wanted: fn(&str) -> bool| -> Result<Vec<String>> {
        let mut ask = with_settings("apt-cache");
        let output = ask.args(["depends", "--important", package]).output();
        let output = output.context("start apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(dependencies(&text, wanted))
    };
    let image = depends(meta, |name| name.starts_with("linux-image"))?;
    let image = image
        .first()
        .with_context(|| format!("{suite} has no {meta}"))?;
    // Newer images come in parts.
    let mut packages = depends(image, |name| {
        ["linux-binary-", "linux-modules-", "linux-base-"]
            .iter()
            .any(|part| name.starts_with(part))
    })?;
    packages.push(image.clone());
    let mut download = with_settings("apt-get");
    download
        .args(["-q", "download"])
        .args(&packages)
        .current_dir(dir);
    quietly(&format!("download {image}"), &mut download)?;
    fs::remove_dir_all(&apt).with_context(|| format!("remove {}", apt.display()))?;
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths
        .filter(|path| path.extension().is_some_and(|e| e == "deb"))
        .collect())
}

/// The names in lines `  Depends: NAME` that are wanted.
fn dependencies(text: &str, wanted: fn(&str) -> bool) -> Vec<String> {
    let names = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    names
        .filter(|name| wanted(name))
        .map(str::to_owned)
        .collect()
}

/// The folder with `lib/modules` in an unpacked kernel, and the version that lies in there.
fn modules_of(dir: &Path) -> Result<(PathBuf, String)> {
    for base in [dir.join("root"), dir.join("root/usr")] {
        let Ok(entries) = fs::read_dir(base.join("lib/modules")) else {
            continue;
        };
        if let Some(entry) = entries.flatten().next() {
            return Ok((base, entry.file_name().to_string_lossy().into_owned()));
        }
    }
    bail!("no modules in {}", dir.display())
}

/// Takes the ELF file out of a compressed image, which saves the machine doing so at every boot.
fn extract(image: &Path, vmlinux: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let payload =
        payload(&bytes).with_context(|| format!("find the kernel in {}", image.display()))?;
    let (program, args): (&str, &[&str]) = match payload {
        [0xfd, b'7', b'z', ..] => ("xz", &["-dc", "--single-stream"]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dcq"]),
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"]),
        [0x02, 0x21, b'L', 0x18, ..] => ("lz4", &["-dcq"]),
        _ => bail!("{} is compressed in an unknown way", image.display()),
    };
    let file =
        fs::File::create(vmlinux).with_context(|| format!("create {}", vmlinux.display()))?;
    let mut unpack = Command::new(program);
    unpack
        .args(args)
        .stdin(Stdio::piped())
        .stdout(file)
        .stderr(Stdio::null());
    let mut child = unpack.spawn().with_context(|| format!("start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Behind the stream lies the kernel's length, of which some complain; the result is what counts.
        drop(stdin.write_all(payload));
    }
    child
        .wait()
        .with_context(|| format!("wait for {program}"))?;
    let start = fs::read(vmlinux).with_context(|| format!("read {}", vmlinux.display()))?;
    let length = payload.last_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    if !start.starts_with(b"\x7fELF") || u32::try_from(start.len()).ok() != length {
        bail!("{program} found no whole ELF file in {}", image.display());
    }
    Ok(())
}

/// The compressed kernel in a bzImage, by the header of the x86 boot protocol (2.08 and later).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    // The setup code comes first, in sectors of 512 bytes, one more than the header says.
    let setup = (usize::from(*image.get(0x1f1)?) + 1) * 512;
    let start = setup + word(0x248)?;
    image.get(start..start + word(0x24c)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_in_a_boot_image() {
        let mut image = vec![0; 0x800];
        image[0x1f1] = 1;
        assert_eq!(payload(&image), None);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&8_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&3_u32.to_le_bytes());
        image[1024 + 8..1024 + 11].copy_from_slice(b"xyz");
        assert_eq!(payload(&image), Some(&b"xyz"[..]));
        assert_eq!(payload(&image[..1024]), None);
    }

    #[test]
    fn an_image_is_found_among_the_dependencies_of_its_package() {
        let text =
            "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n  Suggests: x\n";
        assert_eq!(
            dependencies(text, |name| name.starts_with("linux-image")),
            ["linux-image-6.1.0-1-cloud-amd64"]
        );
    }

    #[test]
    fn what_is_built_in_is_not_loaded() {
        assert_eq!(insmod("builtin bridge"), None);
        assert_eq!(
            insmod("insmod /m/veth.ko.xz  "),
            Some("/m/veth.ko.xz".into())
        );
    }
}
