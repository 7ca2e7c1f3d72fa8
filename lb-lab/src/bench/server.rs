// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-lab apiserver` as a process on a node, and what it is told to do.
//!
//! **Invariant:** a question has one line of answer within a bound.
//! Read next: the module `apiserver`'s console, the other end.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use super::Options;
use super::process::Process;
use crate::error::LabError;
use crate::node::Node;

/// How long the largest cluster may take to be made.
const LISTENS_WITHIN: Duration = Duration::from_mins(1);
/// How long an answer may take; a change waits five seconds for somebody to take it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A running server with a generated cluster.
pub(super) struct Server {
    process: Process,
    input: ChildStdin,
    answers: Receiver<String>,
    pub(super) url: String,
}

impl Server {
    pub(super) fn start(node: &Node, options: &Options, services: u32) -> Result<Self, LabError> {
        let mut command = node.command(&options.lab)?;
        command
            .args(["apiserver", "--services", &services.to_string()])
            .args(["--endpoints-per-service", &options.endpoints.to_string()])
            .args(["--big-service", &options.big_service.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let pipes = process.child.stdin.take().zip(process.child.stdout.take());
        let (input, output) = pipes.ok_or_else(|| malformed("no pipe to it"))?;
        let (sender, answers) = mpsc::channel();
        // Ends with the process, whose output ends then.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut server = Self {
            process,
            input,
            answers,
            url: String::new(),
        };
        let line = server.answer("the API server's `listening on`", LISTENS_WITHIN)?;
        let url = line.strip_prefix("listening on ");
        let url = url.ok_or_else(|| malformed(&line))?;
        url.clone_into(&mut server.url);
        Ok(server)
    }

    /// Moves one endpoint of a Service; comes back when the event was written to the agent's socket.
    pub(super) fn change(&mut self, service: u32) -> Result<(), LabError> {
        let answer = self.ask(&format!("change {service}"))?;
        if !answer.starts_with("changed ") || answer.ends_with("untaken") {
            return Err(malformed(&answer));
        }
        Ok(())
    }

    /// Seconds of processor time that it has used itself.
    pub(super) fn cpu_seconds(&mut self) -> Result<f64, LabError> {
        let answer = self.ask("stats")?;
        let mut words = answer.split_whitespace();
        let seconds = words.find_map(|word| word.strip_prefix("cpu_s=")?.parse().ok());
        seconds.ok_or_else(|| malformed(&answer))
    }

    fn ask(&mut self, question: &str) -> Result<String, LabError> {
        writeln!(self.input, "{question}").map_err(LabError::io("ask the API server"))?;
        self.answer(&format!("the answer to `{question}`"), ANSWERS_WITHIN)
    }

    fn answer(&mut self, what: &str, within: Duration) -> Result<String, LabError> {
        self.answers.recv_timeout(within).map_err(|_| {
            if let Some(status) = self.process.ended() {
                return LabError::Ended {
                    what: "the API server".to_owned(),
                    status,
                    log: String::new(),
                };
            }
            LabError::Timeout {
                what: what.to_owned(),
                millis: within.as_millis(),
                log: String::new(),
            }
        })
    }
}

fn malformed(why: &str) -> LabError {
    LabError::Malformed {
        what: "the API server's answer".to_owned(),
        why: why.to_owned(),
    }
}
