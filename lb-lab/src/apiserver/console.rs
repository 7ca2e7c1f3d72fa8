// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands of `lb-lab apiserver`: one per line, one line of answer each.
//!
//! **Invariant:** an answer begins with what was done or with `error`; times are `CLOCK_MONOTONIC` in
//! nanoseconds, just before the event was written to the first socket that took it.
//! Read next: `generate`.

use std::fs;
use std::io::{self, BufRead, Write};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use super::{ApiServer, Cluster, Resource};

/// How long a change waits for a watch to take it.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);
/// From one changed Service to the next; a prime, so that a series visits all of them.
const STRIDE: usize = 7919;
/// What there is to say.
const HELP: &str = "commands: change SERVICE_INDEX, changes COUNT INTERVAL_US, stats, quit";

/// Obeys commands until `quit` or the end of the input.
pub fn converse(
    server: &ApiServer,
    cluster: &mut Cluster,
    input: impl BufRead,
    mut output: impl Write,
) -> io::Result<()> {
    let mut next = 0;
    for line in input.lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            [] => continue,
            ["quit"] => return Ok(()),
            ["stats"] => stats(server),
            ["change", index] => match index.parse() {
                Ok(index) => change(server, cluster, index),
                Err(_) => format!("error: {HELP}"),
            },
            ["changes", count, interval] => match (count.parse(), interval.parse()) {
                (Ok(count), Ok(micros)) => {
                    let interval = Duration::from_micros(micros);
                    changes(server, cluster, &mut next, count, interval)
                }
                _ => format!("error: {HELP}"),
            },
            _ => format!("error: {HELP}"),
        };
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

fn change(server: &ApiServer, cluster: &mut Cluster, index: usize) -> String {
    let Some(version) = cluster.change(server, index) else {
        return format!("error: there are {} services", cluster.services());
    };
    match server.handed_ns(version, TAKEN_WITHIN) {
        Some(at) => format!("changed {version} {at}"),
        None => format!("changed {version} untaken"),
    }
}

fn changes(
    server: &ApiServer,
    cluster: &mut Cluster,
    next: &mut usize,
    count: u32,
    interval: Duration,
) -> String {
    let start = Instant::now();
    let mut versions = Vec::new();
    for number in 0..count {
        let due = start + interval * number;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left);
        }
        let Some(version) = cluster.change(server, *next) else {
            return "error: there are no services".to_owned();
        };
        versions.push(version);
        *next = (*next + STRIDE) % cluster.services();
    }
    let mut answer = format!("changed {count}");
    let mut patience = TAKEN_WITHIN;
    for version in versions {
        let handed = server.handed_ns(version, patience);
        if handed.is_none() {
            // Nobody takes them: the others do not wait again.
            patience = Duration::ZERO;
        }
        let at = handed.map_or_else(|| "untaken".to_owned(), |at| at.to_string());
        let part = format!(" {version}:{at}");
        answer.push_str(&part);
    }
    answer
}

fn stats(server: &ApiServer) -> String {
    let (requests, bytes) = server.traffic();
    let cpu = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| {
        let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
        micros(usage.user_time()) + micros(usage.system_time())
    });
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("0");
    let watches: usize = Resource::WATCHED
        .map(|resource| server.watches(resource))
        .iter()
        .sum();
    format!(
        "stats requests={requests} bytes={bytes} cpu_s={}.{:06} rss_kib={rss} watches={watches} version={}",
        cpu / 1_000_000,
        cpu % 1_000_000,
        server.version()
    )
}
