// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs `lb-agent` on a node and follows what it reports.
//!
//! The agent speaks the service-manager protocol (`sd_notify`): `READY=1` when the first full
//! state is programmed, then `STATUS=applied N` with N counting up.
//! **Invariant:** waiting is for these reports or the process's end, with a bound; a failure
//! shows the end of the agent's log. Read next: `node`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::kill;
use nix::unistd::Pid;

pub use nix::sys::signal::Signal;

use crate::error::LabError;
use crate::node::Node;
use crate::run;

/// How long the first full state may take.
pub const READY_MAX: Duration = Duration::from_secs(30);
/// How long the agent may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How often the process is looked at while its reports are awaited.
const TICK_MILLIS: u8 = 20;
/// How many bytes of a log an error shows.
const LOG_SHOWN: usize = 6_000;

/// Each agent of a process gets its own socket and log.
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Finds the `lb-agent` program: `LB_AGENT` names it, else it lies where cargo puts it.
///
/// Cargo's place is the directory of the running program or, for a test, the one above.
/// Build it first (`cargo build -p lb-agent`); an old one there is used as it is.
pub fn find_binary() -> Result<PathBuf, LabError> {
    if let Some(path) = std::env::var_os("LB_AGENT") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().map_err(LabError::io("find the running program"))?;
    let mut places = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("lb-agent"));
    let missing = || LabError::MissingTool {
        tool: "lb-agent".to_owned(),
    };
    places.find(|path| path.is_file()).ok_or_else(missing)
}

/// The files of one agent among those of its process.
pub(crate) struct Ends {
    number: u32,
    log: PathBuf,
}

impl Ends {
    /// Those of the next one, on this node.
    pub(crate) fn next(node: &Node) -> Result<Self, LabError> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let log = node.file(&format!(".agent.{number}.log"));
        File::create(&log).map_err(LabError::file("make", &log))?;
        Ok(Self { number, log })
    }

    /// What the names of its files have behind the node's.
    pub(crate) fn suffix(&self) -> String {
        format!(".{}", self.number)
    }

    /// The log, for what it writes as output and as errors.
    pub(crate) fn output(&self) -> Result<(File, File), LabError> {
        let log = File::options().append(true).open(&self.log);
        let log = log.map_err(LabError::file("open", &self.log))?;
        let copy = log.try_clone().map_err(LabError::io("copy a descriptor"))?;
        Ok((log, copy))
    }
}

/// A running agent; it is stopped when dropped.
#[derive(Debug)]
#[must_use = "the agent stops when dropped"]
pub struct Agent {
    child: Child,
    socket: UnixDatagram,
    /// The socket's file, if it has one.
    socket_path: Option<PathBuf>,
    log: PathBuf,
    ready: bool,
    applied: Option<u64>,
}

impl Agent {
    pub(crate) fn start(
        node: &Node,
        binary: &Path,
        manifests: &Path,
        extra_args: &[&str],
    ) -> Result<Self, LabError> {
        let mut agent = Self::spawn(node, binary, manifests, extra_args)?;
        agent.wait("the agent's READY=1", READY_MAX, |agent| agent.ready)?;
        Ok(agent)
    }

    /// Starts the agent on a folder of manifests without waiting for it to be ready.
    pub fn spawn(
        node: &Node,
        binary: &Path,
        manifests: &Path,
        extra_args: &[&str],
    ) -> Result<Self, LabError> {
        let manifests = manifests.display().to_string();
        let mut args = vec!["--manifests", manifests.as_str()];
        args.extend(extra_args);
        Self::spawn_with(node, binary, &args)
    }

    /// Starts the agent without waiting for it to be ready; `args` say where its objects come from.
    pub fn spawn_with(node: &Node, binary: &Path, args: &[&str]) -> Result<Self, LabError> {
        let ends = Ends::next(node)?;
        let socket_path = node.file(&format!("{}.notify", ends.suffix()));
        let socket = UnixDatagram::bind(&socket_path);
        let socket = socket.map_err(LabError::file("bind", &socket_path))?;
        let (output, errors) = ends.output()?;
        let mut command = node.command(binary)?;
        command.arg("run").args(["--node", node.name()]);
        command
            .arg("--bpffs")
            .arg(node.bpffs())
            .arg("--cgroup")
            .arg(node.cgroup());
        command.args(args).env("NOTIFY_SOCKET", &socket_path);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let line = run::describe(&command);
        let child = command
            .spawn()
            .map_err(LabError::io(format!("start `{line}`")))?;
        Self::of(child, socket, Some(socket_path), ends)
    }

    /// An agent that has been started, and the socket to which it reports.
    pub(crate) fn of(
        child: Child,
        socket: UnixDatagram,
        socket_path: Option<PathBuf>,
        ends: Ends,
    ) -> Result<Self, LabError> {
        let agent = Self {
            child,
            socket,
            socket_path,
            log: ends.log,
            ready: false,
            applied: None,
        };
        let silent = agent.socket.set_nonblocking(true);
        silent.map_err(LabError::io("set a socket non-blocking"))?;
        Ok(agent)
    }

    /// The agent's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with everything it wrote.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything it wrote so far.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Whether it has reported its first full state.
    pub fn is_ready(&mut self) -> bool {
        self.receive();
        self.ready
    }

    /// The last N of `STATUS=applied N`; `None` if it never reported one.
    pub fn applied(&mut self) -> Option<u64> {
        self.receive();
        self.applied
    }

    /// Waits until it has applied more than `after` and returns the number.
    ///
    /// `None` if it reports nothing of the kind within `bound`; an error if it ends.
    pub fn wait_applied(&mut self, after: u64, bound: Duration) -> Result<Option<u64>, LabError> {
        let newer = |agent: &Self| agent.applied.is_some_and(|number| number > after);
        match self.wait("the agent's STATUS=applied", bound, newer) {
            Ok(()) => Ok(self.applied),
            Err(LabError::Timeout { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until it is ready; for agents started by [`Agent::spawn`].
    pub fn wait_ready(&mut self, bound: Duration) -> Result<(), LabError> {
        self.wait("the agent's READY=1", bound, |agent| agent.ready)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).map_err(LabError::sys(format!("send {signal} to the agent")))
    }

    /// SIGTERM, then waits for its end.
    pub fn stop(mut self) -> Result<ExitStatus, LabError> {
        self.signal(Signal::SIGTERM)?;
        self.wait_end(STOP_MAX)
    }

    /// SIGKILL, then waits for its end.
    pub fn kill(mut self) -> Result<ExitStatus, LabError> {
        self.signal(Signal::SIGKILL)?;
        self.wait_end(STOP_MAX)
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn wait_end(&mut self, bound: Duration) -> Result<ExitStatus, LabError> {
        let bound = run::bound(bound);
        let until = Instant::now() + bound;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() > until {
                return Err(self.timeout("the agent's end", bound));
            }
            run::pause(Duration::from_millis(TICK_MILLIS.into()));
        }
    }

    fn wait(
        &mut self,
        what: &str,
        bound: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), LabError> {
        let bound = run::bound(bound);
        let until = Instant::now() + bound;
        loop {
            // The end is looked for first: what it reported before is still received.
            let ended = self.ended();
            self.receive();
            if done(self) {
                return Ok(());
            }
            if let Some(status) = ended {
                let (what, log) = ("the agent".to_owned(), self.log_end());
                return Err(LabError::Ended {
                    what,
                    status: status.to_string(),
                    log,
                });
            }
            if Instant::now() > until {
                return Err(self.timeout(what, bound));
            }
            let mut report = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut report, PollTimeout::from(TICK_MILLIS)).map_err(LabError::sys("poll"))?;
        }
    }

    fn timeout(&self, what: &str, bound: Duration) -> LabError {
        LabError::Timeout {
            what: what.to_owned(),
            millis: bound.as_millis(),
            log: self.log_end(),
        }
    }

    /// Takes in every report that has arrived.
    fn receive(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => self.note(&String::from_utf8_lossy(&buffer[..length])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }

    fn note(&mut self, report: &str) {
        for line in report.lines() {
            if line == "READY=1" {
                self.ready = true;
            } else if let Some(number) = line.strip_prefix("STATUS=applied ") {
                let number = number
                    .split_whitespace()
                    .next()
                    .and_then(|word| word.parse().ok());
                self.applied = number.or(self.applied);
            }
        }
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let start = log.len().saturating_sub(LOG_SHOWN);
        let start = (start..=log.len())
            .find(|at| log.is_char_boundary(*at))
            .unwrap_or(0);
        format!("--- {} ---\n{}", self.log.display(), &log[start..])
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // Whatever resists SIGTERM is killed; the lab's removal would do it otherwise.
            drop(self.signal(Signal::SIGTERM));
            if self.wait_end(STOP_MAX).is_err() {
                drop(self.child.kill());
                drop(self.child.wait());
            }
        }
        if let Some(path) = &self.socket_path {
            // With the lab's directory gone, so is the socket.
            drop(fs::remove_file(path));
        }
    }
}
