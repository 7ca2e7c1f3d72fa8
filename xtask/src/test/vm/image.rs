// SPDX-License-Identifier: MIT OR Apache-2.0
//! The file system that a machine starts with: tools, tests and agent with their libraries, modules.
//!
//! **Invariant:** everything is a copy from this machine or from the kernel's package, in a folder
//! below the target folder that is made anew each time.
//! Read next: init.sh, the machine's first process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use super::stage::{Content, executable, stripped, text};
use crate::process::{command, find_program, quietly};

/// What the lab's networks and the tests need; what they depend on comes along.
const MODULES: [&str; 15] = [
    "veth",
    "bridge",
    "br_netfilter",
    "8021q",
    "sctp",
    "vxlan",
    "nf_tables",
    "nf_conntrack",
    "nft_ct",
    "nft_chain_nat",
    "nft_masq",
    "sch_ingress",
    "cls_bpf",
    "tcp_diag",
    "udp_diag",
];
/// The programs that the tests run. busybox has the others.
const TOOLS: [&str; 8] = [
    "ip", "tc", "bridge", "nft", "ethtool", "bpftool", "tcpdump", "bash",
];

/// Makes the file system of a kernel's machine below `dir` and packs it.
pub(super) fn make(kernel: &Kernel, content: &Content<'_>, dir: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    for folder in [
        "bin", "sbin", "modules", "tests", "proc", "sys", "dev", "etc", "tmp", "run",
    ] {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let image = Image { root: &root };
    let busybox = find_program("busybox").context("find busybox")?;
    image.program(&busybox, "bin/busybox")?;
    for tool in TOOLS {
        let path = find_program(tool).with_context(|| format!("find {tool}"))?;
        image.program(&path, &format!("sbin/{tool}"))?;
    }
    content.write(&root.join("tests"), &[])?;
    image.libraries(content.agent)?;
    image.libraries(&content.chosen.program)?;
    image.modules(kernel)?;
    // tcpdump asks who it is, and becomes a user of its own when it reads.
    let users = "root:x:0:0:root:/:/bin/sh\ntcpdump:x:100:100::/:/bin/sh\n";
    text(&root, "etc/passwd", users)?;
    text(&root, "etc/group", "root:x:0:\ntcpdump:x:100:\n")?;
    text(&root, "init", include_str!("init.sh"))?;
    executable(&root.join("init"))?;
    pack(&root, &dir.join("initramfs"))
}

struct Image<'a> {
    root: &'a Path,
}

impl Image<'_> {
    /// A program with every library that it is linked with.
    fn program(&self, from: &Path, to: &str) -> Result<()> {
        stripped(from, &self.root.join(to))?;
        self.libraries(from)
    }

    /// Every library that a program is linked with.
    fn libraries(&self, from: &Path) -> Result<()> {
        let mut ldd = command("ldd");
        let output = ldd.arg(from).stderr(Stdio::null()).output();
        // A program that is linked with nothing is none that ldd knows.
        let text = output.context("start ldd")?.stdout;
        for library in libraries(&String::from_utf8_lossy(&text)) {
            let to = self
                .root
                .join(library.strip_prefix("/").unwrap_or(&library));
            if to.exists() {
                continue;
            }
            if let Some(folder) = to.parent() {
                fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
            }
            fs::copy(&library, &to).with_context(|| format!("copy {}", library.display()))?;
        }
        Ok(())
    }

    /// The modules, unpacked, and the order in which they are loaded.
    fn modules(&self, kernel: &Kernel) -> Result<()> {
        let mut list = String::new();
        for file in kernel.modules(&MODULES)? {
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let (name, program): (&str, Option<&str>) = match name.rsplit_once('.') {
                Some((name, "xz")) => (name, Some("xz")),
                Some((name, "zst")) => (name, Some("zstd")),
                _ => (&name, None),
            };
            let to = self.root.join("modules").join(name);
            match program {
                None => {
                    let copied = fs::copy(&file, &to);
                    copied.with_context(|| format!("copy {}", file.display()))?;
                }
                Some(program) => {
                    let unpacked = fs::File::create(&to).context("make a module")?;
                    let mut unpack = command(program);
                    unpack.arg("-dcq").arg(&file).stdout(unpacked);
                    let status = unpack
                        .status()
                        .with_context(|| format!("start {program}"))?;
                    if !status.success() {
                        bail!("{program} does not unpack {}", file.display());
                    }
                }
            }
            list += name;
            list.push('\n');
        }
        text(self.root, "modules/list", &list)
    }
}

/// The files in what `ldd` prints: `NAME => FILE (ADDRESS)`, or `FILE (ADDRESS)` for the loader.
fn libraries(text: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let mut words = line.split_whitespace();
        words.find(|word| word.starts_with('/')).map(PathBuf::from)
    };
    text.lines().filter_map(file).collect()
}

fn pack(root: &Path, initramfs: &Path) -> Result<PathBuf> {
    let mut cpio = command("sh");
    cpio.args([
        "-c",
        "cd \"$0\" && find . | cpio -o -H newc -R 0:0 --quiet > \"$1\"",
    ]);
    cpio.arg(root).arg(initramfs);
    quietly("pack the machine's file system", &mut cpio)?;
    Ok(initramfs.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let text = "\tlinux-vdso.so.1 (0x0)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x1)\n\
                    \t/lib64/ld.so (0x2)\n";
        let expected: [PathBuf; 2] = ["/lib/x/libc.so.6".into(), "/lib64/ld.so".into()];
        assert_eq!(libraries(text), expected);
        assert!(libraries("\tstatically linked\n").is_empty());
    }
}
