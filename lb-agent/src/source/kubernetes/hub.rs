// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the lists and changes of all kinds come together and become updates.
//!
//! Nothing is sent before every kind has its first list: a Service without its slices would look
//! like one without endpoints. Then all of it is one update; from then on each kind goes its own
//! way.
//! **Invariant:** an object that cannot be read does not vanish: its last good state stays, and if
//! only the tables know that state, nothing is removed from them until the object can be read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tracing::{info, warn};

use super::Outlet;
use super::decode::{Item, Unread};
use super::failure::Health;
use crate::model::snapshot::{Change, Invalid, Kind, Object, ObjectRef, Update};
use crate::source::Delivery;

/// The kinds that Services depend on: nothing is handed on before each has its first list.
const KINDS: [Kind; 3] = [Kind::Services, Kind::EndpointSlices, Kind::Nodes];
/// The reason of the event about a Service that cannot be read.
const REASON_INVALID: &str = "Invalid";

/// What a stream tells about one object.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time and not for long; a box would be an allocation per event"
)]
pub(super) enum Found {
    /// It is there.
    Item(Item),
    /// It is gone.
    Gone(ObjectRef),
}

/// What the followers of all kinds share.
pub(super) struct Hub {
    health: Health,
    no_streamed_lists: AtomicBool,
    reached: Notify,
    desk: Mutex<Desk>,
}

struct Desk {
    outlet: Outlet,
    /// What has come so far, until every kind has its first list.
    first: Option<First>,
    /// Objects that cannot be read.
    invalid: BTreeMap<ObjectRef, Invalid>,
    /// The first list lacked what cannot be read.
    partial: bool,
}

#[derive(Default)]
struct First {
    lists: BTreeMap<Kind, Vec<Object>>,
    /// The latest change of each object since the list of its kind.
    later: BTreeMap<ObjectRef, Change>,
}

impl Hub {
    pub(super) fn new(outlet: Outlet) -> Self {
        Self {
            health: Health::default(),
            no_streamed_lists: AtomicBool::new(false),
            reached: Notify::new(),
            desk: Mutex::new(Desk {
                outlet,
                first: Some(First::default()),
                invalid: BTreeMap::new(),
                partial: false,
            }),
        }
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// False once the server has shown that it cannot.
    pub(super) fn server_streams_lists(&self) -> bool {
        !self.no_streamed_lists.load(Ordering::Relaxed)
    }

    pub(super) fn server_cannot_stream_lists(&self) {
        if !self.no_streamed_lists.swap(true, Ordering::Relaxed) {
            info!("the API server does not stream lists; listing page by page from now on");
        }
    }

    /// The server has answered: whoever waits because it could not be reached need wait no longer.
    pub(super) fn note_reached(&self) {
        self.reached.notify_waiters();
    }

    /// Waits until somebody else has reached the server.
    pub(super) async fn wait_until_reached(&self) {
        self.reached.notified().await;
    }

    /// Nobody takes updates any more.
    pub(super) fn is_closed(&self) -> bool {
        self.desk().outlet.updates.is_closed()
    }

    /// Everything that there is of one kind.
    pub(super) fn listed(&self, kind: Kind, received: Instant, items: Vec<Item>) {
        self.desk().listed(kind, received, items);
    }

    /// Changes of one kind, in order.
    pub(super) fn changed(&self, received: Instant, found: Vec<Found>) {
        self.desk().changed(received, found);
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    fn send(&mut self, received: Instant, update: Update) {
        let state = self.outlet.state.as_ref();
        // Who is served at the socket is found out anew after a reboot, before it matters.
        let state = state.filter(|_| !update.is_about_pods());
        let recorded = state.map(|state| state.record(&update));
        // A closed channel means that the agent is about to end.
        drop(self.outlet.updates.send(Delivery { received, update }));
        drop(recorded);
    }

    fn listed(&mut self, kind: Kind, received: Instant, items: Vec<Item>) {
        let mut objects = Vec::with_capacity(items.len());
        let (mut known, others): (BTreeMap<_, _>, _) = std::mem::take(&mut self.invalid)
            .into_iter()
            .partition(|(reference, _)| reference.kind() == Some(kind));
        self.invalid = others;
        let mut invalid = Vec::new();
        for item in items {
            match item.object {
                Ok(object) => objects.extend(object),
                Err(unread) => {
                    let before = known.remove(&item.reference);
                    let now = invalid_as(item.reference, unread);
                    self.note_invalid(&now, &item.uid, before.as_ref());
                    invalid.push(now);
                }
            }
        }
        for (reference, _) in known {
            info!("{reference} can be read again or is gone");
        }
        info!(
            "listed {} objects of {kind:?}",
            objects.len() + invalid.len()
        );
        if kind == Kind::Nodes && objects.is_empty() && invalid.is_empty() {
            warn!(
                "the API server has no Node of this node's name, so its zone is not known: see --node"
            );
        }
        if let Some(first) = &mut self.first {
            first
                .later
                .retain(|reference, _| reference.kind() != Some(kind));
            first.lists.insert(kind, objects);
            if KINDS.iter().all(|kind| first.lists.contains_key(kind)) {
                self.release(received);
            }
            return;
        }
        let update = Update::Relist {
            kind,
            objects,
            invalid,
        };
        self.send(received, update);
        self.complete(received);
    }

    /// Every kind has its first list.
    fn release(&mut self, received: Instant) {
        let Some(First { lists, later }) = self.first.take() else {
            return;
        };
        let (aside, lists): (BTreeMap<_, _>, _) = lists
            .into_iter()
            .partition(|(kind, _)| kind.is_about_pods());
        let objects = together(lists);
        let invalid: Vec<Invalid> = self.invalid.values().cloned().collect();
        let mut changes: Vec<Change> = later.into_values().collect();
        if invalid.is_empty() || self.outlet.remembered {
            // What was remembered stands in for what cannot be read.
            self.send(received, Update::Reset { objects, invalid });
        } else {
            self.partial = true;
            let unreadable = self.invalid.keys().map(ToString::to_string).collect();
            let update = Update::Partial {
                objects,
                unreadable,
            };
            self.send(received, update);
            changes.extend(invalid.into_iter().map(Change::Invalid));
        }
        for (kind, objects) in aside {
            let invalid = Vec::new();
            let update = Update::Relist {
                kind,
                objects,
                invalid,
            };
            self.send(received, update);
        }
        if !changes.is_empty() {
            self.send(received, Update::Changes(changes));
        }
    }

    fn changed(&mut self, received: Instant, found: Vec<Found>) {
        let changes: Vec<Change> = found.into_iter().map(|found| self.change(found)).collect();
        if let Some(first) = &mut self.first {
            for change in changes {
                let reference = match &change {
                    Change::Apply(object) => object.reference(),
                    Change::Delete(reference) => reference.clone(),
                    // What was there before it stays.
                    Change::Invalid(_) => continue,
                };
                first.later.insert(reference, change);
            }
            return;
        }
        self.send(received, Update::Changes(changes));
        self.complete(received);
    }

    fn change(&mut self, found: Found) -> Change {
        let (reference, change) = match found {
            Found::Gone(reference) => (reference.clone(), Change::Delete(reference)),
            Found::Item(item) => match item.object {
                Ok(Some(object)) => (item.reference, Change::Apply(object)),
                Ok(None) => (item.reference.clone(), Change::Delete(item.reference)),
                Err(unread) => {
                    let before = self.invalid.remove(&item.reference);
                    let now = invalid_as(item.reference, unread);
                    self.note_invalid(&now, &item.uid, before.as_ref());
                    return Change::Invalid(now);
                }
            },
        };
        if self.invalid.remove(&reference).is_some() {
            info!("{reference} can be read again or is gone");
        }
        change
    }

    /// Remembers an object that cannot be read and says so, once for each message.
    fn note_invalid(&mut self, now: &Invalid, uid: &str, before: Option<&Invalid>) {
        let Invalid {
            object, message, ..
        } = now;
        if before.map(|before| &before.message) != Some(message) {
            warn!("{object} cannot be read, its last good state stays: {message}");
            if let (Some(recorder), ObjectRef::Service(key)) = (&self.outlet.recorder, object) {
                recorder.warn(key, uid, REASON_INVALID, message);
            }
        }
        self.invalid.insert(object.clone(), now.clone());
    }

    /// Says when the first list lacks nothing any more.
    fn complete(&mut self, received: Instant) {
        if self.partial && self.invalid.is_empty() {
            self.partial = false;
            self.send(received, Update::Complete);
        }
    }
}

fn invalid_as(object: ObjectRef, unread: Unread) -> Invalid {
    Invalid {
        object,
        service: unread.service,
        message: unread.message,
    }
}

/// One list of all, grown once: at this size the steps of growing would stay with the process.
fn together(lists: BTreeMap<Kind, Vec<Object>>) -> Vec<Object> {
    let mut objects = Vec::with_capacity(lists.values().map(Vec::len).sum());
    for mut list in lists.into_values() {
        objects.append(&mut list);
    }
    objects
}
