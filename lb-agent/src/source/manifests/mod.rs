// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects from a folder of manifests, for nodes and laptops without an API server.
//!
//! [`load`] reads it once, [`watch`] goes on from there on a thread of its own. Every event of the
//! folder leads to one look at all its files (see [`folder`]); nothing is taken from the events
//! themselves, so editors may save as they like.
//! **Invariant:** a folder that cannot be read is not an empty folder: what was known stays.

mod document;
pub mod folder;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecursiveMode, Watcher as _};
use tracing::{debug, error, info, warn};

pub use document::{Problem, Severity};
use folder::{Folder, FolderError, Scan};

use crate::model::snapshot::{Object, Update};
use crate::source::{Delivery, Updates};

/// How often the folder is looked at without an event: links out of the folder and some file
/// systems give none.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often a folder that vanished is looked for.
const LOOK_FOR_FOLDER_EVERY: Duration = Duration::from_secs(1);
/// When to look again at a file whose times cannot show its next change.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(25);

/// The folder cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// It cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The system has no watch left, or none for this file system.
    #[error("watch folder {}", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: notify::Error,
    },
    /// No thread could be started.
    #[error("start the thread that watches the manifests")]
    Thread(#[source] std::io::Error),
}

/// Reads the folder once.
pub fn load(path: &Path) -> Result<(Vec<Object>, Vec<Problem>), FolderError> {
    let mut folder = Folder::new(path);
    let scan = folder.scan()?;
    Ok((folder.objects(), scan.problems))
}

/// Reads the text of one file, JSON if its `name` says so and YAML otherwise. Of several definitions
/// of one object the first is in force.
pub fn parse(name: &str, text: &str) -> (Vec<Object>, Vec<Problem>) {
    let contents = document::read(name, text);
    let mut known = BTreeSet::new();
    let objects = contents.objects.into_iter().map(|found| found.object);
    let objects = objects.filter(|object| known.insert(object.reference()));
    (objects.collect(), contents.problems)
}

/// Reads the folder, sends all of it to `updates`, and then every change, until `updates` is
/// closed. Problems go to the log.
pub fn watch(path: &Path, updates: Updates) -> Result<(), WatchError> {
    let (events, wake) = mpsc::channel();
    let mut folder = Folder::new(path);
    let watch = FolderWatch::new(path, events)?;
    // The watch comes first, so that no change falls between the two.
    let received = Instant::now();
    let scan = folder.scan()?;
    report(&scan);
    let objects = folder.objects();
    info!("read {} objects from {}", objects.len(), path.display());
    let unreadable = folder.unreadable();
    let partial = !unreadable.is_empty();
    let update = if partial {
        Update::Partial {
            objects,
            unreadable,
        }
    } else {
        Update::reset(objects)
    };
    // A closed channel means that the agent is about to end; the thread finds out by itself.
    drop(updates.send(Delivery { received, update }));
    let follower = Follower {
        partial,
        folder,
        watch,
        wake,
        updates,
        unsure: scan.unsure,
        lost: false,
    };
    std::thread::Builder::new()
        .name("manifests".to_owned())
        .spawn(move || follower.run())
        .map(drop)
        .map_err(WatchError::Thread)
}

/// A watch on the folder and on the one above, which tells when the folder itself is replaced.
struct FolderWatch {
    path: PathBuf,
    watcher: notify::RecommendedWatcher,
    identity: Option<(u64, u64)>,
}

impl FolderWatch {
    fn new(path: &Path, events: mpsc::Sender<()>) -> Result<Self, WatchError> {
        let wrap = |source| WatchError::Watch {
            path: path.to_owned(),
            source,
        };
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let relevant = match event {
                Ok(event) => event.need_rescan() || is_relevant(event.kind),
                Err(_) => true,
            };
            if relevant {
                // The other end is gone only when the agent is about to end.
                events.send(()).ok();
            }
        })
        .map_err(wrap)?;
        let mut watch = Self {
            path: path.to_owned(),
            watcher,
            identity: None,
        };
        watch.attach().map_err(wrap)?;
        Ok(watch)
    }

    fn attach(&mut self) -> notify::Result<()> {
        self.watcher
            .watch(&self.path, RecursiveMode::NonRecursive)?;
        self.identity = identity(&self.path);
        let absolute = std::path::absolute(&self.path)?;
        if let Some(parent) = absolute.parent() {
            self.watcher.watch(parent, RecursiveMode::NonRecursive)?;
        }
        Ok(())
    }

    /// Watches the folder anew if another one has taken its place.
    fn refresh(&mut self) {
        let now = identity(&self.path);
        if now == self.identity {
            return;
        }
        // The old watch went with the old folder, if it went.
        drop(self.watcher.unwatch(&self.path));
        self.identity = None;
        if now.is_some()
            && let Err(error) = self.attach()
        {
            debug!("watch {} again: {error}", self.path.display());
        }
    }
}

/// Device and inode of what `path` leads to.
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// False for events that another one is sure to follow (a file is still being written) and for
/// reading, which would wake us by our own doing.
fn is_relevant(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_)) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

/// The thread that follows the folder.
struct Follower {
    folder: Folder,
    watch: FolderWatch,
    wake: mpsc::Receiver<()>,
    updates: Updates,
    /// What was sent lacks what some file holds that could not be read yet.
    partial: bool,
    unsure: bool,
    lost: bool,
}

impl Follower {
    fn run(mut self) {
        loop {
            let wait = match (self.unsure, self.lost) {
                (true, _) => LOOK_AGAIN_AFTER,
                (_, true) => LOOK_FOR_FOLDER_EVERY,
                _ => LOOK_EVERY,
            };
            match self.wake.recv_timeout(wait) {
                Ok(()) => while self.wake.try_recv().is_ok() {},
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            if self.updates.is_closed() {
                return;
            }
            self.watch.refresh();
            self.look();
        }
    }

    fn look(&mut self) {
        let received = Instant::now();
        let send = |update| drop(self.updates.send(Delivery { received, update }));
        match self.folder.scan() {
            Ok(scan) => {
                if std::mem::take(&mut self.lost) {
                    info!("folder {} is back", self.folder.path().display());
                }
                report(&scan);
                self.unsure = scan.unsure;
                if !scan.changes.is_empty() {
                    send(Update::Changes(scan.changes));
                }
                if self.partial && self.folder.unreadable().is_empty() {
                    self.partial = false;
                    send(Update::Complete);
                }
            }
            Err(error) => {
                self.unsure = false;
                if !std::mem::replace(&mut self.lost, true) {
                    let cause = crate::error_chain(&error);
                    error!("{cause}; what it held stays in force");
                }
            }
        }
    }
}

fn report(scan: &Scan) {
    for problem in &scan.problems {
        match problem.severity {
            Severity::Error => error!("{problem}"),
            Severity::Note => warn!("{problem}"),
        }
    }
    for name in &scan.healed {
        info!("{name}: no error any more");
    }
}
