// SPDX-License-Identifier: MIT OR Apache-2.0
//! When `run` audits the maps, and how without making a change wait.
//!
//! What is missing is looked for a few services at a time, between changes. What nobody planned is
//! found by a thread that walks over the maps and hands over what it meets.
//! **Invariant:** an idle agent wakes up once per interval; a step takes a bounded number of
//! services, which is milliseconds when one of them has thousands of endpoints.

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

/// Services looked at in one step.
const SERVICES_PER_STEP: usize = 32;
/// Entries that the walk hands over at once.
const ENTRIES_PER_STEP: usize = 512;
/// Chunks of entries that may wait.
const CHUNKS_WAITING: usize = 4;

/// What an audit is to do next.
#[derive(Debug)]
pub(super) enum Due {
    /// A new audit begins.
    Begin,
    /// Some more services.
    Services,
    /// The walk has met these entries.
    Met(Vec<Op>),
    /// The walk has ended.
    Walked,
}

/// The audits of a running agent.
#[derive(Debug)]
pub(super) struct Audits {
    interval: Duration,
    bpffs: PathBuf,
    begin: Instant,
    running: Option<Audit>,
    walk: Option<Receiver<Vec<Op>>>,
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
            return Due::Services;
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
            Due::Services => {
                let audit = self.running.as_mut()?;
                let report = reconciler.audit_step(audit, SERVICES_PER_STEP, tables)?;
                self.report = report;
                self.running = None;
                self.walk = Some(walk(&self.bpffs));
                None
            }
            Due::Met(entries) => {
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
fn walk(bpffs: &Path) -> Receiver<Vec<Op>> {
    let (sender, receiver) = channel(CHUNKS_WAITING);
    let bpffs = bpffs.to_owned();
    let thread = std::thread::Builder::new().name("audit".to_owned());
    let spawned = thread.spawn(move || walk_over(&bpffs, &sender));
    if let Err(error) = spawned {
        warn!("start the thread that walks over the maps: {error}");
    }
    // Without the thread the channel is closed, which ends the audit.
    receiver
}

fn walk_over(bpffs: &Path, sender: &Sender<Vec<Op>>) {
    let tables = match KernelTables::open(bpffs) {
        Ok(tables) => tables,
        Err(error) => return warn!(error = %error_chain(&error), "audit"),
    };
    let mut chunk = Vec::with_capacity(ENTRIES_PER_STEP);
    let walked = tables.walk(&mut |op| {
        chunk.push(op);
        if chunk.len() == ENTRIES_PER_STEP {
            // A closed channel means that the agent is about to end.
            drop(sender.blocking_send(std::mem::take(&mut chunk)));
        }
    });
    drop(sender.blocking_send(chunk));
    if let Err(error) = walked {
        warn!(error = %error_chain(&error), "audit");
    }
}
