// SPDX-License-Identifier: MIT OR Apache-2.0
//! The moment after a start when nothing of an earlier agent is attached any more.
//!
//! **Invariant:** what programs that are still attached need is never removed.

use super::{Follower, warn};

impl Follower {
    /// Removes what only an earlier agent's programs needed, once, when none of them is left.
    pub(super) fn forget_earlier(&mut self) {
        if self.settled || self.switching.is_some() {
            return;
        }
        let lacking = self.lacking.indices().into_iter();
        let lacking: Vec<_> = lacking
            .filter_map(|index| self.view.target(index))
            .collect();
        match self.attacher.is_outdated(&lacking) {
            Ok(true) => {}
            Ok(false) => match self.attacher.forget_earlier() {
                Ok(()) => self.settled = true,
                Err(error) => warn("remove what earlier programs needed", &error),
            },
            Err(error) => warn("look for earlier programs", &error),
        }
    }
}
