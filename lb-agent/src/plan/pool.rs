// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pool of small dense numbers.
//!
//! The number that was given back longest ago is taken first, so that a lookup which still holds
//! an old number has the longest time to finish.
//! **Invariant:** 0 is never given out, and no number is given out twice.

use std::collections::{BTreeSet, VecDeque};

/// Numbers from 1 to below a limit.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    next: u32,
    limit: u32,
    free: VecDeque<u32>,
    /// Given back, and not to be given out before [`Pool::rested`].
    resting: Vec<u32>,
}

/// A number from the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The number.
    pub(crate) id: u32,
    /// It had a user before.
    pub(crate) reused: bool,
}

impl Pool {
    /// All numbers from 1 to below `limit`.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            next: 1,
            limit,
            free: VecDeque::new(),
            resting: Vec::new(),
        }
    }

    /// Marks numbers as taken; only for a pool that has given none out.
    pub(crate) fn occupy(&mut self, used: impl Iterator<Item = u32>) {
        // A number beyond the limit came from elsewhere; it is never given out, so never recorded.
        let used: BTreeSet<u32> = used.filter(|id| (1..self.limit).contains(id)).collect();
        self.next = used.last().map_or(1, |last| last.saturating_add(1));
        self.free = (1..self.next).filter(|id| !used.contains(id)).collect();
    }

    /// A number that nobody has, or none.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        if let Some(id) = self.free.pop_front() {
            return Some(Taken { id, reused: true });
        }
        if self.next >= self.limit {
            return None;
        }
        let id = self.next;
        self.next += 1;
        Some(Taken { id, reused: false })
    }

    /// Takes a number back; it is given out again after [`Self::rested`].
    pub(crate) fn give(&mut self, id: u32) {
        if (1..self.limit).contains(&id) {
            self.resting.push(id);
        }
    }

    /// What was given back may be given out again.
    pub(crate) fn rested(&mut self) {
        self.free.extend(self.resting.drain(..));
    }
}
