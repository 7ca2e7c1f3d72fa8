// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boots a machine, or runs tests on the machine's own kernel, and reads what is said until the end.
//!
//! **Invariant:** by software emulation always: the same everywhere, also inside other machines;
//! what has not ended in time is killed. Read next: report.rs, what is read.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use super::report::{News, Report};

/// Memory of a machine: the maps of two agents and the file system in memory.
const MEMORY_MIB: &str = "2048";

/// What reads along.
pub(super) struct Reader<'a> {
    /// Everything goes in there.
    pub(super) log: &'a Path,
    pub(super) limit: Duration,
    /// Told of what the lines mean, and of each line.
    pub(super) tell: &'a mut dyn FnMut(Option<News>, &str),
}

/// The command that boots a kernel.
pub(super) fn machine(kernel: &Kernel, initramfs: &Path) -> Command {
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
    qemu
}

/// What a machine has said before.
pub(super) fn read_again(log: &Path) -> Result<Report> {
    let text = fs::read_to_string(log);
    let text = text.with_context(|| format!("read what was said before, {}", log.display()))?;
    let mut report = Report::default();
    for line in text.lines() {
        report.read(line);
    }
    Ok(report)
}

/// Runs a machine, or a script that says the same, to its end; returns what was said.
pub(super) fn read(machine: &mut Command, reader: &mut Reader<'_>) -> Result<Report> {
    let log = reader.log;
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let errors = file.try_clone().context("copy a descriptor")?;
    machine
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors);
    let program = machine.get_program().to_owned();
    let mut child = machine
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let stdout = child.stdout.take().context("read the serial line")?;
    let (sender, lines) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let until = Instant::now() + reader.limit;
    let mut report = Report::default();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line).into_owned();
                let line = line.trim_end();
                writeln!(file, "{line}").context("write the log")?;
                let news = report.read(line);
                (reader.tell)(news, line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let secs = reader.limit.as_secs();
                report.broken.push(format!("not at its end after {secs} s"));
                child.kill().context("kill the machine")?;
                break;
            }
        }
    }
    child.wait().context("wait for the machine")?;
    drop(lines);
    drop(thread.join());
    Ok(report)
}
