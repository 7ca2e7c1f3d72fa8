// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last known objects on disk, for a node that comes back while its source is away.
//!
//! A log of JSON lines: a header with the version, then one line for each object that came or went.
//! A list that replaces others stands between two marks and counts only when its second mark is
//! there. A thread of its own writes; it keeps where each living line is, and no objects.
//! **Invariant:** recording never waits for the disk, and what cannot be read back whole is
//! forgotten from there on, never guessed.
//! Read next: state/log.rs, the file.

mod log;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::error_chain;
use crate::model::snapshot::{Change, Invalid, Kind, Object, ObjectRef, Update};
use log::Log;

/// Objects that are handed to the thread at a time.
const CHUNK: usize = 256;
/// How long after the last change the file is made safe against a loss of power.
const SYNC_AFTER: Duration = Duration::from_secs(5);

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

/// What the thread is asked to do.
#[derive(Debug)]
enum Order {
    Write(Vec<Entry>),
    Begin(Scope),
    End(Vec<ObjectRef>),
    /// Tells when all earlier orders are carried out.
    #[cfg(test)]
    Wait(mpsc::Sender<()>),
}

/// What is remembered on disk. Clones write to the same file.
#[derive(Clone, Debug)]
pub struct State {
    orders: mpsc::Sender<Order>,
}

impl State {
    /// Opens the state in `folder`, which is made if it is not there, and gives what it remembers.
    pub fn open(folder: &Path) -> Result<(Self, Vec<Object>), StateError> {
        std::fs::create_dir_all(folder).map_err(|source| StateError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        let (log, objects) = Log::open(folder)?;
        let (orders, inbox) = mpsc::channel();
        let writer = Writer {
            log,
            failing: false,
        };
        std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(StateError::Thread)?;
        Ok((Self { orders }, objects))
    }

    /// Remembers what an update says. Costs as much as the update is large and never waits.
    pub fn record(&self, update: &Update) {
        match update {
            Update::Reset { objects, invalid } => self.list(Scope::Everything, objects, invalid),
            Update::Relist {
                kind,
                objects,
                invalid,
            } => self.list(Scope::Kind(*kind), objects, invalid),
            Update::Partial { objects, .. } => self.apply(objects),
            Update::Changes(changes) => {
                let entries: Vec<Entry> = changes.iter().filter_map(entry).collect();
                if !entries.is_empty() {
                    self.order(Order::Write(entries));
                }
            }
            Update::Complete => {}
        }
    }

    fn list(&self, scope: Scope, objects: &[Object], invalid: &[Invalid]) {
        self.order(Order::Begin(scope));
        self.apply(objects);
        let stay = invalid.iter().map(|invalid| invalid.object.clone());
        self.order(Order::End(stay.collect()));
    }

    fn apply(&self, objects: &[Object]) {
        for chunk in objects.chunks(CHUNK) {
            self.order(Order::Write(chunk.iter().filter_map(applied).collect()));
        }
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

/// The thread that writes.
struct Writer {
    log: Log,
    failing: bool,
}

impl Writer {
    fn run(mut self, inbox: &mpsc::Receiver<Order>) {
        let mut unsynced = false;
        loop {
            let order = if unsynced {
                match inbox.recv_timeout(SYNC_AFTER) {
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        unsynced = false;
                        let result = self.log.sync();
                        self.report(result);
                        continue;
                    }
                    Ok(order) => Some(order),
                    Err(mpsc::RecvTimeoutError::Disconnected) => None,
                }
            } else {
                inbox.recv().ok()
            };
            let Some(order) = order else {
                drop(self.log.sync());
                return;
            };
            unsynced = true;
            let result = match order {
                Order::Write(entries) => self.log.write(entries),
                Order::Begin(scope) => self.log.begin(scope),
                Order::End(stay) => self.log.end(&stay),
                #[cfg(test)]
                Order::Wait(done) => {
                    done.send(()).ok();
                    Ok(())
                }
            };
            self.report(result);
        }
    }

    /// Says once that writing fails, and once that it works again.
    fn report(&mut self, result: Result<(), StateError>) {
        match result {
            Ok(()) if self.failing => {
                self.failing = false;
                info!("the state on disk can be written again");
            }
            Err(error) if !self.failing => {
                self.failing = true;
                let cause = error_chain(&error);
                warn!("{cause}; what is on disk is out of date until the next complete list");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
