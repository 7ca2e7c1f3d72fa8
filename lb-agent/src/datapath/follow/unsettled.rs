// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pairs of devices whose other end is on its way to another namespace: no message tells when it has
//! arrived, so it is asked for again.
//!
//! **Invariant:** each pair is asked for so often as there are waits, then left to the next audit.

use std::time::Duration;

use rtnetlink::Handle;

use super::Follower;
use crate::datapath::netlink;

/// Waits before asking again for a pair whose other end is on its way to another namespace.
const SETTLE_WAITS: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
];
impl Follower {
    pub(super) fn look_for_unsettled(&mut self) {
        let pairs = self.view.unsettled_pairs();
        self.unsettled.retain(|index, _| pairs.contains(index));
        for index in pairs {
            self.unsettled.entry(index).or_insert(0);
        }
        self.unsettled
            .retain(|_, tries| *tries < SETTLE_WAITS.len());
    }

    pub(super) fn settle_wait(&self) -> Duration {
        let soonest = self.unsettled.values().min().copied().unwrap_or(0);
        SETTLE_WAITS.get(soonest).copied().unwrap_or_default()
    }

    /// Asks again for pairs whose other end was on its way.
    pub(super) async fn settle(&mut self, handle: &Handle) {
        let pairs: Vec<u32> = self.unsettled.keys().copied().collect();
        for index in &pairs {
            if let Some(link) = netlink::get_link(handle, *index).await {
                self.view.put_link(link);
            }
            if let Some(tries) = self.unsettled.get_mut(index) {
                *tries += 1;
            }
        }
        self.react(pairs.into_iter().collect());
        let open = self.view.unsettled_pairs();
        self.unsettled
            .retain(|index, tries| open.contains(index) && *tries < SETTLE_WAITS.len());
        self.report();
    }
}
