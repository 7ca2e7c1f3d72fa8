// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent that is measured, and what its log says about how long things took.
//!
//! It logs one line of JSON for each pass, and nothing else but warnings. It has no `NOTIFY_SOCKET`, as
//! in a pod.
//! **Invariant:** the log is read while nothing is measured, or seldom.
//! Read next: lb-agent/src/cli/run.rs, where the lines come from.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::process::Process;
use crate::error::LabError;
use crate::node::Node;
use crate::run;

/// What the agent logs: how long things took, and what is not as it should be.
const LOGGED: &str = "lb_agent::latency=debug,lb_agent=warn";
/// How often the log is looked at while something is waited for.
const LOOK: Duration = Duration::from_millis(10);
/// Complaints that an error shows.
const COMPLAINTS: usize = 20;

/// A running agent.
pub(super) struct Agent {
    pub(super) process: Process,
    log: File,
    /// What was read of the line that is being written.
    rest: Vec<u8>,
    /// From the arrival of an update to its last write, in microseconds, since the last [`Self::take`].
    passes: Vec<u64>,
    /// From the begin of the list until it was programmed.
    pub(super) programmed: Option<Duration>,
    /// Everything else that it said.
    complaints: Vec<String>,
}

impl Agent {
    /// Starts it; `words` are further flags.
    pub(super) fn start(
        node: &Node,
        binary: &Path,
        url: &str,
        words: &[&str],
    ) -> Result<Self, LabError> {
        let path = node.file(".bench.log");
        let writer = File::create(&path).map_err(LabError::file("make", &path))?;
        let log = File::open(&path).map_err(LabError::file("open", &path))?;
        let mut command = node.command(binary)?;
        command
            .args(["run", "--log-format", "json", "--node", "node-0"])
            .args(["--api-server", url])
            .arg("--bpffs")
            .arg(node.bpffs())
            .arg("--cgroup")
            .arg(node.cgroup())
            .args(words)
            .env("LB_LOG", LOGGED)
            .env_remove("KUBECONFIG")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(writer);
        Ok(Self {
            process: Process::start(&mut command)?,
            log,
            rest: Vec::new(),
            passes: Vec::new(),
            programmed: None,
            complaints: Vec::new(),
        })
    }

    /// Waits until everything is programmed; how long that took, as the agent saw it.
    pub(super) fn wait_programmed(&mut self, within: Duration) -> Result<Duration, LabError> {
        self.wait("everything to be programmed", within, |agent| {
            agent.programmed.is_some()
        })?;
        Ok(self.programmed.unwrap_or_default())
    }

    /// The passes since the last time, in microseconds.
    pub(super) fn take(&mut self) -> Result<Vec<u64>, LabError> {
        self.read()?;
        Ok(std::mem::take(&mut self.passes))
    }

    fn wait(
        &mut self,
        what: &str,
        within: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), LabError> {
        let until = Instant::now() + within;
        loop {
            // The end is looked for first: what it said before is still read.
            let ended = self.process.ended();
            self.read()?;
            if done(self) {
                return Ok(());
            }
            if let Some(status) = ended {
                let what = "the agent".to_owned();
                let log = self.complaints();
                return Err(LabError::Ended { what, status, log });
            }
            if Instant::now() > until {
                return Err(LabError::Timeout {
                    what: what.to_owned(),
                    millis: within.as_millis(),
                    log: self.complaints(),
                });
            }
            run::pause(LOOK);
        }
    }

    /// The end of what it said beside times.
    pub(super) fn complaints(&self) -> String {
        let first = self.complaints.len().saturating_sub(COMPLAINTS);
        self.complaints[first..].join("\n")
    }

    fn read(&mut self) -> Result<(), LabError> {
        let read = self.log.read_to_end(&mut self.rest);
        read.map_err(LabError::io("read the agent's log"))?;
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(());
        };
        let rest = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, rest);
        for line in String::from_utf8_lossy(&lines).lines() {
            self.note(line);
        }
        Ok(())
    }

    fn note(&mut self, line: &str) {
        let parsed: Value = serde_json::from_str(line).unwrap_or_default();
        let fields = &parsed["fields"];
        if let Some(micros) = fields["micros"].as_u64() {
            self.passes.push(micros);
        } else if let Some(micros) = fields["programmed_micros"].as_u64() {
            self.programmed = Some(Duration::from_micros(micros));
        } else if parsed["level"] != "DEBUG" {
            self.complaints.push(line.to_owned());
        }
    }
}
