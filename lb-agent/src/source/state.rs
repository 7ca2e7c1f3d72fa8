// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last known objects on disk, for a node that comes back while its source is away.
//!
//! A log of JSON lines: a header with the version, then one line for each object that came or went.
//! A list that replaces others stands between two marks and counts only when its second mark is
//! there. A thread of its own writes; it keeps where each living line is, and no objects.
//! What waits for it is bounded. Where that does not suffice, or a write fails, the file stays what
//! it was, which was true at some time, and whoever knows all objects is asked for them once the
//! disk is there again.
//! **Invariant:** recording never waits for the disk. What is on disk is what was known at one time:
//! what cannot be read back whole is forgotten from there on, and no change is written behind one
//! that is missing.
//! Read next: state/writer.rs, the thread; state/log.rs, the file.

mod forget;
mod log;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::model::snapshot::{Change, Invalid, Kind, Object, ObjectRef, Update};
use log::Log;
use writer::Writer;

pub use forget::forget;

/// Objects that are handed to the thread at a time.
const CHUNK: usize = 256;
/// What a line costs in memory besides its text: its object's name, and where it is kept.
const LINE_OVERHEAD: usize = 256;

/// Lists that may wait for the disk: one of each kind, which come together when a server is restarted.
const LISTS: usize = 3;

/// What may wait for the disk, and how long to leave a disk alone that does not work.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Bytes of changes. Besides, [`LISTS`] may wait.
    changes: usize,
    retry_after: Duration,
}

/// 16 MiB are some 20,000 changes of Services, or the changes that 1,000 of them a second bring
/// while the disk stops for 20 s.
const BOUNDS: Bounds = Bounds {
    changes: 16 << 20,
    retry_after: Duration::from_secs(30),
};

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder is not there and cannot be made.
    #[error("--state-dir {}: make the folder", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file cannot be read or written.
    #[error("--state-dir: use the file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No thread could be started.
    #[error("start the thread that writes the state")]
    Thread(#[source] std::io::Error),
}

/// Which objects a list replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Scope {
    /// All of them.
    Everything,
    /// Those of one kind.
    Kind(Kind),
}

impl Scope {
    fn covers(self, reference: &ObjectRef) -> bool {
        match self {
            Self::Everything => true,
            Self::Kind(kind) => reference.kind() == Some(kind),
        }
    }
}

/// What a line says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time and not for long; a box would be an allocation per line"
)]
enum Line {
    /// An object is there.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectRef),
    /// A list begins that replaces these.
    Begin(Scope),
    /// The list is complete; those of the objects that it lacks which are named here stay.
    End(Vec<ObjectRef>),
}

/// A line that is to be written.
#[derive(Debug)]
enum Entry {
    Apply(ObjectRef, Vec<u8>),
    Delete(ObjectRef),
}

impl Entry {
    /// Bytes that it takes while it waits.
    fn cost(&self) -> usize {
        let line = match self {
            Self::Apply(_, line) => line.len(),
            Self::Delete(_) => 0,
        };
        line + LINE_OVERHEAD
    }
}

/// What the thread is asked to do.
#[derive(Debug)]
enum Order {
    /// Changes, and what they cost.
    Change(Vec<Entry>, usize),
    /// Objects of a list.
    Write(Vec<Entry>),
    Begin(Scope),
    End(Vec<ObjectRef>),
    /// All orders of a list have been given.
    Listed,
    /// Tells when all earlier orders are carried out.
    #[cfg(test)]
    Wait(mpsc::Sender<()>),
    /// The disk stops until the other end is dropped.
    #[cfg(test)]
    Hang(mpsc::Receiver<()>),
    /// The file can no longer be written.
    #[cfg(test)]
    Break,
}

/// What waits for the disk.
#[derive(Debug, Default)]
struct Backlog {
    /// Bytes of changes.
    changes: usize,
    lists: usize,
    /// Something was not recorded. Nothing is from then on until everything is written anew.
    behind: bool,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.changes == 0 && self.lists == 0
    }

    /// From now on nothing is recorded, because something was not.
    fn fall_behind(&mut self) {
        if !std::mem::replace(&mut self.behind, true) {
            warn!(
                "--state-dir: the disk cannot follow; what is on it stays as it is until it can, and \
                 is then written anew"
            );
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    backlog: Mutex<Backlog>,
    /// Everything should be written anew, and there is room for it.
    wanted: Notify,
}

impl Shared {
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is remembered on disk. Clones write to the same file.
#[derive(Clone, Debug)]
pub struct State {
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
    bounds: Bounds,
}

/// An update has been recorded. While this is held, no list of everything can be, so that whoever
/// gives that list has had the update, or gets it afterwards and has it recorded again.
#[derive(Debug)]
#[must_use = "hold it until the update is on its way"]
pub struct Recorded<'a> {
    _backlog: MutexGuard<'a, Backlog>,
}

/// Reads what is remembered in `folder`, beside an agent that writes there: what it is about to write
/// may be missing. Nothing is changed.
pub fn read(folder: &Path) -> Result<Vec<Object>, StateError> {
    log::objects(folder)
}

impl State {
    /// Opens the state in `folder`, which is made if it is not there, and gives what it remembers.
    pub fn open(folder: &Path) -> Result<(Self, Vec<Object>), StateError> {
        Self::open_within(folder, BOUNDS)
    }

    fn open_within(folder: &Path, bounds: Bounds) -> Result<(Self, Vec<Object>), StateError> {
        std::fs::create_dir_all(folder).map_err(|source| StateError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        let (log, objects) = Log::open(folder)?;
        let (orders, inbox) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let writer = Writer::new(log, Arc::clone(&shared), bounds);
        std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(StateError::Thread)?;
        let state = Self {
            orders,
            shared,
            bounds,
        };
        Ok((state, objects))
    }

    /// Remembers what an update says. Costs as much as the update is large and never waits for the
    /// disk: what there is no room for is not recorded, and neither is anything after it until
    /// [`Self::catch_up`].
    pub fn record(&self, update: &Update) -> Recorded<'_> {
        let mut backlog = self.shared.backlog();
        match update {
            _ if backlog.behind => {}
            Update::Reset { objects, invalid } => {
                self.list(&mut backlog, Scope::Everything, objects, invalid);
            }
            Update::Relist {
                kind,
                objects,
                invalid,
            } => self.list(&mut backlog, Scope::Kind(*kind), objects, invalid),
            // What it lacks may still be there.
            Update::Partial { objects, .. } => {
                if Self::has_room_for_list(&mut backlog) {
                    self.apply(objects);
                    self.order(Order::Listed);
                }
            }
            Update::Changes(changes) => self.change(&mut backlog, changes),
            // What was lacking before and has not come is gone. Only a list can say so.
            Update::Complete => {
                backlog.behind = true;
                if backlog.is_empty() {
                    self.shared.wanted.notify_one();
                }
            }
        }
        Recorded { _backlog: backlog }
    }

    fn list(&self, backlog: &mut Backlog, scope: Scope, objects: &[Object], invalid: &[Invalid]) {
        if !Self::has_room_for_list(backlog) {
            return;
        }
        self.order(Order::Begin(scope));
        self.apply(objects);
        let stay = invalid.iter().map(|invalid| invalid.object.clone());
        self.order(Order::End(stay.collect()));
        self.order(Order::Listed);
    }

    /// Takes the room of a list if it is there.
    fn has_room_for_list(backlog: &mut Backlog) -> bool {
        if backlog.lists == LISTS {
            backlog.fall_behind();
            return false;
        }
        backlog.lists += 1;
        true
    }

    fn change(&self, backlog: &mut Backlog, changes: &[Change]) {
        let entries: Vec<Entry> = changes.iter().filter_map(entry).collect();
        let cost: usize = entries.iter().map(Entry::cost).sum();
        if backlog.changes + cost > self.bounds.changes {
            backlog.fall_behind();
        } else if cost > 0 {
            backlog.changes += cost;
            self.order(Order::Change(entries, cost));
        }
    }

    fn apply(&self, objects: &[Object]) {
        for chunk in objects.chunks(CHUNK) {
            self.order(Order::Write(chunk.iter().filter_map(applied).collect()));
        }
    }

    /// Waits until something was not recorded and there is room to write everything anew.
    pub async fn is_behind(&self) {
        self.shared.wanted.notified().await;
    }

    /// Writes everything anew if something was not recorded, and records what comes after it.
    ///
    /// `knows_all` tells whether the caller has taken in every update that was recorded or should
    /// have been; `objects` is then all that there is, and `stay` what is there and cannot be read.
    /// False if it does not know all: it should take in what has come and call again.
    pub fn catch_up(
        &self,
        knows_all: impl FnOnce() -> bool,
        objects: impl Iterator<Item = Object>,
        stay: Vec<ObjectRef>,
    ) -> bool {
        let mut backlog = self.shared.backlog();
        if !backlog.behind {
            return true;
        }
        if !knows_all() {
            return false;
        }
        // There is room: else the writer asks again as soon as there is.
        if !backlog.is_empty() {
            return true;
        }
        backlog.behind = false;
        backlog.lists += 1;
        self.order(Order::Begin(Scope::Everything));
        let mut objects = objects.peekable();
        while objects.peek().is_some() {
            let entries = objects.by_ref().take(CHUNK);
            let entries = entries.filter_map(|object| applied(&object)).collect();
            self.order(Order::Write(entries));
        }
        self.order(Order::End(stay));
        self.order(Order::Listed);
        info!("--state-dir: all that is known is written anew");
        true
    }

    fn order(&self, order: Order) {
        // The thread ends only after the last sender.
        drop(self.orders.send(order));
    }

    /// Waits until everything recorded so far is in the file.
    #[cfg(test)]
    fn wait(&self) {
        let (done, wait) = mpsc::channel();
        self.order(Order::Wait(done));
        wait.recv().unwrap();
    }
}

fn entry(change: &Change) -> Option<Entry> {
    match change {
        Change::Apply(object) => applied(object),
        Change::Delete(reference) => Some(Entry::Delete(reference.clone())),
        Change::Invalid(_) => None,
    }
}

fn applied(object: &Object) -> Option<Entry> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    enum Borrowed<'a> {
        Apply(&'a Object),
    }
    let line = serde_json::to_vec(&Borrowed::Apply(object)).ok()?;
    Some(Entry::Apply(object.reference(), line))
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
