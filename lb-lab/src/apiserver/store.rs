// SPDX-License-Identifier: MIT OR Apache-2.0
//! The objects, what happened to them, and who watches: all that is under the one lock.
//!
//! **Invariant:** one version counts over all objects, as etcd's revision does; an event is in the history
//! and in the queue of every watch of its resource before the lock is let go.
//! Read next: `list` and `watch`, which serve from here.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use serde_json::Value;

use super::Request;
use super::fault::Active;
use super::object::Object;
use super::query::Continue;
use super::resource::Resource;
use super::selector::Filter;

/// Events of a resource that are kept for watches to resume from.
const WINDOW: usize = 8192;
/// How often a real server sends a bookmark.
const BOOKMARK_EVERY: Duration = Duration::from_mins(1);

/// What happened to an object.
#[derive(Debug)]
pub(super) struct Event {
    /// The object afterwards; when it was deleted, the last one that there was.
    pub(super) object: Arc<Object>,
    /// What it replaced.
    pub(super) previous: Option<Arc<Object>>,
    pub(super) deleted: bool,
    pub(super) version: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds when it was first handed to a socket; 0 before.
    pub(super) handed_ns: AtomicU64,
}

impl Event {
    /// The event as a watch with this filter sees it: its type and the object.
    pub(super) fn seen_by(&self, filter: &Filter) -> Option<(&'static str, &Object, Option<u64>)> {
        let matches = |object: &Arc<Object>| filter.matches(object);
        let before = self.previous.as_ref().filter(|object| matches(object));
        let now = Some(&self.object).filter(|object| !self.deleted && matches(object));
        match (before, now) {
            (None, Some(now)) => Some(("ADDED", now, None)),
            (Some(_), Some(now)) => Some(("MODIFIED", now, None)),
            // A watcher is told the last object that it could see, with the version of the change.
            (Some(before), None) => Some(("DELETED", before, Some(self.version))),
            (None, None) => None,
        }
    }
}

/// A running watch: what it has not taken yet, and how it is woken.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) resource: Resource,
    pub(super) queue: VecDeque<Arc<Event>>,
    pub(super) wake: Arc<EventFd>,
}

/// Objects of one resource.
#[derive(Debug, Default)]
struct Table {
    objects: BTreeMap<String, Arc<Object>>,
    history: VecDeque<Arc<Event>>,
    /// The version of the last event that was dropped from the history.
    dropped: u64,
}

/// Everything that changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) version: u64,
    tables: [Table; Resource::COUNT],
    window: usize,
    pub(super) watchers: BTreeMap<u64, Watcher>,
    pub(super) rules: Vec<Active>,
    last_id: u64,
    pub(super) requests: Vec<Request>,
    /// Events that clients have written.
    pub(super) written: Vec<Value>,
    /// How often a bookmark was ordered.
    pub(super) bookmark_round: u64,
    pub(super) bookmark_every: Duration,
}

/// A part of a list.
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) objects: Vec<Arc<Object>>,
    /// Where the next page begins, and how many objects are left.
    pub(super) next: Option<(Continue, usize)>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            // A version of 0 would mean any.
            version: 1,
            tables: Default::default(),
            window: WINDOW,
            watchers: BTreeMap::new(),
            rules: Vec::new(),
            last_id: 0,
            requests: Vec::new(),
            written: Vec::new(),
            bookmark_round: 0,
            bookmark_every: BOOKMARK_EVERY,
        }
    }
}

impl State {
    /// A number that nobody else here has.
    pub(super) const fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn get(&self, resource: Resource, key: &str) -> Option<&Arc<Object>> {
        self.tables[resource.index()].objects.get(key)
    }

    /// Creates or replaces an object that has the next version.
    pub(super) fn put(&mut self, resource: Resource, object: Object) -> u64 {
        self.version += 1;
        let object = Arc::new(object);
        let table = &mut self.tables[resource.index()];
        let previous = table
            .objects
            .insert(object.key.clone(), Arc::clone(&object));
        self.happened(resource, object, previous, false);
        self.version
    }

    /// Deletes an object; none if there is no such object.
    pub(super) fn delete(&mut self, resource: Resource, key: &str) -> Option<u64> {
        let object = self.tables[resource.index()].objects.remove(key)?;
        self.version += 1;
        self.happened(resource, Arc::clone(&object), Some(object), true);
        Some(self.version)
    }

    fn happened(
        &mut self,
        resource: Resource,
        object: Arc<Object>,
        previous: Option<Arc<Object>>,
        deleted: bool,
    ) {
        let event = Arc::new(Event {
            object,
            previous,
            deleted,
            version: self.version,
            handed_ns: AtomicU64::new(0),
        });
        for watcher in self.watchers.values_mut() {
            if watcher.resource == resource {
                watcher.queue.push_back(Arc::clone(&event));
                wake(&watcher.wake);
            }
        }
        self.tables[resource.index()].history.push_back(event);
        self.trim(resource);
    }

    fn trim(&mut self, resource: Resource) {
        let table = &mut self.tables[resource.index()];
        while table.history.len() > self.window {
            if let Some(event) = table.history.pop_front() {
                table.dropped = event.version;
            }
        }
    }

    /// Keeps this many events of each resource, and forgets all versions before.
    pub(super) fn set_window(&mut self, window: usize) {
        self.window = window;
        for resource in Resource::WATCHED {
            self.trim(resource);
        }
    }

    /// Forgets everything that happened until now.
    pub(super) fn compact(&mut self) {
        for table in &mut self.tables {
            table.history.clear();
            table.dropped = self.version;
        }
    }

    /// The oldest version that can still be resumed from or listed.
    pub(super) const fn oldest(&self, resource: Resource) -> u64 {
        self.tables[resource.index()].dropped
    }

    /// What happened after a version.
    pub(super) fn since(&self, resource: Resource, version: u64) -> VecDeque<Arc<Event>> {
        let history = &self.tables[resource.index()].history;
        let from = history.partition_point(|event| event.version <= version);
        history.range(from..).cloned().collect()
    }

    /// An event of any resource, by its version.
    pub(super) fn event(&self, version: u64) -> Option<&Arc<Event>> {
        self.tables.iter().find_map(|table| {
            let at = table
                .history
                .binary_search_by_key(&version, |event| event.version);
            at.ok().and_then(|at| table.history.get(at))
        })
    }

    /// A list as it was at a version that the history reaches, from a key on.
    pub(super) fn page(
        &self,
        resource: Resource,
        version: u64,
        filter: &Filter,
        after: Option<&str>,
        limit: Option<usize>,
    ) -> Page {
        let table = &self.tables[resource.index()];
        let mut then: BTreeMap<&str, &Arc<Object>> = BTreeMap::new();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let today = table.objects.range::<str, _>((from, Bound::Unbounded));
        let undone = table.history.iter().rev();
        let undone: Vec<_> = undone.take_while(|event| event.version > version).collect();
        let is_today = undone.is_empty();
        let limit = limit.unwrap_or(usize::MAX);
        let mut found: Vec<&Arc<Object>> = Vec::new();
        // One more than asked for tells whether there is another page.
        let enough = limit.saturating_add(1);
        if is_today {
            let matching = today.clone().map(|(_, object)| object);
            found.extend(
                matching
                    .filter(|object| filter.matches(object))
                    .take(enough),
            );
        } else {
            then.extend(today.clone().map(|(key, object)| (key.as_str(), object)));
            for event in undone {
                let key = event.object.key.as_str();
                match &event.previous {
                    Some(previous) if after.is_none_or(|after| key > after) => {
                        then.insert(key, previous)
                    }
                    _ => then.remove(key),
                };
            }
            let matching = then.values().copied();
            found.extend(
                matching
                    .filter(|object| filter.matches(object))
                    .take(enough),
            );
        }
        let is_whole = found.len() <= limit;
        found.truncate(limit);
        let last = found.last().filter(|_| !is_whole);
        let next = last.map(|last| {
            let count = if is_today { today.count() } else { then.len() };
            let page = Continue {
                version: Some(version),
                after: last.key.clone(),
            };
            (page, count.saturating_sub(limit))
        });
        Page {
            version,
            objects: found.into_iter().cloned().collect(),
            next,
        }
    }

    /// Wakes every watch to look at the rules and the clock anew.
    pub(super) fn wake_all(&self) {
        for watcher in self.watchers.values() {
            wake(&watcher.wake);
        }
    }
}

/// Makes an eventfd readable.
pub(super) fn wake(event: &EventFd) {
    // It fails only when the counter is full, and then it is readable.
    event.write(1).ok();
}
