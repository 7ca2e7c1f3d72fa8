// SPDX-License-Identifier: MIT OR Apache-2.0
//! The devices that are to be managed and lack a program, and when to try them again.
//!
//! **Invariant:** waits get longer only while nothing new fails, so a device that has just come is
//! tried again at once however long another one has been failing. Next: `follow.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// Wait before the first retry; doubled for each further one.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two retries.
const WAIT_LONGEST: Duration = Duration::from_secs(10);

/// Devices by number, with their names.
#[derive(Debug)]
pub(super) struct Lacking {
    devices: BTreeMap<u32, String>,
    /// Those of the retry that is under way: their failing again is no news.
    retried: BTreeSet<u32>,
    wait: Duration,
    due: Instant,
}

impl Default for Lacking {
    fn default() -> Self {
        Self {
            devices: BTreeMap::new(),
            retried: BTreeSet::new(),
            wait: WAIT_FIRST,
            due: Instant::now(),
        }
    }
}

impl Lacking {
    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    pub(super) fn has(&self, index: u32) -> bool {
        self.devices.contains_key(&index)
    }

    pub(super) fn indices(&self) -> BTreeSet<u32> {
        self.devices.keys().copied().collect()
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        self.devices.values().cloned().collect()
    }

    /// When to try again, if there is any.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// A device has its programs, is no longer wanted, or is about to be tried.
    pub(super) fn remove(&mut self, index: u32) {
        if self.devices.remove(&index).is_some() {
            self.retried.insert(index);
        }
    }

    /// A retry is about to begin: the next wait is longer.
    pub(super) fn begin_retry(&mut self) {
        self.wait = (self.wait * 2).min(WAIT_LONGEST);
        self.due = Instant::now() + self.wait;
    }

    /// Devices that were tried and failed.
    pub(super) fn add(&mut self, failed: BTreeMap<u32, String>) {
        let retried = std::mem::take(&mut self.retried);
        if failed.keys().any(|index| !retried.contains(index)) {
            self.wait = WAIT_FIRST;
            self.due = Instant::now() + self.wait;
        }
        self.devices.extend(failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(indices: &[u32]) -> BTreeMap<u32, String> {
        let named = indices.iter().map(|index| (*index, format!("d{index}")));
        named.collect()
    }

    fn retry(lacking: &mut Lacking, failing: &[u32]) -> Duration {
        lacking.begin_retry();
        for index in lacking.indices() {
            lacking.remove(index);
        }
        lacking.add(failed(failing));
        lacking.wait
    }

    #[test]
    fn waits_double_up_to_ten_seconds_and_start_anew_with_a_new_device() {
        let mut lacking = Lacking::default();
        lacking.add(failed(&[3]));
        assert_eq!(lacking.wait, WAIT_FIRST);
        let waits: Vec<_> = (0..8)
            .map(|_| retry(&mut lacking, &[3]).as_millis())
            .collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        lacking.add(failed(&[4]));
        assert_eq!(lacking.wait, WAIT_FIRST);
        assert_eq!(lacking.indices(), BTreeSet::from([3, 4]));
        assert!(lacking.due() <= Instant::now() + WAIT_FIRST);
    }

    #[test]
    fn a_device_that_works_or_is_gone_lacks_nothing() {
        let mut lacking = Lacking::default();
        lacking.add(failed(&[3, 4]));
        retry(&mut lacking, &[4]);
        assert_eq!(lacking.names(), BTreeSet::from(["d4".to_owned()]));
        lacking.remove(4);
        assert!(lacking.is_empty());
    }
}
