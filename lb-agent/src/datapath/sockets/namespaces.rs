// SPDX-License-Identifier: MIT OR Apache-2.0
//! `NAMESPACES`: the network namespaces of pods whose sockets are served.
//!
//! A thread of its own looks at the cgroups of pods whenever one comes or goes, which inotify tells, and
//! enters each pod's namespace to learn by which cookie the programs know it.
//! **Invariant:** what is not in the map is served packet by packet, so being late does no harm. Next:
//! `pods.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lb_common::abi::names;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::netns::{learn_netns_cookie, netns_cookie};
use super::pods::{self, Place, Visitor};
use crate::datapath::error::DatapathError;
use crate::datapath::maps::{Hash, Raw, failed, is_missing, open_hash};
use crate::datapath::pins::Pins;
use crate::error_chain;
use crate::model::pod::PodRules;

/// From an event to the look that it leads to: several come together.
const GATHER: Duration = Duration::from_millis(20);
/// Wait for the first process of a pod whose folder is there; doubled up to the audits' interval.
const PROCESS_WAIT: Duration = Duration::from_millis(20);
/// Time between two looks where nobody tells of changes.
const UNTOLD: Duration = Duration::from_secs(5);

/// What the thread shares with those who talk to it.
#[derive(Debug)]
struct Shared {
    rules: Mutex<Option<PodRules>>,
    places: Places,
    ending: AtomicBool,
    wake: PipeWriter,
}

impl Shared {
    fn wake(&self) {
        // The other end is there as long as the thread, which reads all there is.
        (&self.wake).write_all(&[1]).unwrap_or_default();
    }
}

/// The namespaces of all pods that were found, served or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<Vec<Place>>>);

impl Places {
    pub(super) fn all(&self) -> Vec<Place> {
        lock(&self.0).clone()
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells which pods are served.
#[derive(Clone, Debug)]
pub(in crate::datapath) struct PodLearner(Arc<Shared>);

impl PodLearner {
    pub(in crate::datapath) fn learn(&self, rules: PodRules) {
        *lock(&self.0.rules) = Some(rules);
        self.0.wake();
    }
}

/// The running thread; dropping it ends the thread, and the map stays as it is.
pub(in crate::datapath) struct Namespaces {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Namespaces {
    /// Follows the pods below `cgroup`. `serve_unknown` decides about those of which the rules say
    /// nothing; before there are rules nobody is served who was not by an earlier agent.
    pub(in crate::datapath) fn start(
        pins: &Pins,
        cgroup: &Path,
        serve_unknown: bool,
        audit: Duration,
    ) -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::Pods { source };
        let (woken, wake) = io::pipe().map_err(failed)?;
        let shared = Arc::new(Shared {
            rules: Mutex::new(None),
            places: Places::default(),
            ending: AtomicBool::new(false),
            wake,
        });
        let follower = Follower {
            cgroup: cgroup.to_owned(),
            serve_unknown,
            audit,
            watches: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
                .map_err(|errno| failed(errno.into()))?,
            map: Map::open(pins)?,
            woken,
            shared: Arc::clone(&shared),
            cookies: BTreeMap::new(),
            all_told: true,
            told: None,
        };
        let thread = std::thread::Builder::new()
            .name("lb-pods".to_owned())
            .spawn(move || follower.run())
            .map_err(|source| DatapathError::Thread {
                what: "finds the network namespaces of pods",
                source,
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(in crate::datapath) fn learner(&self) -> PodLearner {
        PodLearner(Arc::clone(&self.shared))
    }

    pub(super) fn places(&self) -> Places {
        self.shared.places.clone()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread that finds pods had panicked");
        }
    }
}

/// The map, and what is in it.
struct Map {
    map: Hash<u64, u32>,
    held: BTreeSet<u64>,
}

impl Map {
    fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let map: Hash<u64, u32> = open_hash(pins, names::NAMESPACES)?;
        let held = map.keys().map(|key| key.map(|Raw(cookie)| cookie));
        let held = held.collect::<Result<_, _>>();
        Ok(Self {
            held: held.map_err(failed("read", names::NAMESPACES))?,
            map,
        })
    }

    /// Makes it what is wanted. A failure leaves the rest for the next time.
    fn set(&mut self, wanted: &BTreeSet<u64>) -> Result<(), DatapathError> {
        let gone: Vec<u64> = self.held.difference(wanted).copied().collect();
        for cookie in gone {
            match self.map.remove(&Raw(cookie)) {
                Err(error) if !is_missing(&error) => {
                    return Err(failed("write", names::NAMESPACES)(error));
                }
                _ => self.held.remove(&cookie),
            };
        }
        let new: Vec<u64> = wanted.difference(&self.held).copied().collect();
        for cookie in new {
            let put = self.map.insert(Raw(cookie), Raw(1), 0);
            put.map_err(failed("write", names::NAMESPACES))?;
            self.held.insert(cookie);
        }
        Ok(())
    }
}

/// What the thread works with.
struct Follower {
    cgroup: PathBuf,
    serve_unknown: bool,
    audit: Duration,
    watches: Inotify,
    map: Map,
    woken: PipeReader,
    shared: Arc<Shared>,
    /// By what process each namespace was found, which is not the case of its successor's.
    cookies: BTreeMap<Place, u64>,
    /// There is a watch on each folder.
    all_told: bool,
    /// The last trouble that was told.
    told: Option<String>,
}

impl Follower {
    fn run(mut self) {
        let (visitor, home) = match Visitor::new().and_then(|v| Ok((v, Place::own()?))) {
            Ok(both) => both,
            Err(source) => return self.tell(Some(&DatapathError::Pods { source })),
        };
        let mut wait = PROCESS_WAIT;
        loop {
            let looked = self.look(&visitor, &home);
            self.tell(looked.as_ref().err());
            let longest = if self.all_told { self.audit } else { UNTOLD };
            let time = match looked {
                Ok(true) => longest,
                Ok(false) | Err(_) => wait.min(longest),
            };
            match self.wait(time) {
                Wake::Ending => return,
                Wake::Event => wait = PROCESS_WAIT,
                Wake::Timeout => wait = (wait * 2).min(self.audit),
            }
        }
    }

    /// Finds all pods and writes the map; false when some pod has no process yet.
    fn look(&mut self, visitor: &Visitor, home: &Place) -> Result<bool, DatapathError> {
        let in_vain = |source| DatapathError::Pods { source };
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        self.all_told = true;
        let watch = |folder: &Path| match self.watches.add_watch(folder, flags) {
            Ok(_) | Err(Errno::ENOENT) => {}
            // As many as this user may have, for one.
            Err(_) => self.all_told = false,
        };
        let found = pods::find(&self.cgroup, watch).map_err(in_vain)?;
        let complete = found.values().all(Option::is_some);
        let pods: Vec<_> = found
            .into_iter()
            .filter_map(|(uid, place)| Some((uid, place?)))
            // Pods on the host network are served as the node's own processes are.
            .filter(|(_, place)| !place.is_same(home))
            .collect();
        let before = std::mem::take(&mut self.cookies);
        let mut failure = None;
        for (_, place) in &pods {
            let known = before.get(place).copied();
            match known.map_or_else(|| self.learn(visitor, place), |known| Ok(Some(known))) {
                Ok(Some(cookie)) => {
                    self.cookies.insert(place.clone(), cookie);
                }
                Ok(None) => {}
                // No reason to leave the others out.
                Err(error) => failure = Some(error),
            }
        }
        *lock(&self.shared.places.0) = self.cookies.keys().cloned().collect();
        let rules = lock(&self.shared.rules).clone();
        let served = pods.iter().filter_map(|(uid, place)| {
            let cookie = *self.cookies.get(place)?;
            let served = match &rules {
                Some(rules) => rules.serves(uid).unwrap_or(self.serve_unknown),
                None => self.map.held.contains(&cookie),
            };
            served.then_some(cookie)
        });
        let served: BTreeSet<u64> = served.collect();
        if served != self.map.held {
            tracing::info!("sockets of {} pods are served", served.len());
        }
        self.map.set(&served)?;
        failure.map_or(Ok(complete), |error| Err(in_vain(error)))
    }

    /// The cookie of a namespace; none when it is gone.
    fn learn(&self, visitor: &Visitor, place: &Place) -> io::Result<Option<u64>> {
        let cookie = visitor.visit(place, || match netns_cookie() {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                learn_netns_cookie(&self.cgroup).map_err(io::Error::other)
            }
            other => other,
        })?;
        cookie.transpose()
    }

    /// Waits for something to have changed.
    fn wait(&mut self, time: Duration) -> Wake {
        let mut fds = [
            PollFd::new(self.watches.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
        ];
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        // What interrupts it is as good as an event.
        let happened = !matches!(poll(&mut fds, timeout), Ok(0));
        let is_woken = fds[1].any().unwrap_or(false);
        if is_woken {
            // A byte is there.
            drop(self.woken.read(&mut [0; 64]));
        }
        if self.shared.ending.load(Ordering::Acquire) {
            return Wake::Ending;
        }
        if !happened {
            return Wake::Timeout;
        }
        if !is_woken {
            let gather = PollTimeout::try_from(GATHER).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, gather).unwrap_or_default();
        }
        // What they are about is looked for anyway.
        while self
            .watches
            .read_events()
            .is_ok_and(|events| !events.is_empty())
        {}
        Wake::Event
    }

    /// Says what goes wrong, once.
    fn tell(&mut self, error: Option<&DatapathError>) {
        let now = error.map(|error| error_chain(error));
        if let Some(error) = &now
            && self.told != now
        {
            tracing::warn!(error, "find the network namespaces of pods");
        }
        self.told = now;
    }
}

/// Why a wait is over.
enum Wake {
    Event,
    Timeout,
    Ending,
}
