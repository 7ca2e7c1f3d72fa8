// SPDX-License-Identifier: MIT OR Apache-2.0
//! The demo's client: one request by curl, many by the lab's own client, and a steady stream.
//!
//! **Invariant:** a connect that needs a second SYN is a failure here: every bound is shorter
//! than the second after which the kernel sends it. Read next: the demo's front.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::client::HttpClient;
use crate::error::LabError;
use crate::host::Host;
use crate::run;

/// Less than the kernel waits before it sends a SYN again.
const BOUND: Duration = Duration::from_millis(900);
/// What would send curl to a proxy in place of the Service.
const PROXIES: [&str; 4] = ["http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"];

/// What curl answered.
pub(super) struct Answer {
    /// The host name, if there was one.
    pub(super) name: Option<String>,
    /// What curl wrote, errors included.
    pub(super) text: String,
}

/// The command line that asks `address`, port 80.
pub(super) fn curl_line(address: IpAddr) -> String {
    let url = SocketAddr::new(address, 80).to_string();
    format!(
        "curl -sS --max-time 0.9 http://{}",
        url.trim_end_matches(":80")
    )
}

/// Runs that command line on a host.
pub(super) fn curl(host: &Host, address: IpAddr) -> Result<Answer, LabError> {
    let line = curl_line(address);
    let mut words = line.split(' ');
    let mut command = host.command(words.next().unwrap_or_default())?;
    command.args(words);
    for proxy in PROXIES {
        command.env_remove(proxy);
    }
    let output = output(&mut command)?;
    let body = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned();
    let errors = String::from_utf8_lossy(&output.stderr)
        .trim_end()
        .to_owned();
    let text = if errors.is_empty() {
        body.clone()
    } else {
        errors
    };
    let name = output.status.success().then_some(body);
    Ok(Answer { name, text })
}

/// Runs a program and returns what it wrote, whatever its exit status.
pub(super) fn output(command: &mut Command) -> Result<std::process::Output, LabError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let line = run::describe(command);
    command
        .output()
        .map_err(|source| run::not_started(&tool, &line, source))
}

/// How many requests each pod answered, and what went wrong.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) by_name: BTreeMap<String, u32>,
    pub(super) failures: Vec<String>,
}

impl Tally {
    /// Sends one request on a connection of its own; in the client's namespace.
    fn ask(&mut self, remote: SocketAddr) {
        match HttpClient::new(remote).timeout(BOUND).get("/") {
            Ok(reply) => *self.by_name.entry(reply.text().to_owned()).or_default() += 1,
            Err(error) => self.failures.push(chain(&error)),
        }
    }

    /// All answers.
    pub(super) fn answers(&self) -> u32 {
        self.by_name.values().sum()
    }

    /// Whether the counts of all pods differ by one at most.
    pub(super) fn is_even(&self) -> bool {
        let (least, most) = (self.by_name.values().min(), self.by_name.values().max());
        least
            .zip(most)
            .is_some_and(|(least, most)| most - least <= 1)
    }

    /// The pods that answered.
    pub(super) fn names(&self) -> Vec<&str> {
        self.by_name.keys().map(String::as_str).collect()
    }

    /// The counts as a table.
    pub(super) fn table(&self) -> String {
        let rows = self.by_name.iter();
        let rows: Vec<_> = rows
            .map(|(name, count)| format!("{name:<16} {count:>5}"))
            .collect();
        rows.join("\n")
    }

    /// What went wrong, for a claim that does not hold.
    pub(super) fn trouble(&self) -> String {
        let first = self.failures.first().map_or("", String::as_str);
        format!(
            "{} failures ({first}), answers:\n{}",
            self.failures.len(),
            self.table()
        )
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Sends `count` requests one after the other.
pub(super) fn many(host: &Host, address: IpAddr, count: u32) -> Result<Tally, LabError> {
    host.run(|| {
        let mut tally = Tally::default();
        (0..count).for_each(|_| tally.ask(SocketAddr::new(address, 80)));
        tally
    })
}

/// A stream of requests that goes on until it is stopped.
pub(super) struct Stream {
    enough: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Tally, LabError>>>,
}

impl Stream {
    /// Starts it on a host.
    pub(super) fn start(host: &Host, address: IpAddr) -> Self {
        let (host, enough) = (host.clone(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&enough);
        let work = move || {
            host.run(|| {
                let mut tally = Tally::default();
                while !seen.load(Ordering::Relaxed) {
                    tally.ask(SocketAddr::new(address, 80));
                }
                tally
            })
        };
        Self {
            enough,
            thread: Some(thread::spawn(work)),
        }
    }

    /// Ends it and returns the count.
    pub(super) fn stop(mut self) -> Result<Tally, LabError> {
        self.enough.store(true, Ordering::Relaxed);
        let joined = self.thread.take().map(JoinHandle::join);
        joined.and_then(Result::ok).unwrap_or_else(|| {
            let (what, why) = ("the requests".to_owned(), "their thread died".to_owned());
            Err(LabError::Malformed { what, why })
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Only after an earlier failure, which is the one to be told.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(counts: &[(&str, u32)]) -> Tally {
        Tally {
            by_name: counts
                .iter()
                .map(|(name, n)| ((*name).to_owned(), *n))
                .collect(),
            failures: Vec::new(),
        }
    }

    #[test]
    fn a_url_has_brackets_only_where_it_must() {
        let line = curl_line("10.0.1.175".parse().unwrap());
        assert!(line.ends_with(" http://10.0.1.175"), "{line}");
        let line = curl_line("fd00::80".parse().unwrap());
        assert!(line.ends_with(" http://[fd00::80]"), "{line}");
    }

    #[test]
    fn counts_are_even_when_they_differ_by_one_at_most() {
        assert!(tally(&[("a", 3), ("b", 4)]).is_even());
        assert!(!tally(&[("a", 3), ("b", 5)]).is_even());
        assert!(!tally(&[]).is_even());
    }

    #[test]
    fn a_refused_request_is_a_failure_that_says_why() {
        let mut tally = Tally::default();
        // Nothing listens on the discard port of the loopback.
        tally.ask("127.0.0.1:9".parse().unwrap());
        assert_eq!(tally.answers(), 0);
        assert!(tally.trouble().contains("refused"), "{}", tally.trouble());
    }
}
