// SPDX-License-Identifier: MIT OR Apache-2.0
//! When `run` audits the maps, and how without making a change wait.
//!
//! What is missing is looked for some entries at a time, between changes. What nobody planned is
//! found by a thread that walks over the maps and hands over what it meets.
//! **Invariant:** an idle agent wakes up once per interval; a step looks at a bounded
//! number of entries, however many endpoints a Service has. An audit that could not look at
//! everything says that it failed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::datapath::KernelTables;
use crate::error_chain;
use crate::model::tables::Op;
use crate::reconcile::Reconciler;
use crate::reconcile::audit::{Audit, AuditReport};
use crate::tables::Tables;

/// Entries looked at in one step, and handed over by the walk at once. Each is one lookup.
const ENTRIES_PER_STEP: usize = 512;
/// Chunks of entries that may wait.
const CHUNKS_WAITING: usize = 4;

/// What an audit is to do next.
#[derive(Debug)]
pub(super) enum Due {
    /// A new audit begins.
    Begin,
    /// Some more of the planned entries.
    Planned,
    /// What the walk has met, or that it cannot go on.
    Met(Told),
    /// The walk has ended.
    Walked,
}

/// The walk did not get to its end; the log says why.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed;

/// What a walk tells.
type Told = Result<Vec<Op>, Failed>;

/// The audits of a running agent.
#[derive(Debug)]
pub(super) struct Audits {
    interval: Duration,
    bpffs: PathBuf,
    begin: Instant,
    running: Option<Audit>,
    walk: Option<Receiver<Told>>,
    report: AuditReport,
}

impl Audits {
    /// Audits every `interval`, or none if it is zero.
    pub(super) fn new(interval: Duration, bpffs: &Path) -> Self {
        Self {
            interval,
            bpffs: bpffs.to_owned(),
            begin: Instant::now() + interval,
            running: None,
            walk: None,
            report: AuditReport::default(),
        }
    }

    /// Waits for what is due. May be dropped and asked again without losing anything.
    pub(super) async fn next(&mut self) -> Due {
        if self.running.is_some() {
            // Let what has come in meanwhile go first.
            tokio::task::yield_now().await;
            return Due::Planned;
        }
        if let Some(walk) = &mut self.walk {
            return walk.recv().await.map_or(Due::Walked, Due::Met);
        }
        if self.interval.is_zero() {
            return std::future::pending().await;
        }
        sleep_until(self.begin).await;
        Due::Begin
    }

    /// Does what is due; answers with the report of an audit that has come to its end.
    pub(super) fn go_on(
        &mut self,
        due: Due,
        reconciler: &Reconciler,
        tables: &mut impl Tables,
    ) -> Option<AuditReport> {
        match due {
            Due::Begin => {
                self.report = AuditReport::default();
                self.running = Some(Audit::default());
                None
            }
            Due::Planned => {
                let audit = self.running.as_mut()?;
                let report = reconciler.audit_step(audit, ENTRIES_PER_STEP, tables)?;
                self.report = report;
                self.running = None;
                self.walk = Some(walk(&self.bpffs));
                None
            }
            Due::Met(Err(Failed)) => {
                self.report.failed += 1;
                None
            }
            Due::Met(Ok(entries)) => {
                let found = reconciler.audit_strangers(&entries, tables);
                self.report.removed += found.removed;
                self.report.failed += found.failed;
                None
            }
            Due::Walked => {
                self.walk = None;
                self.begin = Instant::now() + self.interval;
                Some(self.report)
            }
        }
    }
}

/// Begins to walk over the pinned maps on a thread of its own.
fn walk(bpffs: &Path) -> Receiver<Told> {
    let (sender, receiver) = channel(CHUNKS_WAITING);
    let bpffs = bpffs.to_owned();
    let thread = std::thread::Builder::new().name("audit".to_owned());
    let outcome = sender.clone();
    let spawned = thread.spawn(move || {
        if let Err(error) = walk_over(&bpffs, &sender) {
            warn!(error, "audit");
            drop(sender.blocking_send(Err(Failed)));
        }
    });
    if let Err(error) = spawned {
        warn!("start the thread that walks over the maps: {error}");
        // There is room: nothing has been sent yet.
        drop(outcome.try_send(Err(Failed)));
    }
    // Once the thread has ended the channel is closed, which ends the audit.
    receiver
}

fn walk_over(bpffs: &Path, sender: &Sender<Told>) -> Result<(), String> {
    let tables = KernelTables::open(bpffs).map_err(|e| error_chain(&e))?;
    let mut chunk = Vec::with_capacity(ENTRIES_PER_STEP);
    let walked = tables.walk(&mut |op| {
        chunk.push(op);
        if chunk.len() == ENTRIES_PER_STEP {
            // A closed channel means that the agent is about to end.
            drop(sender.blocking_send(Ok(std::mem::take(&mut chunk))));
        }
    });
    drop(sender.blocking_send(Ok(chunk)));
    walked.map_err(|e| error_chain(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tables::TableContent;
    use crate::plan::ids::IdLimits;
    use crate::plan::node::PlanOptions;
    use crate::reconcile::Settings;
    use crate::tables::Memory;

    #[tokio::test]
    async fn an_audit_whose_walk_fails_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            node_name: "a".to_owned(),
            options: PlanOptions::default(),
            id_limits: IdLimits::default(),
        };
        let reconciler = Reconciler::restore(settings, &TableContent::default(), 1);
        let mut tables = Memory::default();
        // Nothing is pinned there.
        let mut audits = Audits::new(Duration::from_millis(1), folder.path());
        let report = loop {
            let due = audits.next().await;
            if let Some(report) = audits.go_on(due, &reconciler, &mut tables) {
                break report;
            }
        };
        let failed = AuditReport {
            failed: 1,
            ..AuditReport::default()
        };
        assert_eq!(report, failed);
        assert!(audits.walk.is_none() && audits.running.is_none());
    }
}
