// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes maps that planning writes larger while programs read them, on a thread of its own.
//!
//! New maps and new programs for them are loaded, every write goes to both maps from then on, the
//! entries are copied, the programs are replaced on the devices (`follow.rs`), and at last the
//! pins. All maps that are full then grow together.
//! **Invariant:** until the programs begin to be replaced a failure leaves everything as it was;
//! from then on there is no way back and every step is repeated until it succeeds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::Ebpf;
use tokio::sync::{mpsc, watch};

use super::error::DatapathError;
use super::loader::{self, Wanted};
use super::pins::Pins;
use super::written::Grow;
use crate::error_chain;

/// Wait after the first failure; doubled for each further one.
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// The longest wait after a failure: an attempt costs about a second of one CPU.
const WAIT_LONGEST: Duration = Duration::from_mins(1);

/// What the thread is told.
pub(super) enum Event {
    /// Some map had no room.
    Full,
    /// Every attach point has the programs that were loaded last.
    Switched,
    /// The agent ends.
    End,
}

/// Tells the thread that some map had no room.
pub(super) struct Caller(Sender<Event>);

impl Caller {
    pub(super) fn call(&self) {
        // The thread has ended only when the agent ends.
        self.0.send(Event::Full).unwrap_or_default();
    }
}

/// New programs for all attach points.
pub(super) struct Switch {
    pub(super) programs: Ebpf,
    /// Who waits until the last attach point has them.
    pub(super) done: Sender<Event>,
}

/// The running thread; dropping it ends the thread, between two steps of a growth.
pub(super) struct Grower {
    events: Sender<Event>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    grown: watch::Receiver<u64>,
}

impl Grower {
    /// Maps that call are made larger as `wanted` allows; new programs go to `switches`.
    pub(super) fn start(
        pins: Pins,
        wanted: Wanted,
        maps: Vec<Arc<dyn Grow>>,
        switches: mpsc::UnboundedSender<Switch>,
    ) -> Result<Self, DatapathError> {
        for map in &maps {
            if let Some(size) = wanted.sizes.of(map.name()) {
                map.allow(size);
            }
        }
        let (events, received) = channel();
        let (sender, grown) = watch::channel(0);
        let ending = Arc::new(AtomicBool::new(false));
        let work = Work {
            pins,
            wanted,
            maps,
            switches,
            events: received,
            done: events.clone(),
            ending: Arc::clone(&ending),
            grown: sender,
        };
        let thread = std::thread::Builder::new()
            .name("lb-grow".to_owned())
            .spawn(move || work.run())
            .map_err(|source| DatapathError::Thread {
                what: "makes maps larger",
                source,
            })?;
        Ok(Self {
            events,
            ending,
            thread: Some(thread),
            grown,
        })
    }

    pub(super) fn caller(&self) -> Caller {
        Caller(self.events.clone())
    }

    pub(super) fn grown(&self) -> watch::Receiver<u64> {
        self.grown.clone()
    }
}

impl Drop for Grower {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        self.events.send(Event::End).unwrap_or_default();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread that makes maps larger had panicked");
        }
    }
}

/// A map and the entries that it is to have.
type Growing = (Arc<dyn Grow>, u32);

/// Why a growth did not come to its end.
enum Halt {
    /// The agent ends; the next one finds pins that it can go on from.
    Ending,
    /// It is as if nothing had been tried.
    Failed(DatapathError),
}

impl From<DatapathError> for Halt {
    fn from(error: DatapathError) -> Self {
        Self::Failed(error)
    }
}

/// What the thread works with.
struct Work {
    pins: Pins,
    wanted: Wanted,
    maps: Vec<Arc<dyn Grow>>,
    switches: mpsc::UnboundedSender<Switch>,
    events: Receiver<Event>,
    done: Sender<Event>,
    ending: Arc<AtomicBool>,
    grown: watch::Sender<u64>,
}

impl Work {
    fn run(self) {
        let mut not_before = Instant::now();
        let mut wait = WAIT_FIRST;
        while let Ok(Event::Full | Event::Switched) = self.events.recv() {
            // Calls that came during the last growth are for maps that have room by now, or for
            // others; so it is asked until none is full.
            loop {
                let growing = self.full();
                // Whoever still needs the room calls again.
                if growing.is_empty() || Instant::now() < not_before {
                    break;
                }
                match self.grow(&growing) {
                    Ok(()) => wait = WAIT_FIRST,
                    Err(Halt::Ending) => return,
                    Err(Halt::Failed(error)) => {
                        self.give_up(&growing, &error);
                        not_before = Instant::now() + wait;
                        wait = (wait * 2).min(WAIT_LONGEST);
                    }
                }
            }
        }
    }

    fn full(&self) -> Vec<Growing> {
        let full = |map: &Arc<dyn Grow>| Some((Arc::clone(map), map.take_full()?));
        self.maps.iter().filter_map(full).collect()
    }

    fn grow(&self, growing: &[Growing]) -> Result<(), Halt> {
        let begun = Instant::now();
        for (map, entries) in growing {
            let (map, now) = (map.name(), map.entries());
            tracing::info!(map, "full with {now} entries; making one of {entries}");
        }
        let programs = self.prepare(growing)?;
        self.replace_programs(programs)?;
        self.replace_pins(growing)?;
        for (map, entries) in growing {
            let took = begun.elapsed().as_secs_f64();
            tracing::info!(
                map = map.name(),
                "has room for {entries} entries after {took:.1} s"
            );
        }
        self.grown.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Makes the maps and the programs that use them; both maps of each hold the same afterwards.
    fn prepare(&self, growing: &[Growing]) -> Result<Ebpf, Halt> {
        self.pins.prepare_next()?;
        let sizes: BTreeMap<_, _> = growing
            .iter()
            .map(|(map, entries)| (map.name(), *entries))
            .collect();
        let programs = loader::load_larger(&self.pins, &self.wanted, &sizes)?;
        // ORDER: first all writes go to both, then the older entries follow.
        for (map, entries) in growing {
            map.follow(&self.pins, *entries)?;
        }
        for (map, _) in growing {
            if let Err(error) = map.copy(&self.pins, &self.ending) {
                return Err(self.unless_ending(error));
            }
        }
        Ok(programs)
    }

    fn unless_ending(&self, error: DatapathError) -> Halt {
        if self.ending.load(Ordering::Relaxed) {
            Halt::Ending
        } else {
            Halt::Failed(error)
        }
    }

    /// Has the programs replaced on all devices and waits for the last one.
    fn replace_programs(&self, programs: Ebpf) -> Result<(), Halt> {
        let done = self.done.clone();
        // Nobody follows devices any more only when the agent ends, which is told below.
        drop(self.switches.send(Switch { programs, done }));
        loop {
            match self.events.recv() {
                Ok(Event::Switched) => return Ok(()),
                Ok(Event::Full) => {}
                Ok(Event::End) | Err(_) => return Err(Halt::Ending),
            }
        }
    }

    /// Puts the new pins in the place of the old ones.
    fn replace_pins(&self, growing: &[Growing]) -> Result<(), Halt> {
        let mut wait = WAIT_FIRST;
        loop {
            let replaced = growing
                .iter()
                .try_for_each(|(map, _)| map.take_over(&self.pins))
                .and_then(|()| self.pins.forget_next());
            let Err(error) = replaced else {
                return Ok(());
            };
            // Both maps are written until it works, so nothing but the file is behind.
            tracing::warn!(
                error = error_chain(&error),
                "replace pins, trying again later"
            );
            self.rest(wait)?;
            wait = (wait * 2).min(WAIT_LONGEST);
        }
    }

    fn rest(&self, wait: Duration) -> Result<(), Halt> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Full | Event::Switched) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => return Err(Halt::Ending),
            }
        }
    }

    fn give_up(&self, growing: &[Growing], error: &DatapathError) {
        let why = error_chain(error);
        for (map, entries) in growing {
            map.abandon(&why);
            let map = map.name();
            tracing::warn!(map, error = why, "make one of {entries} entries");
        }
        if let Err(error) = self.pins.forget_next() {
            tracing::warn!(error = error_chain(&error), "clean up");
        }
    }
}
