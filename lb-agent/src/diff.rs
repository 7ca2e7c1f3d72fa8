// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ordered writes between what some services have and what they should have.
//!
//! Frontends that are gone, then backends, then slots, then frontends with their counts, then what
//! is no longer pointed at. A lookup (frontend, slot below its count, backend) may run between any
//! two writes, and between any two of its own reads: it misses only if something was deleted under
//! it, deletes of slots and backends come last, so when it reads the frontend once more everything
//! that this points to is in place. The property test in `tests/scenarios` says so for any two
//! snapshots.
//! **Invariant:** pure; a write is never followed by one that it depends on.

use std::collections::BTreeMap;

use crate::model::tables::{FamilyTables, Op, TableContent, TableOp};

/// The writes that turn `current` into `desired`, in the order to carry them out.
///
/// Both hold the tables of the same services, so that what is only in `current` is to be deleted.
pub fn diff(current: &TableContent, desired: &TableContent) -> Vec<Op> {
    let v4 = FamilyDiff::new(&current.v4, &desired.v4, Op::V4);
    let v6 = FamilyDiff::new(&current.v6, &desired.v6, Op::V6);
    let mut ops = Vec::new();
    // ORDER: first, so that nobody is led to slots that go away at the end.
    ops.extend(v4.delete_frontends);
    ops.extend(v6.delete_frontends);
    // ORDER: before the slots that point to them.
    ops.extend(v4.put_backends);
    ops.extend(v6.put_backends);
    // ORDER: before the count that covers them.
    let slots = |(key, value): (&_, &_)| Op::PutSlot(*key, *value);
    ops.extend(changed(&current.slots, &desired.slots).map(slots));
    // ORDER: before the frontends that ask for them.
    ops.extend(v4.put_ranges);
    ops.extend(v6.put_ranges);
    // ORDER: the count last when it grows, and before anything vanishes when it shrinks.
    ops.extend(v4.put_frontends);
    ops.extend(v6.put_frontends);
    // ORDER: no count covers these any more.
    ops.extend(gone(&current.slots, &desired.slots).map(|key| Op::DeleteSlot(*key)));
    // ORDER: no slot points to these any more.
    ops.extend(v4.delete_backends);
    ops.extend(v6.delete_backends);
    // ORDER: no frontend asks for these any more.
    ops.extend(v4.delete_ranges);
    ops.extend(v6.delete_ranges);
    ops
}

struct FamilyDiff {
    delete_frontends: Vec<Op>,
    put_backends: Vec<Op>,
    put_frontends: Vec<Op>,
    delete_backends: Vec<Op>,
    put_ranges: Vec<Op>,
    delete_ranges: Vec<Op>,
}

impl FamilyDiff {
    fn new<A: Ord + Copy>(
        current: &FamilyTables<A>,
        desired: &FamilyTables<A>,
        wrap: impl Fn(TableOp<A>) -> Op,
    ) -> Self
    where
        FamilyTables<A>: PartialEq,
        lb_common::abi::Backend<A>: PartialEq,
    {
        let delete_frontends = gone(&current.frontends, &desired.frontends)
            .map(|key| wrap(TableOp::DeleteFrontend(*key)));
        let put_backends = changed(&current.backends, &desired.backends)
            .map(|(id, value)| wrap(TableOp::PutBackend(*id, *value)));
        let put_frontends = changed(&current.frontends, &desired.frontends)
            .map(|(key, value)| wrap(TableOp::PutFrontend(*key, *value)));
        let delete_backends =
            gone(&current.backends, &desired.backends).map(|id| wrap(TableOp::DeleteBackend(*id)));
        let put_ranges = desired.source_ranges.difference(&current.source_ranges);
        let put_ranges = put_ranges.map(|key| wrap(TableOp::PutSourceRange(*key)));
        let delete_ranges = current.source_ranges.difference(&desired.source_ranges);
        let delete_ranges = delete_ranges.map(|key| wrap(TableOp::DeleteSourceRange(*key)));
        Self {
            put_ranges: put_ranges.collect(),
            delete_ranges: delete_ranges.collect(),
            delete_frontends: delete_frontends.collect(),
            put_backends: put_backends.collect(),
            put_frontends: put_frontends.collect(),
            delete_backends: delete_backends.collect(),
        }
    }
}

/// Entries that are new or different.
fn changed<'a, K: Ord, V: PartialEq>(
    current: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    desired
        .iter()
        .filter(|(key, value)| current.get(key) != Some(value))
}

/// Keys that are no longer wanted.
fn gone<'a, K: Ord, V>(
    current: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    current.keys().filter(|key| !desired.contains_key(key))
}
