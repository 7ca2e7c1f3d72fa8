// SPDX-License-Identifier: MIT OR Apache-2.0
//! What others can ask a running agent, and the servers that answer: health, probes, metrics.
//!
//! **Invariant:** the loop only notes; it never waits for who asks. The servers are there before the
//! first list, and each stands for itself.

use std::time::{Duration, Instant};

use super::flags::{BindAddress, RunArgs};
use super::healthz::{self, Asked};
use super::listen::serve;
use super::metrics::Metrics;
use super::probes::{self, Pulse};
use super::progress::Progress;
use super::sync_metrics::SyncMetrics;
use crate::model::snapshot::Update;
use crate::reconcile::{Outcome, Reconciler};

/// What the loop notes for others.
#[derive(Debug)]
pub(super) struct Surfaces {
    /// Whether changes come into force.
    pub(super) progress: Progress,
    /// Whether the loop turns, and what is lacking.
    pub(super) pulse: Pulse,
    pub(super) metrics: Metrics,
    sync: SyncMetrics,
}

impl Surfaces {
    /// Starts the servers that the flags ask for. Must be called on a runtime.
    pub(super) fn start(args: &RunArgs) -> Self {
        let asked = Asked::default();
        let metrics = Metrics::new();
        let surfaces = Self {
            progress: Progress::default(),
            pulse: Pulse::default(),
            sync: metrics.sync_metrics(&asked),
            metrics,
        };
        let lacking = vec!["the programs are being loaded".to_owned()];
        surfaces.pulse.note(false, lacking);
        let progress = &surfaces.progress;
        let apps = [
            (
                args.healthz_bind_address,
                "health (/healthz, /livez)",
                healthz::app(progress, asked),
            ),
            (
                args.probe_bind_address,
                "probes (/livez, /readyz)",
                probes::app(&surfaces.pulse, progress),
            ),
            (
                args.metrics_bind_address,
                "metrics (/metrics, /healthz, /proxyMode)",
                surfaces.metrics.clone().app(),
            ),
        ];
        for (address, what, app) in apps {
            if let BindAddress(Some(address)) = address {
                tokio::spawn(serve(what, address, app));
            }
        }
        surfaces
    }

    /// Takes note of an update that is to be brought into force.
    pub(super) fn queued(&mut self, update: &Update) {
        if !update.is_about_pods() {
            self.progress.queued();
            self.sync.queued(update);
        }
    }

    /// Takes note of a pass that began at `started`.
    pub(super) fn passed(&mut self, outcome: Outcome, started: Instant, reconciler: &Reconciler) {
        self.metrics.pass(outcome, reconciler);
        let no_local = reconciler.no_local();
        self.sync
            .passed(started.elapsed(), outcome.pending, no_local);
        self.progress.note(reconciler.waiting_families());
        self.progress.note_node(reconciler.is_node_eligible());
    }

    /// Takes note of the time from the arrival of an update to its last write.
    pub(super) fn updated(&self, took: Duration) {
        self.metrics.updated(took);
    }
}
