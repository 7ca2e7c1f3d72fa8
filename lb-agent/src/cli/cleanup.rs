// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent cleanup`: takes lb off this node, at once or when its flows have ended.
//!
//! What is done is told on standard output when it is done, the progress of a drain on standard error.
//! **Invariant:** it works without an agent and refuses while one runs; ended early, it leaves flows
//! translated.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::{self, Output};
use crate::datapath::{Cleanup, Drain, Living, Removal};
use crate::source::state;
use crate::{config, error_chain};

/// Time between two looks at the flows.
const LOOK: Duration = Duration::from_secs(1);

/// The flags of `cleanup`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The agent must have ended; its programs and maps outlive it, so nothing changes before this command. \
Removed are: programs at devices and sockets, our clsact filters (and a clsact qdisc that an agent \
made, once nothing else is on it), pinned maps, their directory. What others have put there stays.

With --drain no new flow begins first: what would begin one passes untouched, to the rules of another \
proxy or whatever else serves the address. Flows that are there go on, a line tells how many are left, and \
when none is, everything is removed. UDP has no end: a flow of it is left until it has been silent for \
30 s (180 s if it was answered), so one that never is keeps the drain going until --timeout.

Ctrl-C during a drain tells what is left; a second one (and SIGTERM at once) ends the command and \
leaves things as they are: flows go on, no new ones begin. `lb-agent run` then serves again, and \
`lb-agent cleanup` goes on where it was.")]
pub(super) struct CleanupArgs {
    /// Where the agent has pinned maps and programs.
    #[arg(long, value_name = "DIR", default_value = config::BPFFS_DEFAULT)]
    bpffs: PathBuf,
    /// The cgroup v2 folder that the agent was given, to see that no program of ours is left there
    /// [default: the root of the hierarchy].
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Begin no new flows, and remove everything when those that are there have ended.
    #[arg(long)]
    drain: bool,
    /// Seconds after which --drain ends the flows that are left [default: wait for the last one].
    #[arg(long, value_name = "SECONDS", requires = "drain")]
    timeout: Option<u64>,
    /// Remove what the agent remembers in --state-dir, too.
    #[arg(long)]
    state: bool,
    /// The folder that --state is about.
    #[arg(long, value_name = "DIR", default_value = config::STATE_DIR_DEFAULT, requires = "state")]
    state_dir: PathBuf,
    /// How to write what was done.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How a drain went.
#[derive(Debug, Serialize)]
struct Drained {
    seconds: u64,
    /// Flows that were there when the time was over.
    cut: Living,
}

/// Everything that was done.
#[derive(Debug, Serialize)]
struct Report {
    drained: Option<Drained>,
    #[serde(flatten)]
    removal: Removal,
}

pub(super) fn cleanup(args: &CleanupArgs) -> Result<(), String> {
    let cgroup = config::cgroup(args.cgroup.as_deref()).map_err(|e| error_chain(&e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("start the runtime: {e}"))?;
    let cleanup = Cleanup::begin(&args.bpffs).map_err(|e| error_chain(&e))?;
    let mut report = Report {
        drained: None,
        removal: Removal::default(),
    };
    if args.drain {
        let timeout = args.timeout.map(Duration::from_secs);
        report.drained = runtime.block_on(drain(&cleanup, timeout))?;
    }
    let removed = runtime.block_on(cleanup.remove(cgroup.as_deref(), &mut report.removal));
    let removal = &mut report.removal;
    if args.state {
        for (path, gone) in state::forget(&args.state_dir) {
            let gone = gone.map_err(|e| e.to_string());
            removal.note("state", path.display().to_string(), gone);
        }
    }
    // Also what was done before a failure.
    let text = match args.output {
        Output::Text => text(&report),
        Output::Json => output::json(&report)?,
    };
    output::print("what was done", &text)?;
    removed.map_err(|e| error_chain(&e))?;
    match report
        .removal
        .left
        .iter()
        .filter(|left| left.failed)
        .count()
    {
        0 => Ok(()),
        failed => Err(format!("{failed} things could not be removed")),
    }
}

/// Waits for the end of all flows, or of the time. None when there was nothing to drain.
async fn drain(cleanup: &Cleanup, timeout: Option<Duration>) -> Result<Option<Drained>, String> {
    let mut stop = Stop::new().map_err(|e| format!("catch signals: {e}"))?;
    let Some(drain) = Drain::begin(cleanup).map_err(|e| error_chain(&e))? else {
        return Ok(None);
    };
    let begin = Instant::now();
    let mut line = Line::new();
    let mut looks = tokio::time::interval(LOOK);
    let mut first = true;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = stop.wait() => {
                line.end();
                let left = drain.count().map_err(|e| error_chain(&e))?;
                return Err(format!(
                    "the drain was given up with {left} left: what is there goes on, nothing new \
                     begins; `lb-agent cleanup` takes the rest away, `lb-agent run` serves again"
                ));
            }
        }
        let left = drain.count().map_err(|e| error_chain(&e))?;
        let over = timeout.is_some_and(|timeout| begin.elapsed() >= timeout);
        // A packet that met its frontend before the mark may begin a flow a moment after it.
        let done = left.total() == 0 && !first;
        first = false;
        line.show(&progress(left, begin.elapsed(), timeout));
        if done || over {
            line.end();
            return Ok(Some(Drained {
                seconds: begin.elapsed().as_secs(),
                cut: left,
            }));
        }
    }
}

fn progress(left: Living, passed: Duration, timeout: Option<Duration>) -> String {
    let passed = passed.as_secs();
    match timeout {
        Some(timeout) => format!("draining: {left} left, {passed} of {} s", timeout.as_secs()),
        None => format!("draining: {left} left, {passed} s"),
    }
}

/// The line of the progress: on a terminal one that is written over, elsewhere one for each change of
/// what is told.
struct Line {
    terminal: bool,
    shown: String,
}

impl Line {
    fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            shown: String::new(),
        }
    }

    fn show(&mut self, text: &str) {
        let news = |text: &str| text.split(',').next().map(str::to_owned);
        let mut out = std::io::stderr();
        // Whoever closes standard error does not want to hear it.
        if self.terminal {
            drop(write!(out, "\r{text}\x1b[K"));
        } else if news(text) != news(&self.shown) {
            drop(writeln!(out, "{text}"));
        }
        drop(out.flush());
        text.clone_into(&mut self.shown);
    }

    fn end(&self) {
        if self.terminal {
            drop(writeln!(std::io::stderr()));
        }
    }
}

/// The signals that end a drain: SIGTERM, or SIGINT for the second time.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    asked: bool,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            asked: false,
        })
    }

    /// Waits for the end; giving the wait up forgets nothing.
    async fn wait(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => {}
            }
            if self.asked {
                return;
            }
            self.asked = true;
            let sentence = "still draining, nothing is cut; Ctrl-C again leaves it as it is: flows go \
                            on, no new ones begin";
            // The terminal has shown ^C behind the progress.
            let begin = if std::io::stderr().is_terminal() {
                "\n"
            } else {
                ""
            };
            drop(writeln!(std::io::stderr(), "{begin}{sentence}"));
        }
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    if let Some(drained) = &report.drained {
        text = match drained.cut.total() {
            0 => format!("drained in {} s: no flow was cut\n", drained.seconds),
            _ => format!("drained for {} s: {} cut\n", drained.seconds, drained.cut),
        };
    }
    let removal = &report.removal;
    if removal.removed.is_empty() && removal.left.is_empty() {
        return text + "nothing of lb is on this node\n";
    }
    let mut rows = Builder::default();
    for thing in &removal.removed {
        rows.push_record(["removed", thing.what, &thing.name, ""]);
    }
    for left in &removal.left {
        let word = if left.failed { "FAILED" } else { "left" };
        rows.push_record([word, left.what, &left.name, &left.why]);
    }
    let mut table = rows.build();
    table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
    for line in table.to_string().lines() {
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_told_for_people_and_for_programs() {
        let mut removal = Removal::default();
        removal.note("map", "SLOTS".to_owned(), Ok(true));
        removal.note("map", "IFACES".to_owned(), Ok(false));
        removal.note(
            "program at device",
            "eth0 ingress".to_owned(),
            Err("busy".to_owned()),
        );
        let report = Report {
            drained: Some(Drained {
                seconds: 7,
                cut: Living {
                    udp: 2,
                    ..Living::default()
                },
            }),
            removal,
        };
        assert_eq!(
            text(&report),
            "drained for 7 s: 2 flows (2 UDP) cut\n\
             removed  map                SLOTS\n\
             FAILED   program at device  eth0 ingress  busy\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["drained"]["cut"]["udp"], 2);
        assert_eq!(json["removed"][0]["name"], "SLOTS");
        assert_eq!(json["left"][0]["failed"], true);
        let nothing = Report {
            drained: None,
            removal: Removal::default(),
        };
        assert_eq!(text(&nothing), "nothing of lb is on this node\n");
    }

    #[test]
    fn progress_tells_what_is_left_and_for_how_long_it_may_take() {
        let left = Living {
            tcp: 12,
            ..Living::default()
        };
        let passed = Duration::from_secs(3);
        assert_eq!(
            progress(left, passed, Some(Duration::from_mins(1))),
            "draining: 12 flows (12 TCP) left, 3 of 60 s"
        );
        assert_eq!(
            progress(left, passed, None),
            "draining: 12 flows (12 TCP) left, 3 s"
        );
    }
}
