// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boots a machine and reads its serial line until it is off.
//!
//! **Invariant:** by software emulation always: the same everywhere, also inside other machines;
//! a machine that is not off in time is killed. Read next: report.rs, what is read.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use super::report::Report;

/// Memory of a machine: the maps of two agents and the file system in memory.
const MEMORY_MIB: &str = "2048";

/// Boots, and returns what the machine said; everything goes into the log, and to the person if
/// `loud`.
pub(super) fn boot(
    kernel: &Kernel,
    initramfs: &Path,
    log: &Path,
    limit: Duration,
    loud: bool,
) -> Result<Report> {
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let errors = file.try_clone().context("copy a descriptor")?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        MEMORY_MIB,
    ]);
    qemu.args([
        "-nodefaults",
        "-nographic",
        "-no-reboot",
        "-serial",
        "stdio",
    ]);
    qemu.arg("-kernel")
        .arg(&kernel.vmlinux)
        .arg("-initrd")
        .arg(initramfs);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
    qemu.stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors);
    let mut child = qemu.spawn().context("start qemu-system-x86_64")?;
    let stdout = child.stdout.take().context("read the serial line")?;
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let until = Instant::now() + limit;
    let mut report = Report::default();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line).into_owned();
                writeln!(file, "{}", line.trim_end()).context("write the log")?;
                if loud {
                    eprintln!("  | {}", line.trim_end());
                }
                report.read(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                report
                    .broken
                    .push(format!("not off after {} s", limit.as_secs()));
                child.kill().context("kill the machine")?;
                break;
            }
        }
    }
    child.wait().context("wait for the machine")?;
    drop(lines);
    drop(reader.join());
    Ok(report)
}
