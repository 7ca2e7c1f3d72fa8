// SPDX-License-Identifier: MIT OR Apache-2.0
//! A map that planning writes, and how it moves into a larger one while programs read it.
//!
//! From [`Written::follow`] on, every write goes to both maps, while [`copy`] brings over what was
//! there before, some entries at a time. Then both hold the same until [`Written::take_over`].
//! **Invariant:** the old map is written first and decides whether a write succeeds; whoever reads
//! either of them sees the writes in their order. Next: `grow.rs`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::maps::MapError;
use nix::errno::Errno;

use super::error::{DatapathError, os_error};
use super::maps::failed;
use super::pins::Pins;
use super::sizes::Size;
use crate::tables::Growth;

/// Entries copied before others may write, about a millisecond of work.
const STEP_ENTRIES: usize = 512;
/// Rest between two steps, so that who waits for the lock gets it.
const STEP_REST: Duration = Duration::from_micros(50);
/// Keys looked at for each entry that the map may hold: the kernel starts a walk anew when the key
/// it stands on is removed.
const WALK_ROUNDS: usize = 4;

/// A map of the kernel, whatever its kind.
pub(super) trait Store: Sized + Send + 'static {
    type Key: Copy + Send;
    type Value: Copy;

    /// Opens a pinned one.
    fn open(path: &Path) -> Result<Self, MapError>;
    fn put(&mut self, key: &Self::Key, value: Self::Value) -> Result<(), MapError>;
    /// Removes an entry; none is no error.
    fn delete(&mut self, key: &Self::Key) -> Result<(), MapError>;
    /// The value of a key that is there.
    fn value(&self, key: &Self::Key) -> Result<Self::Value, MapError>;
    /// The value that a put would replace, if there is one.
    fn replaced(&self, key: &Self::Key) -> Result<Option<Self::Value>, MapError>;
    /// Every key; the walk goes on, perhaps from the start, when entries come and go meanwhile.
    fn keys(&self) -> impl Iterator<Item = Result<Self::Key, MapError>>;
}

/// A write that did not happen.
#[derive(Debug)]
pub(super) enum WriteError {
    /// There was no room among so many entries.
    Full(u32, Growth),
    /// The kernel refused.
    Refused(MapError),
}

/// A map, and the larger one that follows it while it grows.
pub(super) struct Written<M> {
    pub(super) name: &'static str,
    now: M,
    entries: u32,
    next: Option<Next<M>>,
    /// How it may grow; none when nobody sees to that.
    size: Option<Size>,
    /// A write has found no room since the last growth.
    full: bool,
    /// Why the last growth failed.
    failure: Option<String>,
}

struct Next<M> {
    map: M,
    entries: u32,
    /// A write is in the old map and not in this one.
    behind: bool,
}

/// A map whose writer and whose copier take turns.
pub(super) type Shared<M> = Arc<Mutex<Written<M>>>;

/// A panic of the other one leaves nothing half done that a retry would not mend.
pub(super) fn lock<M>(shared: &Mutex<Written<M>>) -> MutexGuard<'_, Written<M>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Store> Written<M> {
    pub(super) fn new(name: &'static str, now: M, entries: u32) -> Self {
        Self {
            name,
            now,
            entries,
            next: None,
            size: None,
            full: false,
            failure: None,
        }
    }

    pub(super) fn now(&self) -> &M {
        &self.now
    }

    pub(super) fn put(&mut self, key: &M::Key, value: M::Value) -> Result<(), WriteError> {
        let Some(next) = &mut self.next else {
            return self.now.put(key, value).map_err(|error| self.error(error));
        };
        let replaced = self.now.replaced(key).map_err(WriteError::Refused)?;
        if let Err(error) = self.now.put(key, value) {
            return Err(self.error(error));
        }
        next.map.put(key, value).map_err(|error| {
            next.behind = true;
            // A write fails as a whole. Should this fail too, both are right again when the
            // write, which counts as failed, is tried again.
            let undone = match replaced {
                Some(value) => self.now.put(key, value),
                None => self.now.delete(key),
            };
            if let Err(error) = undone {
                tracing::warn!(map = self.name, %error, "undo a write that half failed");
            }
            WriteError::Refused(error)
        })
    }

    pub(super) fn delete(&mut self, key: &M::Key) -> Result<(), WriteError> {
        self.now.delete(key).map_err(WriteError::Refused)?;
        let Some(next) = &mut self.next else {
            return Ok(());
        };
        next.map.delete(key).map_err(|error| {
            next.behind = true;
            WriteError::Refused(error)
        })
    }

    fn error(&mut self, error: MapError) -> WriteError {
        // KERNEL: a hash says E2BIG, a trie ENOSPC.
        let code = os_error(&error).map(Errno::from_raw);
        if !matches!(code, Some(Errno::E2BIG | Errno::ENOSPC)) {
            return WriteError::Refused(error);
        }
        self.full = true;
        let growth = match (self.size, &self.failure) {
            (None, _) => Growth::None,
            (Some(size), _) if size.after(self.entries).is_none() => Growth::AtLimit,
            (Some(_), Some(failure)) => Growth::Failed(failure.clone()),
            (Some(_), None) => Growth::UnderWay,
        };
        WriteError::Full(self.entries, growth)
    }

    /// From now on every write goes to `map` as well.
    fn follow(&mut self, map: M, entries: u32) {
        self.failure = None;
        self.next = Some(Next {
            map,
            entries,
            behind: false,
        });
    }

    /// Copies the next entries of the walk; false when there are no more.
    fn copy(
        &mut self,
        keys: &mut impl Iterator<Item = Result<M::Key, MapError>>,
    ) -> Result<bool, MapError> {
        let Some(next) = &mut self.next else {
            return Ok(false);
        };
        for _ in 0..STEP_ENTRIES {
            let Some(key) = keys.next() else {
                return Ok(false);
            };
            let key = key?;
            next.map.put(&key, self.now.value(&key)?)?;
        }
        Ok(true)
    }

    fn take_over(&mut self) {
        if let Some(next) = self.next.take() {
            self.now = next.map;
            self.entries = next.entries;
        }
        self.full = false;
        self.failure = None;
    }
}

/// Brings every entry of `shared` into the map that follows it. `reader` is the same map as the
/// one that is written now; it is walked under the lock, so no entry changes under a step.
fn copy<M: Store>(
    shared: &Mutex<Written<M>>,
    reader: &M,
    ending: &AtomicBool,
) -> Result<(), DatapathError> {
    let (name, entries) = {
        let written = lock(shared);
        (written.name, written.entries)
    };
    let walk_max = usize::try_from(entries)
        .unwrap_or(usize::MAX)
        .saturating_mul(WALK_ROUNDS)
        .saturating_add(STEP_ENTRIES);
    let why = |why| DatapathError::Copy { map: name, why };
    let mut keys = reader.keys();
    let mut walked = 0;
    loop {
        let more = lock(shared).copy(&mut keys).map_err(failed("copy", name))?;
        if !more {
            break;
        }
        walked += STEP_ENTRIES;
        if walked > walk_max {
            return Err(why("too much of it is removed meanwhile"));
        }
        if ending.load(Ordering::Relaxed) {
            return Err(why("the agent ends"));
        }
        std::thread::park_timeout(STEP_REST);
    }
    let written = lock(shared);
    match &written.next {
        Some(next) if !next.behind => Ok(()),
        _ => Err(why("a write to the copy failed meanwhile")),
    }
}

/// What growing needs of a map, whatever its keys and values.
pub(super) trait Grow: Send + Sync {
    fn name(&self) -> &'static str;
    /// Entries that it has room for.
    fn entries(&self) -> u32;
    /// From now on it may grow so far.
    fn allow(&self, size: Size);
    /// The size to grow to, if a write has found no room since this was last asked.
    fn take_full(&self) -> Option<u32>;
    /// From now on every write goes to the next map as well, which has room for `entries`.
    fn follow(&self, pins: &Pins, entries: u32) -> Result<(), DatapathError>;
    /// Copies what was there before.
    fn copy(&self, pins: &Pins, ending: &AtomicBool) -> Result<(), DatapathError>;
    /// Puts the next map in the place of the one before it.
    fn take_over(&self, pins: &Pins) -> Result<(), DatapathError>;
    /// Forgets the next map, and remembers why.
    fn abandon(&self, why: &str);
}

impl<M: Store> Grow for Mutex<Written<M>> {
    fn name(&self) -> &'static str {
        lock(self).name
    }

    fn entries(&self) -> u32 {
        lock(self).entries
    }

    fn allow(&self, size: Size) {
        lock(self).size = Some(size);
    }

    fn take_full(&self) -> Option<u32> {
        let mut written = lock(self);
        if !std::mem::take(&mut written.full) {
            return None;
        }
        written.size?.after(written.entries)
    }

    fn follow(&self, pins: &Pins, entries: u32) -> Result<(), DatapathError> {
        let name = self.name();
        let map = M::open(&pins.next(name)).map_err(failed("open", name))?;
        lock(self).follow(map, entries);
        Ok(())
    }

    fn copy(&self, pins: &Pins, ending: &AtomicBool) -> Result<(), DatapathError> {
        let name = self.name();
        let reader = M::open(&pins.map(name)).map_err(failed("open", name))?;
        copy(self, &reader, ending)
    }

    fn take_over(&self, pins: &Pins) -> Result<(), DatapathError> {
        let mut written = lock(self);
        if written.next.is_none() {
            return Ok(());
        }
        // ORDER: under the lock, so no write comes between the pin and the end of the old map.
        pins.take_over(written.name)?;
        written.take_over();
        Ok(())
    }

    fn abandon(&self, why: &str) {
        let mut written = lock(self);
        written.next = None;
        written.failure = Some(why.to_owned());
    }
}

#[cfg(test)]
#[path = "written_tests.rs"]
mod tests;
