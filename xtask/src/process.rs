// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running programs: the workspace's cargo, quiet steps with a log, and where things lie.
//!
//! **Invariant:** every step that may take over a second says that it runs and how long it took;
//! a step that fails shows the end of what it printed.
//! Read next: doctor/fix.rs for quiet steps, test.rs for loud ones; background.rs.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::background::{descendants, signal};
use crate::table::duration;

/// Lines of a failed step's log that are shown.
const LOG_TAIL_LINES: usize = 30;
/// Where tools for root lie on systems whose users do not have these on their PATH.
const SYSTEM_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    let room = Path::new(env!("CARGO_MANIFEST_DIR"));
    room.parent().unwrap_or(room).to_path_buf()
}

/// The folder that cargo builds into: this task lies in `<target>/debug`.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("find the running task")?;
    let target = exe.ancestors().nth(2).context("find the target folder")?;
    Ok(target.to_path_buf())
}

/// A folder of this user, by the variable that names it or where it lies below the home folder.
pub(crate) fn home(variable: &str, default: &str) -> Result<PathBuf> {
    let named = env::var_os(variable).map(PathBuf::from);
    named
        .or_else(|| env::home_dir().map(|h| h.join(default)))
        .context("HOME is not set")
}

/// Where downloads are kept that are made once: outside the workspace, made if missing.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let cache = home("XDG_CACHE_HOME", ".cache")?.join("lb");
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    Ok(cache)
}

/// A command in the workspace's root, with the tools of root on its PATH.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    if let Ok(path) = env::join_paths(search_dirs()) {
        command.env("PATH", path);
    }
    // What `cargo xtask` set for this task is not meant for the commands that it runs.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let package = name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if package || name == "CARGO_PRIMARY_PACKAGE" {
            command.env_remove(name);
        }
    }
    command
}

/// The cargo that runs this task.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand);
    command
}

/// A program by name, on the PATH or where root's tools and cargo's programs lie.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    search_dirs()
        .into_iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn search_dirs() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = env::split_paths(&path).collect();
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let more = SYSTEM_DIRS
        .iter()
        .map(PathBuf::from)
        .chain(cargo.map(|home| home.join("bin")));
    for dir in more {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

/// First line that a command prints, if it runs and succeeds.
pub(crate) fn first_line(command: &mut Command) -> Option<String> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .ok()
        .filter(|done| done.status.success())?;
    let text = if done.stdout.is_empty() {
        done.stderr
    } else {
        done.stdout
    };
    String::from_utf8_lossy(&text)
        .lines()
        .next()
        .map(|line| line.trim().to_owned())
}

/// Whether this process is root's.
pub(crate) fn is_root() -> bool {
    status_field("Uid:").is_some_and(|uids| uids.split_whitespace().nth(1) == Some("0"))
}

/// A line of /proc/self/status, without its name.
pub(crate) fn status_field(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(|rest| rest.trim().to_owned())
}

/// A command as a person would type it.
pub(crate) fn typed(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Says what is run, runs it with our terminal, and fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let typed = typed(command);
    eprintln!("$ {typed}");
    let status = command
        .status()
        .with_context(|| format!("start `{typed}`"))?;
    if !status.success() {
        bail!("`{typed}` failed ({status})");
    }
    Ok(())
}

/// Logs so far: several commands may run at once.
static LOGS: AtomicU32 = AtomicU32::new(0);

/// Runs a command with its output in a log; the person sees the label and the time.
pub(crate) fn quietly(label: &str, command: &mut Command) -> Result<()> {
    let typed = typed(command);
    let number = LOGS.fetch_add(1, Ordering::Relaxed);
    let name = format!("lb-xtask-{}-{number}.log", std::process::id());
    let log = env::temp_dir().join(name);
    let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let start = Instant::now();
    let status = {
        let _ticker = Ticker::start(label.to_owned());
        command
            .status()
            .with_context(|| format!("start `{typed}`"))?
    };
    let took = duration(start.elapsed());
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    std::fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))?;
    if status.success() {
        eprintln!("  {label}: done in {took}");
        return Ok(());
    }
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
        eprintln!("  | {line}");
    }
    bail!("`{typed}` failed after {took} ({status})")
}

/// Shows that a step is running: seconds on a terminal, one line elsewhere.
struct Ticker {
    /// Dropped to stop.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ticker {
    fn start(label: String) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut stderr = std::io::stderr();
            let terminal = stderr.is_terminal();
            let start = Instant::now();
            if !terminal {
                eprintln!("  {label} ...");
            }
            while stopped.recv_timeout(Duration::from_secs(1))
                == Err(mpsc::RecvTimeoutError::Timeout)
            {
                if terminal {
                    eprint!("\r  {label} ... {}", duration(start.elapsed()));
                    // A terminal that is gone is no reason to stop the step.
                    drop(stderr.flush());
                }
            }
            if terminal {
                eprint!("\r\x1b[K");
            }
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Set by the first interrupt.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From here on an interrupt is for the programs that this task runs: they clean up, then the task
/// goes on to its end.
pub(crate) fn wait_through_interrupts() -> Result<()> {
    let handler = || {
        // A terminal interrupts its whole group; a lone signal is passed on by us.
        if !INTERRUPTED.swap(true, Ordering::Relaxed) && !std::io::stdin().is_terminal() {
            interrupt_children();
        }
    };
    match ctrlc::set_handler(handler) {
        Ok(()) | Err(ctrlc::Error::MultipleHandlers) => Ok(()),
        Err(error) => Err(error).context("take over interrupts"),
    }
}

/// Interrupts everything that descends from this task.
fn interrupt_children() {
    signal("-INT", &descendants(std::process::id()));
}

/// Whether there was an interrupt since [`wait_through_interrupts`].
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
