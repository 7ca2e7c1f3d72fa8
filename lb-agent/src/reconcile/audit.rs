// SPDX-License-Identifier: MIT OR Apache-2.0
//! The audit: does the kernel still hold what the mirror says?
//!
//! Somebody may have changed a pinned map behind the agent's back. An audit looks at some entries at
//! a time, so that a change never waits for it for long, and mends whatever differs.
//! **Invariant:** the mirror is right and the tables are mended, never the other way round; what
//! belongs to an earlier process is in the mirror as well and stays until it is pruned.

use tracing::warn;

use super::Reconciler;
use crate::diff::diff;
use crate::error_chain;
use crate::model::tables::{Op, TableContent};
use crate::tables::Tables;

/// What an audit has found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// Entries that were missing or had another value, and were written again.
    pub restored: u64,
    /// Entries that nobody planned, and were removed.
    pub removed: u64,
    /// Entries that could not be read or mended; the next audit finds them again.
    pub failed: u64,
}

impl AuditReport {
    /// Entries that differed.
    pub fn drift(&self) -> u64 {
        self.restored + self.removed + self.failed
    }
}

/// An audit that is going on.
#[derive(Debug, Default)]
pub struct Audit {
    /// The service id that is looked at; 0 before the first.
    last: u32,
    /// Those of its entries that were not looked at yet.
    rest: std::vec::IntoIter<Op>,
    report: AuditReport,
}

impl Reconciler {
    /// Looks at the next `entries` entries; answers with the report once all were looked at.
    pub fn audit_step(
        &self,
        audit: &mut Audit,
        entries: usize,
        tables: &mut impl Tables,
    ) -> Option<AuditReport> {
        for _ in 0..entries {
            let Some(put) = self.next_entry(audit) else {
                return Some(audit.report);
            };
            // What is planned otherwise by now has been written since.
            let part = self.mirror.part(audit.last);
            let planned = part.is_some_and(|part| part.holds(&put));
            if planned
                && mend(
                    &put,
                    "it was missing or different",
                    &mut audit.report,
                    tables,
                )
            {
                audit.report.restored += 1;
            }
        }
        None
    }

    /// The entries in the order in which they were written first.
    fn next_entry(&self, audit: &mut Audit) -> Option<Op> {
        loop {
            if let Some(put) = audit.rest.next() {
                return Some(put);
            }
            let (id, part) = self.mirror.next_part(audit.last)?;
            audit.last = id;
            audit.rest = diff(&TableContent::default(), part).into_iter();
        }
    }

    /// Removes those of `found`, entries that a walk over the tables has met, that nobody planned.
    /// They may have been met a while ago.
    pub fn audit_strangers(&self, found: &[Op], tables: &mut impl Tables) -> AuditReport {
        let mut report = AuditReport::default();
        let strangers = found.iter().filter(|op| !self.mirror.has(op));
        let mut content = TableContent::default();
        strangers.for_each(|op| content.apply(op));
        // ORDER: as planned removals are, so that nobody is led to what goes next.
        for op in diff(&content, &TableContent::default()) {
            remove(&op, &mut report, tables);
        }
        report
    }

    /// Walks over the tables and mends everything at once, for callers that can wait.
    pub fn audit(&self, tables: &mut impl Tables) -> AuditReport {
        let mut audit = Audit::default();
        self.audit_step(&mut audit, usize::MAX, tables);
        let mut report = audit.report;
        let mut found = Vec::new();
        if let Err(error) = tables.walk(&mut |op| found.push(op)) {
            warn!(error = %error_chain(&error), "audit");
            report.failed += 1;
        }
        let strangers = self.audit_strangers(&found, tables);
        report.removed += strangers.removed;
        report.failed += strangers.failed;
        report
    }
}

/// Removes what nobody planned, unless it is gone already: it was met before a planned removal.
fn remove(deletion: &Op, report: &mut AuditReport, tables: &mut impl Tables) {
    if mend(deletion, "nobody planned it", report, tables) {
        report.removed += 1;
    }
}

/// Carries a write out unless the tables are as it would leave them; true if it was carried out.
fn mend(op: &Op, why: &str, report: &mut AuditReport, tables: &mut impl Tables) -> bool {
    let failure = match tables.holds(op) {
        Ok(true) => return false,
        Ok(false) => match tables.apply(op) {
            Ok(()) => {
                warn!("audit: {op}, {why}");
                return true;
            }
            Err(error) => error_chain(&error),
        },
        Err(error) => error_chain(&error),
    };
    report.failed += 1;
    warn!(error = failure, "audit");
    false
}
