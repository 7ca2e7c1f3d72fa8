// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boots a machine, or runs tests on the machine's own kernel, and reads what is said until the end.
//!
//! **Invariant:** by software emulation always: the same everywhere, also inside other machines;
//! what has not ended in time, or is not wanted any more, is killed. Read next: report.rs, what is read.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use super::report::{News, Report};
use crate::background::Background;
use crate::table::duration;

/// Memory of a machine: the maps of two agents and the file system in memory.
const MEMORY_MIB: &str = "2048";
/// How often somebody looks whether it all is to end.
const LOOK_AROUND: Duration = Duration::from_secs(1);
/// How long a process may live on that has closed its serial line.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// How long a machine may take.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Until tests can begin.
    pub(super) boot: Duration,
    /// From there to its end.
    pub(super) tests: Duration,
}

/// What reads along.
pub(super) struct Reader<'a> {
    /// Everything goes in there.
    pub(super) log: &'a Path,
    pub(super) limits: Limits,
    /// Whether somebody wants it all to end.
    pub(super) stop: fn() -> bool,
    /// Told of what the lines mean, and of each line.
    pub(super) tell: &'a mut dyn FnMut(Option<News>, &str),
}

/// The command that boots a kernel.
pub(super) fn machine(kernel: &Kernel, initramfs: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        // With a thread for each processor, emulators before 8.1 lose what one processor writes into
        // code that another one is translating.
        "tcg,thread=single",
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

/// What a machine has said before, and how long ago that was.
pub(super) fn read_again(log: &Path) -> Result<(Report, Duration)> {
    let what = || format!("nothing was said before, {}: run it first", log.display());
    let text = fs::read_to_string(log).with_context(what)?;
    let written = fs::metadata(log)
        .and_then(|of| of.modified())
        .with_context(what)?;
    let mut report = Report::default();
    for line in text.lines() {
        report.read(line);
    }
    Ok((report, written.elapsed().unwrap_or_default()))
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
    let (mut report, found) = follow(machine, reader, &mut file)?;
    // In the log, too: it is read again.
    if let Some(sentence) = found {
        let line = format!("VM-BROKEN {sentence}");
        writeln!(file, "{line}").context("write the log")?;
        report.read(&line);
    }
    Ok(report)
}

/// Reads along; gives what was said, and what is wrong with the machine itself.
fn follow(
    machine: &mut Command,
    reader: &mut Reader<'_>,
    file: &mut File,
) -> Result<(Report, Option<String>)> {
    let mut machine = Background::start(machine)?;
    let lines = lines(machine.stdout().context("read the serial line")?);
    let mut report = Report::default();
    let mut deadline = Deadline::new(reader.limits);
    loop {
        if (reader.stop)() {
            return Ok((report, Some("interrupted".to_owned())));
        }
        let Some(left) = deadline.left() else {
            return Ok((report, Some(deadline.passed())));
        };
        match lines.recv_timeout(left.min(LOOK_AROUND)) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line).into_owned();
                let line = line.trim_end();
                writeln!(file, "{line}").context("write the log")?;
                let news = report.read(line);
                if news == Some(News::Up) {
                    deadline.begin_tests();
                }
                if report.ended {
                    deadline.end();
                }
                (reader.tell)(news, line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = machine.ends_within(LAST_WORDS)?;
    // A terminal interrupts machines, too, and these may call that a good end.
    let found = match status {
        _ if (reader.stop)() => Some("interrupted".to_owned()),
        Some(status) if status.success() => None,
        Some(status) => Some(format!("its process failed ({status})")),
        None => Some("said nothing more, and did not end".to_owned()),
    };
    Ok((report, found))
}

/// The lines of the serial line, until whoever listens is gone.
fn lines(serial: ChildStdout) -> Receiver<Vec<u8>> {
    let (sender, lines) = mpsc::channel();
    // Nobody waits for it: what a machine left behind could hold the line open.
    std::thread::spawn(move || {
        for line in BufReader::new(serial).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// Until when something must happen.
struct Deadline {
    limits: Limits,
    up: bool,
    until: Instant,
}

impl Deadline {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            up: false,
            until: Instant::now() + limits.boot,
        }
    }

    /// The tests begin, once.
    fn begin_tests(&mut self) {
        if !self.up {
            self.up = true;
            self.until = Instant::now() + self.limits.tests;
        }
    }

    /// All is said; only the last words of the machine itself may follow.
    fn end(&mut self) {
        self.until = self.until.min(Instant::now() + LAST_WORDS);
    }

    /// Time left; none if it has passed.
    fn left(&self) -> Option<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Which one it is that has passed.
    fn passed(&self) -> String {
        if self.up {
            let limit = duration(self.limits.tests);
            return format!("killed: its tests were not at their end after {limit}");
        }
        let limit = duration(self.limits.boot);
        format!("killed: it had not come up after {limit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);
    const SHORT: Duration = Duration::from_millis(300);
    const NEVER: fn() -> bool = || false;

    /// What is read of a machine that is a shell with these commands; it must not take long.
    fn said(name: &str, commands: &str, limits: [Duration; 2], stop: fn() -> bool) -> Report {
        let log = format!("lb-xtask-boot-{}-{name}.log", std::process::id());
        let log = std::env::temp_dir().join(log);
        let mut machine = Command::new("sh");
        machine.args(["-c", commands]);
        let [boot, tests] = limits;
        let mut heard = Vec::new();
        let mut reader = Reader {
            log: &log,
            limits: Limits { boot, tests },
            stop,
            tell: &mut |_, line| heard.push(line.to_owned()),
        };
        let start = Instant::now();
        let report = read(&mut machine, &mut reader).unwrap();
        assert!(start.elapsed() < LONG / 2, "{name}: {:?}", start.elapsed());
        let text = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        let (found, said): (Vec<_>, Vec<_>) =
            text.lines().partition(|line| line.starts_with("VM-BROKEN"));
        assert_eq!(said, heard);
        assert_eq!(found.len(), report.broken.len(), "it can be read again");
        report
    }

    #[test]
    fn a_machine_that_ends_well_is_read_to_its_end() {
        let commands = "echo 'VM-UP 1.0 6.1'; echo 'VM-END 2.0'";
        let report = said("well", commands, [LONG, LONG], NEVER);
        assert!(report.up.is_some() && report.ended && report.broken.is_empty());
    }

    #[test]
    fn a_machine_that_dies_in_the_middle_has_not_ended_and_its_process_failed() {
        let commands = "echo 'VM-UP 1.0 6.1'; echo 'VM-BEGIN vm a'; kill -KILL $$";
        let report = said("dies", commands, [LONG, LONG], NEVER);
        assert!(report.up.is_some() && !report.ended);
        assert!(report.broken[0].contains("signal: 9"), "{report:?}");
    }

    #[test]
    fn a_machine_that_hangs_is_killed_and_the_limit_that_passed_is_named() {
        // One that says something all the time hangs, too.
        for (name, hangs) in [
            ("silent", "sleep 63"),
            ("loud", "while :; do echo x; done"),
            ("child", "sleep 64; :"),
        ] {
            let report = said(name, hangs, [SHORT, LONG], NEVER);
            assert!(!report.ended);
            assert_eq!(report.broken, ["killed: it had not come up after 0.3 s"]);
        }
        let commands = "echo 'VM-UP 1.0 6.1'; sleep 65";
        let report = said("after", commands, [LONG, SHORT], NEVER);
        assert!(report.up.is_some() && !report.ended);
        let expected = "killed: its tests were not at their end after 0.3 s";
        assert_eq!(report.broken, [expected]);
    }

    #[test]
    fn an_interrupt_ends_a_machine() {
        let report = said("stop", "sleep 66", [LONG, LONG], || true);
        assert_eq!(report.broken, ["interrupted"]);
    }
}
