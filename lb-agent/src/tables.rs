// SPDX-License-Identifier: MIT OR Apache-2.0
//! The boundary between what is wanted and where it is kept: [`Tables`].
//!
//! `datapath` implements it on pinned maps, [`Memory`] on ordinary ones for tests and for
//! `lb-agent plan`. [`Memory`] can be told to be full or to fail, because the way back from a
//! failed write is part of the design.
//! **Invariant:** an implementation carries out single writes and decides nothing.

use std::collections::BTreeSet;
use std::fmt;

use crate::diff::diff;
use crate::model::tables::{Op, TableContent, TableOp};

/// Where the tables are kept.
pub trait Tables {
    /// Carries out one write. After an error the table is as it was before.
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError>;

    /// Calls `each` with every entry, as the write that puts it.
    fn walk(&self, each: &mut dyn FnMut(Op)) -> Result<(), DumpError>;

    /// True when the entry that `put` would write is there, byte for byte.
    fn holds(&self, put: &Op) -> Result<bool, DumpError>;

    /// Reads everything back; called once at start, to find the ids that are in use.
    fn dump(&self) -> Result<TableContent, DumpError> {
        let mut content = TableContent::default();
        self.walk(&mut |op| content.apply(&op))?;
        Ok(content)
    }

    /// These service ids are given up: what was counted for them goes.
    fn forget_services(&mut self, _services: &[u32]) {}

    /// Only these service ids are in use: what was counted for others goes.
    fn keep_services(&mut self, _services: &BTreeSet<u32>) {}

    /// The map of this name had no room for a write: makes room if that is possible. It may take
    /// a while; the write is tried again later.
    fn relieve(&mut self, _full: &'static str) {}
}

/// What becomes of a map that is full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Growth {
    /// It stays as it is.
    #[default]
    None,
    /// A larger one is being made.
    UnderWay,
    /// It has as many entries as it may have.
    AtLimit,
    /// No larger one could be made, for this reason; it is tried again.
    Failed(String),
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::UnderWay => f.write_str("; a larger one is being made"),
            Self::AtLimit => f.write_str(", the most that it may have"),
            Self::Failed(why) => write!(f, "; making a larger one failed: {why}"),
        }
    }
}

/// A write that did not happen. Both kinds are worth another try later.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The map has no room: it grows, or fewer objects are needed.
    #[error("{op}: map {map} is full ({limit} entries{growth})")]
    Full {
        /// The pinned name of the map.
        map: &'static str,
        /// Entries that it was created for.
        limit: u32,
        /// The write in words.
        op: String,
        /// What becomes of the map.
        growth: Growth,
    },
    /// The kernel refused.
    #[error("{op}: write map {map}")]
    Io {
        /// The pinned name of the map.
        map: &'static str,
        /// The write in words.
        op: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl ApplyError {
    /// The write `op` found no room in its map of `limit` entries.
    pub fn full(op: &Op, limit: u32, growth: Growth) -> Self {
        Self::Full {
            map: op.map(),
            limit,
            op: op.to_string(),
            growth,
        }
    }

    /// The map that had no room, if that was it.
    pub fn full_map(&self) -> Option<&'static str> {
        match self {
            Self::Full { map, .. } => Some(map),
            Self::Io { .. } => None,
        }
    }

    /// The write `op` was refused.
    pub fn io(op: &Op, source: std::io::Error) -> Self {
        Self::Io {
            map: op.map(),
            op: op.to_string(),
            source,
        }
    }
}

/// The tables could not be read back; nothing may be written over unknown contents.
#[derive(Debug, thiserror::Error)]
#[error("read map {map}")]
pub struct DumpError {
    /// The pinned name of the map.
    pub map: &'static str,
    /// What the kernel said.
    #[source]
    pub source: std::io::Error,
}

/// Tables in memory, with faults on request.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    content: TableContent,
    log: Vec<Op>,
    fail_at: BTreeSet<usize>,
    tries: usize,
    limit: Option<u32>,
}

impl Memory {
    /// Tables that hold `content` already, as after a restart.
    pub fn with_content(content: TableContent) -> Self {
        Self {
            content,
            ..Self::default()
        }
    }

    /// Makes the `n`-th write from now on fail, counting from 0; the later ones work again.
    pub fn fail_nth(&mut self, n: usize) {
        self.fail_at.insert(self.tries + n);
    }

    /// Gives every map room for `entries`, or any number with none.
    pub fn set_limit(&mut self, entries: Option<u32>) {
        self.limit = entries;
    }

    /// Changes an entry behind everybody's back, as another program would.
    pub fn tamper(&mut self, op: &Op) {
        self.content.apply(op);
    }

    /// What the tables hold.
    pub fn content(&self) -> &TableContent {
        &self.content
    }

    /// Takes the writes that were carried out since the last call, in their order.
    pub fn take_log(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.log)
    }

    /// Entries in the map that a put would add to, or none when it would not grow.
    fn entries_before(&self, op: &Op) -> Option<usize> {
        let TableContent { v4, v6, slots } = &self.content;
        match op {
            Op::V4(TableOp::PutFrontend(key, _)) => {
                (!v4.frontends.contains_key(key)).then_some(v4.frontends.len())
            }
            Op::V6(TableOp::PutFrontend(key, _)) => {
                (!v6.frontends.contains_key(key)).then_some(v6.frontends.len())
            }
            Op::V4(TableOp::PutBackend(id, _)) => {
                (!v4.backends.contains_key(id)).then_some(v4.backends.len())
            }
            Op::V6(TableOp::PutBackend(id, _)) => {
                (!v6.backends.contains_key(id)).then_some(v6.backends.len())
            }
            Op::V4(TableOp::PutSourceRange(key)) => {
                (!v4.source_ranges.contains(key)).then_some(v4.source_ranges.len())
            }
            Op::V6(TableOp::PutSourceRange(key)) => {
                (!v6.source_ranges.contains(key)).then_some(v6.source_ranges.len())
            }
            Op::PutSlot(key, _) => (!slots.contains_key(key)).then_some(slots.len()),
            Op::V4(
                TableOp::DeleteFrontend(_)
                | TableOp::DeleteBackend(_)
                | TableOp::DeleteSourceRange(_),
            )
            | Op::V6(
                TableOp::DeleteFrontend(_)
                | TableOp::DeleteBackend(_)
                | TableOp::DeleteSourceRange(_),
            )
            | Op::DeleteSlot(_) => None,
        }
    }
}

impl Tables for Memory {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let number = self.tries;
        self.tries += 1;
        if self.fail_at.remove(&number) {
            return Err(ApplyError::io(op, std::io::Error::other("injected fault")));
        }
        if let (Some(limit), Some(entries)) = (self.limit, self.entries_before(op))
            && entries >= usize::try_from(limit).unwrap_or(usize::MAX)
        {
            return Err(ApplyError::full(op, limit, Growth::None));
        }
        self.content.apply(op);
        self.log.push(*op);
        Ok(())
    }

    fn walk(&self, each: &mut dyn FnMut(Op)) -> Result<(), DumpError> {
        diff(&TableContent::default(), &self.content)
            .into_iter()
            .for_each(each);
        Ok(())
    }

    fn holds(&self, put: &Op) -> Result<bool, DumpError> {
        Ok(self.content.holds(put))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::SlotKey;

    #[test]
    fn a_full_map_is_told_with_its_size_and_what_becomes_of_it() {
        let op = Op::PutSlot(SlotKey::cluster(3, 0), 1);
        for (growth, end) in [
            (Growth::None, "full (64 entries)"),
            (
                Growth::UnderWay,
                "full (64 entries; a larger one is being made)",
            ),
            (
                Growth::AtLimit,
                "full (64 entries, the most that it may have)",
            ),
            (
                Growth::Failed("no memory".to_owned()),
                "full (64 entries; making a larger one failed: no memory)",
            ),
        ] {
            let error = ApplyError::full(&op, 64, growth);
            assert_eq!(error.full_map(), Some("SLOTS"));
            let sentence = error.to_string();
            assert!(sentence.ends_with(end), "{sentence}");
        }
    }
}
