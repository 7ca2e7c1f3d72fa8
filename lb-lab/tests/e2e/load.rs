// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many connections, one after the other or by several clients at once, each one noted.
//!
//! **Invariant:** a request is noted with the time at which it began and how it ended; nothing
//! is tried twice. Read next: `clusterip.rs` and `updates.rs`, which judge the notes.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lb_lab::{Host, HttpClient, LabError, Recording, UdpClient};

use crate::cluster::CONNECT_MAX;

/// One request on a connection of its own.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) began: Instant,
    pub(crate) remote: SocketAddr,
    /// The name that the server answered, and how long the connect took.
    pub(crate) result: Result<(String, Duration), LabError>,
}

impl Request {
    fn make(remote: SocketAddr) -> Self {
        let began = Instant::now();
        let result = HttpClient::new(remote).get("/");
        let result = result.map(|reply| (reply.text().to_owned(), reply.connect_time));
        Self {
            began,
            remote,
            result,
        }
    }

    /// What was wrong with it.
    fn failure(&self) -> Option<String> {
        match &self.result {
            Ok((_, time)) if *time < CONNECT_MAX => None,
            Ok((name, time)) => Some(format!("{} by {name}: connect took {time:?}", self.remote)),
            Err(error) => {
                let cause = std::error::Error::source(error).map(ToString::to_string);
                Some(format!("{error}: {}", cause.unwrap_or_default()))
            }
        }
    }

    /// Whether this server answered it.
    pub(crate) fn is_by(&self, name: &str) -> bool {
        self.result.as_ref().is_ok_and(|(by, _)| by == name)
    }
}

/// Asserts that every request was answered at the first try.
pub(crate) fn assert_no_failure(requests: &[Request]) {
    let failures: Vec<_> = requests.iter().filter_map(Request::failure).collect();
    let shown = &failures[..failures.len().min(10)];
    assert!(
        failures.is_empty(),
        "{} of {} requests failed: {shown:#?}",
        failures.len(),
        requests.len()
    );
}

/// Asserts that a recording is complete and that no SYN in it was sent again.
pub(crate) fn assert_no_retransmission(recording: &Recording) {
    assert_eq!(recording.missed(), 0, "the capture itself lost packets");
    assert!(!recording.is_empty(), "the capture saw nothing");
    assert_eq!(recording.syn_retransmissions(), Vec::<String>::new());
}

/// `count` connections, one after the other.
pub(crate) fn sequential(client: &Host, remote: SocketAddr, count: usize) -> Vec<Request> {
    let work = || (0..count).map(|_| Request::make(remote)).collect();
    client.run(work).unwrap()
}

/// `count` connections by each of `clients` threads at once, all to the same remote.
pub(crate) fn parallel(
    client: &Host,
    remote: SocketAddr,
    clients: usize,
    count: usize,
) -> Vec<Request> {
    thread::scope(|scope| {
        let start = |_| scope.spawn(move || sequential(client, remote, count));
        let threads: Vec<_> = (0..clients).map(start).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// Runs `work` while `clients` threads dial the remotes in turn without pause.
pub(crate) fn during<T>(
    client: &Host,
    remotes: [SocketAddr; 2],
    clients: usize,
    work: impl FnOnce() -> T,
) -> (T, Vec<Request>) {
    /// Ends the load also when `work` panics; the scope would wait for it forever.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = End(&stop);
        let start = |number: usize| {
            let (remote, stop) = (remotes[number % remotes.len()], &stop);
            let dial = move || {
                let mut requests = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    requests.push(Request::make(remote));
                }
                requests
            };
            scope.spawn(move || client.run(dial).unwrap())
        };
        let threads: Vec<_> = (0..clients).map(start).collect();
        let value = work();
        drop(end);
        let requests = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        (value, requests.collect())
    })
}

/// One question from each of `count` UDP sockets; the names that answered.
///
/// Each has a port of its own: a port that comes again within minutes is the same flow to
/// everyone but its socket, and keeps its backend.
pub(crate) fn datagrams(client: &Host, remote: SocketAddr, count: u16) -> Vec<String> {
    const FIRST_PORT: u16 = 20_000;
    let ask = |number| UdpClient::bind(remote, Some(FIRST_PORT + number))?.ask("hostname");
    let work = || (0..count).map(ask).collect::<Result<Vec<_>, _>>();
    client.run(work).unwrap().unwrap()
}

/// How often each name answered at this address.
pub(crate) fn tally(requests: &[Request], remote: SocketAddr) -> BTreeMap<String, usize> {
    let of_remote = requests.iter().filter(|request| request.remote == remote);
    count(of_remote.filter_map(|request| request.result.as_ref().ok().map(|(name, _)| name)))
}

/// How often each name occurs.
pub(crate) fn count<'a>(names: impl Iterator<Item = &'a String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.clone()).or_default() += 1;
    }
    counts
}

/// Asserts that `backends` names answered `total` requests, none twice more than another.
pub(crate) fn assert_even(
    counts: &BTreeMap<String, usize>,
    backends: usize,
    total: usize,
    what: &str,
) {
    assert_eq!(counts.values().sum::<usize>(), total, "{what}: {counts:?}");
    assert_eq!(counts.len(), backends, "{what}: {counts:?}");
    let (least, most) = (counts.values().min(), counts.values().max());
    let spread = most.zip(least).map(|(most, least)| most - least);
    assert!(
        spread.is_some_and(|spread| spread <= 1),
        "{what}: {counts:?}"
    );
}
