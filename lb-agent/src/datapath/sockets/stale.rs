// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends connected sockets of UDP whose backend is gone.
//!
//! No program runs when a connected socket sends, so it would talk to a dead backend for ever; who has
//! it gets an error instead, and connects anew. A thread of its own looks at all connected sockets of
//! UDP when something of a Service of UDP has gone: time grows with their number, so scans keep a
//! distance from each other.
//! **Invariant:** what makes a socket stale is what makes one that is not connected choose anew
//! (`may_continue` in `lb_ebpf::path::socket`), except silence. One without an entry that leads back to a
//! frontend is nobody's business here, whomever it talks to. Next: `peers.rs`,
//! `diag.rs`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread, park_timeout};
use std::time::{Duration, Instant};

use lb_common::abi::names;
use nix::errno::Errno;

use super::diag::{Diag, DiagSocket, Family};
use super::namespaces::{Namespaces, Places};
use super::peers::Peers;
use super::pods::Visitor;
use super::trigger::Trigger;
use crate::datapath::error::DatapathError;
use crate::datapath::maps::KernelTables;
use crate::datapath::pins::Pins;
use crate::error_chain;

/// From a change to the scan for it: what is written together is looked at together.
const GATHER: Duration = Duration::from_millis(20);
/// The least time between two scans, however many changes there are.
const REST: Duration = Duration::from_millis(250);
/// A scan is followed by so many times what it took, so that all of them take a tenth of one processor
/// at most.
const REST_FACTOR: u32 = 9;

/// What the thread is told.
struct Signal {
    asked: AtomicBool,
    ending: AtomicBool,
}

impl Signal {
    /// Waits; true when the thread is to end.
    fn rest(&self, time: Duration) -> bool {
        self.wait(time, || false)
    }

    /// Waits until somebody asks for a scan, or for `time`; true when the thread is to end.
    fn wait_for_request(&self, time: Duration) -> bool {
        self.wait(time, || self.asked.load(Ordering::Acquire))
    }

    fn wait(&self, time: Duration, over: impl Fn() -> bool) -> bool {
        let end = Instant::now() + time;
        loop {
            if self.ending.load(Ordering::Acquire) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || over() {
                return false;
            }
            park_timeout(left);
        }
    }
}

/// Asks for a scan.
#[derive(Clone)]
pub(in crate::datapath) struct Poke {
    signal: Arc<Signal>,
    thread: Thread,
}

impl Poke {
    /// Something may have become stale. Costs next to nothing while a scan is asked for already.
    pub(in crate::datapath) fn poke(&self) {
        if !self.signal.asked.swap(true, Ordering::AcqRel) {
            self.thread.unpark();
        }
    }
}

/// The running thread; dropping it ends the thread.
pub(in crate::datapath) struct Stale {
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
    destroyed: Arc<AtomicU64>,
}

impl Stale {
    /// Scans the calling thread's network namespace and those of `pods` now, whenever `tables` lose
    /// something that sockets may depend on, and each `audit`.
    pub(in crate::datapath) fn start(
        pins: &Pins,
        tables: &mut KernelTables,
        pods: Option<&Namespaces>,
        audit: Duration,
    ) -> Result<Self, DatapathError> {
        let pods = pods.map(Namespaces::places).unwrap_or_default();
        let mut scanner = Scanner::open(pins, tables, pods)?;
        let signal = Arc::new(Signal {
            asked: AtomicBool::new(true),
            ending: AtomicBool::new(false),
        });
        let destroyed = Arc::new(AtomicU64::new(0));
        let (told, counter) = (Arc::clone(&signal), Arc::clone(&destroyed));
        let thread = std::thread::Builder::new()
            .name("lb-stale".to_owned())
            .spawn(move || run(&mut scanner, &told, audit, &counter))
            .map_err(|source| DatapathError::Thread {
                what: "ends sockets whose backend is gone",
                source,
            })?;
        let poke = Poke {
            signal: Arc::clone(&signal),
            thread: thread.thread().clone(),
        };
        tables.trigger = Some(Trigger::open(pins, poke)?);
        Ok(Self {
            signal,
            thread: Some(thread),
            destroyed,
        })
    }

    /// How many sockets were ended since the start.
    pub(in crate::datapath) fn destroyed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.destroyed)
    }
}

impl Drop for Stale {
    fn drop(&mut self) {
        self.signal.ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::warn!("the thread that ends sockets had panicked");
            }
        }
    }
}

fn run(scanner: &mut Scanner, signal: &Signal, audit: Duration, destroyed: &AtomicU64) {
    let mut known = None;
    while !signal.wait_for_request(audit) && !signal.rest(GATHER) {
        // ORDER: before the tables are read; what is written from here on asks again.
        signal.asked.store(false, Ordering::Release);
        let begun = Instant::now();
        let before = destroyed.load(Ordering::Relaxed);
        let scanned = scanner.scan(destroyed);
        let took = begun.elapsed();
        let ended = destroyed.load(Ordering::Relaxed) - before;
        if ended > 0 {
            tracing::info!(
                "ended {ended} sockets of UDP that were connected to a backend that is gone"
            );
        }
        tracing::debug!(
            micros = took.as_micros(),
            "looked at connected sockets of UDP"
        );
        let failure = scanned.err();
        let told = failure.as_ref().map(|error| error_chain(error));
        if let Some(error) = &told
            && known != told
        {
            tracing::warn!(error, "end sockets whose backend is gone");
        }
        known = told;
        if let Some(DatapathError::NoSocketDestroy) = failure {
            return;
        }
        if signal.rest(REST.max(took * REST_FACTOR)) {
            return;
        }
    }
}

/// What it takes to judge sockets.
struct Scanner {
    v4: Peers<[u8; 4]>,
    v6: Peers<[u8; 16]>,
    pods: Places,
}

impl Scanner {
    fn open(pins: &Pins, tables: &KernelTables, pods: Places) -> Result<Self, DatapathError> {
        let v4 = (names::SOCKETS_V4, names::PREFIXES_V4);
        let v6 = (names::SOCKETS_V6, names::PREFIXES_V6);
        Ok(Self {
            v4: Peers::open(pins, v4, &tables.v4)?,
            v6: Peers::open(pins, v6, &tables.v6)?,
            pods,
        })
    }

    /// Ends every stale socket of the namespace that the calling thread is in, and of pods.
    fn scan(&mut self, destroyed: &AtomicU64) -> Result<(), DatapathError> {
        let own = Diag::open().map_err(failed_to("ask for sockets"))?;
        let mut outcome = self.scan_namespace(own, destroyed);
        let places = self.pods.all();
        if places.is_empty() {
            return outcome;
        }
        let visitor = Visitor::new().map_err(failed_to("enter namespaces of pods to ask"))?;
        for place in places {
            // What is asked there goes on being about it. A pod may be gone by now.
            let asked = visitor.visit(&place, Diag::open);
            let asked = asked.and_then(Option::transpose);
            let scanned = match asked.map_err(failed_to("ask for sockets of a pod")) {
                Ok(Some(diag)) => self.scan_namespace(diag, destroyed),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            // One namespace that cannot be scanned is no reason to leave the others out.
            outcome = outcome.and(scanned);
        }
        outcome
    }

    fn scan_namespace(
        &mut self,
        mut diag: Diag,
        destroyed: &AtomicU64,
    ) -> Result<(), DatapathError> {
        let mut stale = Vec::new();
        for family in [Family::Inet, Family::Inet6] {
            let mut failure = None;
            diag.list(family, |socket| match self.is_stale(&socket) {
                Ok(true) => stale.push(socket),
                Ok(false) => {}
                Err(error) => failure = Some(error),
            })
            .map_err(failed_to("list connected sockets of UDP"))?;
            failure.map_or(Ok(()), Err)?;
        }
        for socket in stale {
            if self.end(&mut diag, &socket)? {
                destroyed.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn is_stale(&self, socket: &DiagSocket) -> Result<bool, DatapathError> {
        match socket.remote() {
            SocketAddr::V4(to) => self
                .v4
                .is_stale(socket.cookie(), (to.ip().octets(), to.port())),
            SocketAddr::V6(to) => self
                .v6
                .is_stale(socket.cookie(), (to.ip().octets(), to.port())),
        }
    }

    /// Ends a socket that was stale a moment ago; false when it is not any more, or is gone.
    fn end(&mut self, diag: &mut Diag, socket: &DiagSocket) -> Result<bool, DatapathError> {
        if !self.is_stale(socket)? {
            return Ok(false);
        }
        let ended = diag.destroy(socket).map_err(|error| {
            // Also where the kernel is built without CONFIG_INET_DIAG_DESTROY.
            if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) {
                return DatapathError::NoSocketDestroy;
            }
            failed_to("end a socket")(error)
        })?;
        // ORDER: after the end, or a socket that stays would be met never again. Its owner may have
        // connected it anew, by the same entry, which is not stale then.
        if ended && self.is_stale(socket)? {
            match socket.remote() {
                SocketAddr::V4(to) => self
                    .v4
                    .forget(socket.cookie(), (to.ip().octets(), to.port())),
                SocketAddr::V6(to) => self
                    .v6
                    .forget(socket.cookie(), (to.ip().octets(), to.port())),
            }?;
        }
        Ok(ended)
    }
}

fn failed_to(what: &'static str) -> impl FnOnce(io::Error) -> DatapathError {
    move |source| DatapathError::Diag { what, source }
}
