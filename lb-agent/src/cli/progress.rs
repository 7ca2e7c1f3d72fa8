// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether what is known comes into force, and whether this node stays in the cluster.
//!
//! The loop notes it, the servers for load balancers and probes read it.
//! **Invariant:** noting costs the same however much there is. A loop that hangs within a change is
//! seen, too: what was queued stays queued.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Changes may wait for so long before the agent says of itself that it is not healthy: twice
/// kube-proxy's period between two full passes.
pub(super) const KEEPS_UP: Duration = Duration::from_mins(1);
/// The families, as Kubernetes writes them.
pub(super) const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// How one family fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FamilyHealth {
    /// When everything was in force last; none before the first time.
    pub(super) last_updated: Option<Timestamp>,
    /// Nothing has waited for too long.
    pub(super) healthy: bool,
}

/// What there is to know at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// By family; none for one of which nothing has ever come.
    pub(super) families: [Option<FamilyHealth>; 2],
    /// New connections may come to this node.
    pub(super) node_eligible: bool,
}

impl Known {
    /// Nothing has waited for too long in any family.
    pub(super) fn is_healthy(&self) -> bool {
        self.families.iter().flatten().all(|family| family.healthy)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Family {
    queued: Option<Instant>,
    last_updated: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    families: [Family; 2],
    node_leaves: bool,
}

/// Whether what is known is in force. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Mutex<State>>);

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has come that is to be brought into force.
    pub(super) fn queued(&self) {
        for family in &mut self.state().families {
            family.queued.get_or_insert_with(Instant::now);
        }
    }

    /// Takes note of the families in which something waits for another try.
    pub(super) fn note(&self, waits: [bool; 2]) {
        let now = Timestamp::now();
        for (family, waits) in self.state().families.iter_mut().zip(waits) {
            if waits {
                family.queued.get_or_insert_with(Instant::now);
            } else {
                family.queued = None;
                family.last_updated = Some(now);
            }
        }
    }

    /// Takes note of whether this node stays.
    pub(super) fn note_node(&self, eligible: bool) {
        self.state().node_leaves = !eligible;
    }

    /// What there is to know now.
    pub(super) fn known(&self) -> Known {
        let state = *self.state();
        let health = |family: &Family| {
            let healthy = family.queued.is_none_or(|since| since.elapsed() < KEEPS_UP);
            let nothing_came = family.queued.is_none() && family.last_updated.is_none();
            (!nothing_came).then_some(FamilyHealth {
                last_updated: family.last_updated,
                healthy,
            })
        };
        Known {
            families: [health(&state.families[0]), health(&state.families[1])],
            node_eligible: !state.node_leaves,
        }
    }

    /// False when something has been waiting for too long.
    pub(super) fn keeps_up(&self) -> bool {
        self.known().is_healthy()
    }

    /// As if that what waits in a family had begun to wait so long ago.
    #[cfg(test)]
    pub(super) fn waits_for(&self, family: usize, time: Duration) {
        self.state().families[family].queued = Instant::now().checked_sub(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wait_counts_and_ends_with_the_change_in_force() {
        let progress = Progress::default();
        assert_eq!(progress.known().families, [None, None], "nothing has come");
        progress.queued();
        assert!(progress.keeps_up());
        progress.waits_for(0, KEEPS_UP);
        progress.queued();
        progress.note([true, false]);
        let known = progress.known();
        assert!(!known.is_healthy(), "the first wait counts");
        let [v4, v6] = known.families.map(Option::unwrap);
        assert_eq!((v4.healthy, v4.last_updated), (false, None));
        assert!(v6.healthy && v6.last_updated.is_some());
        progress.note([false; 2]);
        assert!(progress.keeps_up());
    }
}
