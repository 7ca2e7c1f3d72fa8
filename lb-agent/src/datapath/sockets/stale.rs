// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends connected sockets of UDP whose backend is gone.
//!
//! No program runs when a connected socket sends, so it would talk to a dead backend for ever; who has
//! it gets an error instead, and connects anew. A thread of its own looks at all connected sockets of
//! UDP when something of a Service of UDP has gone: time grows with their number, so scans keep a
//! distance from each other.
//! **Invariant:** what makes a socket stale is what makes one that is not connected choose anew
//! (`may_continue` in `lb_ebpf::path::socket`), except silence. One without an entry that leads back to a
//! frontend is nobody's business here, whomever it talks to. Next: `diag.rs`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread, park_timeout};
use std::time::{Duration, Instant};

use aya::maps::MapError;
use lb_common::Address;
use lb_common::abi::{
    Backend, Frontend, FrontendKey, Prefix, PrefixTable, SocketKey, SocketPeer, SourceRange, Way,
    names, proto,
};
use nix::errno::Errno;

use super::diag::{Diag, Family, UdpSocket};
use super::namespaces::{Namespaces, Places};
use super::pods::Visitor;
use super::trigger::Trigger;
use crate::datapath::error::DatapathError;
use crate::datapath::maps::{FamilyMaps, Hash, KernelTables, Raw, failed, is_missing, open_hash};
use crate::datapath::pins::Pins;
use crate::datapath::prefixes::{self, Trie};
use crate::datapath::written::{Shared, Store as _, lock};
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
        self.scan_namespace(own, destroyed)?;
        let places = self.pods.all();
        if places.is_empty() {
            return Ok(());
        }
        let visitor = Visitor::new().map_err(failed_to("enter namespaces of pods to ask"))?;
        for place in places {
            // What is asked there goes on being about it. A pod may be gone by now.
            let asked = visitor.visit(&place, Diag::open);
            let asked = asked.and_then(Option::transpose);
            if let Some(diag) = asked.map_err(failed_to("ask for sockets of a pod"))? {
                self.scan_namespace(diag, destroyed)?;
            }
        }
        Ok(())
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

    fn is_stale(&self, socket: &UdpSocket) -> Result<bool, DatapathError> {
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
    fn end(&mut self, diag: &mut Diag, socket: &UdpSocket) -> Result<bool, DatapathError> {
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

/// What sockets of one family were told, and what they depend on.
struct Peers<A>
where
    SocketKey<A>: bytemuck::Pod,
    SocketPeer<A>: bytemuck::Pod,
    FrontendKey<A>: bytemuck::Pod,
    Backend<A>: bytemuck::Pod,
    Prefix<A>: bytemuck::Pod,
    A: bytemuck::Pod,
{
    name: &'static str,
    sockets: Hash<SocketKey<A>, SocketPeer<A>>,
    // Those that are written, not their pins: maps that grow are replaced.
    frontends: Shared<Hash<FrontendKey<A>, Frontend>>,
    backends: Shared<Hash<u32, Backend<A>>>,
    prefixes: Trie<A>,
}

impl<A: Address + bytemuck::Pod + Send> Peers<A>
where
    SocketKey<A>: bytemuck::Pod,
    SocketPeer<A>: bytemuck::Pod,
    FrontendKey<A>: bytemuck::Pod,
    Backend<A>: bytemuck::Pod,
    SourceRange<A>: bytemuck::Pod,
    Prefix<A>: bytemuck::Pod,
{
    fn open(
        pins: &Pins,
        (sockets, prefixes): (&'static str, &'static str),
        tables: &FamilyMaps<A>,
    ) -> Result<Self, DatapathError> {
        Ok(Self {
            name: sockets,
            sockets: open_hash(pins, sockets)?,
            frontends: Arc::clone(&tables.frontends),
            backends: Arc::clone(&tables.backends),
            prefixes: prefixes::open(pins, prefixes)?,
        })
    }

    /// True when a socket was led to `remote` in the place of a frontend, and would not be today.
    fn is_stale(&self, cookie: u64, remote: (A, u16)) -> Result<bool, DatapathError> {
        let key = SocketKey::new(cookie, remote, proto::UDP, Way::Back);
        let peer = match self.sockets.get(&Raw(key), 0) {
            Ok(Raw(peer)) => peer,
            Err(error) if is_missing(&error) => return Ok(false),
            Err(error) => return Err(failed("read", self.name)(error)),
        };
        let backend = {
            let map = lock(&self.backends);
            let found = map.now().replaced(&peer.backend);
            found.map_err(failed("read", map.name))?
        };
        if !backend.is_some_and(|now| is_same_backend(&peer, &now)) {
            return Ok(true);
        }
        let Some(address) = self.frontend_address(peer.address)? else {
            return Ok(false);
        };
        let map = lock(&self.frontends);
        let key = FrontendKey::new(address, peer.port, proto::UDP);
        let found = map.now().replaced(&key);
        let frontend = found.map_err(failed("read", map.name))?;
        Ok(!frontend.is_some_and(|now| is_same_frontend(&peer, &now)))
    }

    /// Under which address the frontend is that was dialled at this one. None: nothing stands for
    /// loopback, which may be so while addresses of the node change, and says nothing of the frontend.
    fn frontend_address(&self, dialled: A) -> Result<Option<A>, DatapathError> {
        if !dialled.is_loopback_or_unspecified() {
            return Ok(Some(dialled));
        }
        let key = prefixes::whole(PrefixTable::LOOPBACK, dialled);
        match self.prefixes.get(&key, 0) {
            Ok(Raw(address)) => Ok(Some(address)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("read", prefixes_of(self.name))(error)),
        }
    }

    /// Removes the entry that leads back.
    fn forget(&mut self, cookie: u64, remote: (A, u16)) -> Result<(), DatapathError> {
        let key = SocketKey::new(cookie, remote, proto::UDP, Way::Back);
        match self.sockets.remove(&Raw(key)) {
            Err(error) if !is_missing(&error) => Err(failed("write", self.name)(error)),
            _ => Ok(()),
        }
    }
}

fn prefixes_of(sockets: &'static str) -> &'static str {
    if sockets == names::SOCKETS_V4 {
        names::PREFIXES_V4
    } else {
        names::PREFIXES_V6
    }
}

fn is_same_backend<A>(peer: &SocketPeer<A>, now: &Backend<A>) -> bool {
    now.epoch == peer.epoch && now.service == peer.service
}

fn is_same_frontend<A>(peer: &SocketPeer<A>, now: &Frontend) -> bool {
    now.generation == peer.generation && now.service == peer.service
}
