// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes between every two steps of a copy, maps that are full and maps that refuse.
//!
//! **Invariant:** the map in memory answers like the kernel's: a full one says E2BIG, a walk whose
//! key has gone begins anew.

use std::collections::BTreeMap;
use std::ops::Bound;

use aya::sys::SyscallError;

use super::*;

type Content = Arc<Mutex<BTreeMap<u32, u32>>>;

/// A map in memory; clones are handles of the same.
#[derive(Clone, Default)]
struct Memory {
    content: Content,
    entries_max: usize,
    refuses: Arc<AtomicBool>,
}

impl Memory {
    fn new(entries_max: usize) -> Self {
        Self {
            entries_max,
            ..Self::default()
        }
    }

    fn content(&self) -> BTreeMap<u32, u32> {
        self.content.lock().unwrap().clone()
    }
}

fn refusal(errno: Errno) -> MapError {
    MapError::SyscallError(SyscallError {
        call: "bpf_map_update_elem",
        io_error: errno.into(),
    })
}

impl Store for Memory {
    type Key = u32;
    type Value = u32;

    fn open(_: &Path) -> Result<Self, MapError> {
        Ok(Self::new(0))
    }

    fn put(&mut self, key: &u32, value: u32) -> Result<(), MapError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(refusal(Errno::ENOMEM));
        }
        let mut content = self.content.lock().unwrap();
        if content.len() >= self.entries_max && !content.contains_key(key) {
            return Err(refusal(Errno::E2BIG));
        }
        content.insert(*key, value);
        Ok(())
    }

    fn delete(&mut self, key: &u32) -> Result<(), MapError> {
        self.content.lock().unwrap().remove(key);
        Ok(())
    }

    fn value(&self, key: &u32) -> Result<u32, MapError> {
        let content = self.content.lock().unwrap();
        content.get(key).copied().ok_or(MapError::KeyNotFound)
    }

    fn replaced(&self, key: &u32) -> Result<Option<u32>, MapError> {
        Ok(self.content.lock().unwrap().get(key).copied())
    }

    fn keys(&self) -> impl Iterator<Item = Result<u32, MapError>> {
        let mut last: Option<u32> = None;
        std::iter::from_fn(move || {
            let content = self.content.lock().unwrap();
            let from = last
                .filter(|key| content.contains_key(key))
                .map_or(Bound::Unbounded, Bound::Excluded);
            last = content.range((from, Bound::Unbounded)).next().map(|e| *e.0);
            last.map(Ok)
        })
    }
}

fn written(entries: u32) -> (Written<Memory>, Memory) {
    let map = Memory::new(usize::try_from(entries).unwrap());
    (Written::new("TEST", map.clone(), entries), map)
}

fn full(result: Result<(), WriteError>) -> (u32, Growth) {
    match result.unwrap_err() {
        WriteError::Full(entries, growth) => (entries, growth),
        WriteError::Refused(error) => panic!("{error}"),
    }
}

#[test]
fn a_full_map_says_what_becomes_of_it_and_asks_once() {
    let (mut map, _) = written(1);
    map.put(&1, 1).unwrap();
    assert_eq!(full(map.put(&2, 2)), (1, Growth::None));
    map.size = Some(Size { first: 1, most: 2 });
    assert_eq!(full(map.put(&2, 2)), (1, Growth::UnderWay));
    let shared = Mutex::new(map);
    assert_eq!(shared.take_full(), Some(2));
    assert_eq!(shared.take_full(), None);
    shared.abandon("no memory");
    let again = full(lock(&shared).put(&2, 2));
    assert_eq!(again, (1, Growth::Failed("no memory".to_owned())));
    lock(&shared).follow(Memory::new(2), 2);
    lock(&shared).take_over();
    assert_eq!(shared.take_full(), None, "the last call was answered");
    lock(&shared).put(&2, 2).unwrap();
    lock(&shared).put(&3, 3).unwrap();
    assert_eq!(full(lock(&shared).put(&4, 4)), (2, Growth::AtLimit));
    assert_eq!(shared.take_full(), None, "it may not be larger");
}

#[test]
fn a_copy_holds_what_the_map_holds_whatever_is_written_between_its_steps() {
    let entries = 4 * u32::try_from(STEP_ENTRIES).unwrap();
    let (mut map, old) = written(entries);
    for key in 0..entries - 8 {
        map.put(&key, key).unwrap();
    }
    let next = Memory::new(2 * old.entries_max);
    map.follow(next.clone(), 2 * entries);
    let reader = old.clone();
    let mut keys = reader.keys();
    let step = u32::try_from(STEP_ENTRIES).unwrap();
    // The key that the walk stands on goes, others before and behind it change, come and go.
    assert!(map.copy(&mut keys).unwrap());
    map.delete(&(step - 1)).unwrap();
    for key in [0, step, entries - 9] {
        map.put(&key, 7_000_000).unwrap();
    }
    map.delete(&3).unwrap();
    map.delete(&(entries - 10)).unwrap();
    map.put(&(entries + 5), 1).unwrap();
    assert!(map.copy(&mut keys).unwrap());
    map.delete(&(entries + 5)).unwrap();
    while map.copy(&mut keys).unwrap() {}
    map.put(&(entries + 6), 2).unwrap();
    assert_eq!(next.content(), old.content());
    map.take_over();
    map.put(&(entries + 7), 3).unwrap();
    assert_eq!(next.content().len(), old.content().len() + 1);
}

#[test]
fn a_write_that_the_old_map_has_no_room_for_reaches_neither() {
    let (mut map, old) = written(1);
    map.put(&1, 1).unwrap();
    let next = Memory::new(2);
    map.follow(next.clone(), 2);
    assert_eq!(full(map.put(&2, 2)).0, 1);
    assert_eq!(old.content(), BTreeMap::from([(1, 1)]));
    assert!(next.content().is_empty());
}

#[test]
fn a_write_that_the_next_map_refuses_is_undone_and_the_copy_fails() {
    let (mut map, old) = written(8);
    map.put(&1, 1).unwrap();
    let next = Memory::new(16);
    map.follow(next.clone(), 16);
    next.refuses.store(true, Ordering::Relaxed);
    assert!(matches!(map.put(&1, 9), Err(WriteError::Refused(_))));
    assert!(matches!(map.put(&2, 9), Err(WriteError::Refused(_))));
    assert_eq!(old.content(), BTreeMap::from([(1, 1)]));
    next.refuses.store(false, Ordering::Relaxed);
    let shared = Mutex::new(map);
    let error = copy(&shared, &old, &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("failed meanwhile"), "{error}");
}

#[test]
fn an_agent_that_ends_ends_a_copy() {
    let entries = 2 * u32::try_from(STEP_ENTRIES).unwrap();
    let (mut map, old) = written(entries);
    for key in 0..entries {
        map.put(&key, key).unwrap();
    }
    map.follow(Memory::new(2 * old.entries_max), 2 * entries);
    let shared = Mutex::new(map);
    let error = copy(&shared, &old, &AtomicBool::new(true)).unwrap_err();
    assert!(error.to_string().contains("the agent ends"), "{error}");
}
