// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tables are known to hold, by service id.
//!
//! Every entry belongs to one service id: a frontend to the one it leads to, a slot to the one in
//! its key, a backend to the one in its value.
//! **Invariant:** changed only by writes that were carried out, so after a failed write the
//! difference is still known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use lb_common::abi::{FrontendKey, names};

use crate::model::tables::{Addr4, Addr6, FamilyTables, Op, TableContent, TableOp};
use crate::plan::claims::FrontendAddress;

/// The tables, split by service id.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    parts: BTreeMap<u32, TableContent>,
    v4: Owners<Addr4>,
    v6: Owners<Addr6>,
    /// Entries by table.
    counts: BTreeMap<&'static str, usize>,
}

/// The tables that planning writes.
const TABLES: [&str; 7] = [
    names::FRONTENDS_V4,
    names::FRONTENDS_V6,
    names::BACKENDS_V4,
    names::BACKENDS_V6,
    names::SLOTS,
    names::SRC_RANGES_V4,
    names::SRC_RANGES_V6,
];

/// Which part holds an entry whose key does not say it.
#[derive(Debug)]
struct Owners<A> {
    frontends: BTreeMap<FrontendKey<A>, u32>,
    backends: BTreeMap<u32, u32>,
}

impl<A> Default for Owners<A> {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
        }
    }
}

impl<A: Ord + Copy> Owners<A> {
    fn of_frontends(&self, tables: &FamilyTables<A>, found: &mut BTreeSet<u32>) {
        let owners = tables
            .frontends
            .keys()
            .filter_map(|key| self.frontends.get(key));
        found.extend(owners.copied());
    }

    /// The part that a write goes to, and the part that held the entry before.
    fn record(&mut self, op: &TableOp<A>) -> (Option<u32>, Option<u32>) {
        match op {
            TableOp::PutFrontend(key, value) => {
                let before = self.frontends.insert(*key, value.service);
                (Some(value.service), before)
            }
            TableOp::DeleteFrontend(key) => (None, self.frontends.remove(key)),
            TableOp::PutBackend(id, value) => {
                let before = self.backends.insert(*id, value.service);
                (Some(value.service), before)
            }
            TableOp::DeleteBackend(id) => (None, self.backends.remove(id)),
            TableOp::PutSourceRange(key) => (Some(key.range.service), None),
            TableOp::DeleteSourceRange(key) => (None, Some(key.range.service)),
        }
    }
}

/// The frontends of `part` that `desired` lacks.
fn missing<A: Ord + Copy + Into<IpAddr>>(
    part: &FamilyTables<A>,
    desired: &FamilyTables<A>,
) -> impl Iterator<Item = FrontendAddress> {
    let keys = part.frontends.keys();
    keys.filter(|key| !desired.frontends.contains_key(key))
        .map(|key| FrontendAddress::new(key.address.into(), key.port, key.proto))
}

impl Mirror {
    /// The mirror of tables that hold `content`.
    pub(super) fn new(content: &TableContent) -> Self {
        let mut mirror = Self::default();
        for op in crate::diff::diff(&TableContent::default(), content) {
            mirror.apply(&op);
        }
        mirror
    }

    /// Records a write that was carried out.
    pub(super) fn apply(&mut self, op: &Op) {
        self.count(op);
        let (to, from) = match op {
            Op::V4(op) => self.v4.record(op),
            Op::V6(op) => self.v6.record(op),
            Op::PutSlot(key, _) => (Some(key.service), None),
            Op::DeleteSlot(key) => (None, Some(key.service)),
        };
        if let Some(from) = from.filter(|from| to != Some(*from)) {
            self.leave(from, op);
        }
        if let Some(to) = to {
            self.parts.entry(to).or_default().apply(op);
        }
    }

    /// Counts an entry that comes or goes.
    fn count(&mut self, op: &Op) {
        let is_there = self.has(op);
        let deletes = op.deletion() == *op;
        if is_there != deletes {
            return;
        }
        let count = self.counts.entry(op.map()).or_default();
        *count = if deletes { *count - 1 } else { *count + 1 };
    }

    /// Name of each table and its entries.
    pub(super) fn entries(&self) -> [(&'static str, usize); 7] {
        TABLES.map(|name| (name, self.counts.get(name).copied().unwrap_or(0)))
    }

    /// Takes the entry of `op` out of the part that held it.
    fn leave(&mut self, service: u32, op: &Op) {
        let Some(part) = self.parts.get_mut(&service) else {
            return;
        };
        let delete = match *op {
            Op::V4(TableOp::PutFrontend(key, _)) => Op::V4(TableOp::DeleteFrontend(key)),
            Op::V6(TableOp::PutFrontend(key, _)) => Op::V6(TableOp::DeleteFrontend(key)),
            Op::V4(TableOp::PutBackend(id, _)) => Op::V4(TableOp::DeleteBackend(id)),
            Op::V6(TableOp::PutBackend(id, _)) => Op::V6(TableOp::DeleteBackend(id)),
            Op::PutSlot(key, _) => Op::DeleteSlot(key),
            // Deletes are as they are, and a range never changes its service.
            Op::V4(_) | Op::V6(_) | Op::DeleteSlot(_) => *op,
        };
        part.apply(&delete);
        if part.is_empty() {
            self.parts.remove(&service);
        }
    }

    /// The share of the service ids `services`.
    pub(super) fn share(&self, services: &BTreeSet<u32>) -> TableContent {
        let mut share = TableContent::default();
        for part in services.iter().filter_map(|id| self.parts.get(id)) {
            share.merge(part.clone());
        }
        share
    }

    /// The service ids that now have a frontend which `desired` wants.
    pub(super) fn holders(&self, desired: &TableContent) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        self.v4.of_frontends(&desired.v4, &mut found);
        self.v6.of_frontends(&desired.v6, &mut found);
        found
    }

    /// The frontends of the service ids `services` that `desired` lacks.
    pub(super) fn left_by(
        &self,
        services: &BTreeSet<u32>,
        desired: &TableContent,
    ) -> Vec<FrontendAddress> {
        let mut left = Vec::new();
        for part in services.iter().filter_map(|id| self.parts.get(id)) {
            left.extend(missing(&part.v4, &desired.v4));
            left.extend(missing(&part.v6, &desired.v6));
        }
        left
    }

    /// True when some part has an entry where `put` would write one.
    pub(super) fn has(&self, put: &Op) -> bool {
        match put {
            Op::V4(op) => self.has_in(&self.v4, |part| &part.v4, op),
            Op::V6(op) => self.has_in(&self.v6, |part| &part.v6, op),
            Op::PutSlot(key, _) | Op::DeleteSlot(key) => {
                let part = self.parts.get(&key.service);
                part.is_some_and(|part| part.slots.contains_key(key))
            }
        }
    }

    fn has_in<A: Ord + Copy>(
        &self,
        owners: &Owners<A>,
        family: impl Fn(&TableContent) -> &FamilyTables<A>,
        op: &TableOp<A>,
    ) -> bool {
        match op {
            TableOp::PutFrontend(key, _) | TableOp::DeleteFrontend(key) => {
                owners.frontends.contains_key(key)
            }
            TableOp::PutBackend(id, _) | TableOp::DeleteBackend(id) => {
                owners.backends.contains_key(id)
            }
            TableOp::PutSourceRange(key) | TableOp::DeleteSourceRange(key) => {
                let part = self.parts.get(&key.range.service);
                part.is_some_and(|part| family(part).source_ranges.contains(key))
            }
        }
    }

    /// The part of a service id.
    pub(super) fn part(&self, id: u32) -> Option<&TableContent> {
        self.parts.get(&id)
    }

    /// The first service id behind `after` that has a part, and that part.
    pub(super) fn next_part(&self, after: u32) -> Option<(u32, &TableContent)> {
        let mut later = self.parts.range((Bound::Excluded(after), Bound::Unbounded));
        later.next().map(|(id, part)| (*id, part))
    }

    /// Everything, as one.
    pub(super) fn content(&self) -> TableContent {
        self.share(&self.parts.keys().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{List, SlotKey};

    use super::*;

    #[test]
    fn entries_are_counted_as_they_come_and_go() {
        let mut mirror = Mirror::default();
        let slots = |mirror: &Mirror| {
            let entries = mirror.entries();
            let found = entries.iter().find(|(name, _)| *name == names::SLOTS);
            found.unwrap().1
        };
        let key = |slot| SlotKey::new(7, List::Cluster, slot);
        for (op, count) in [
            (Op::PutSlot(key(0), 1), 1),
            (Op::PutSlot(key(1), 1), 2),
            (Op::PutSlot(key(0), 5), 2),
            (Op::DeleteSlot(key(3)), 2),
            (Op::DeleteSlot(key(0)), 1),
            (Op::DeleteSlot(key(0)), 1),
            (Op::DeleteSlot(key(1)), 0),
        ] {
            mirror.apply(&op);
            assert_eq!(slots(&mirror), count, "{op:?}");
        }
    }
}
