// SPDX-License-Identifier: MIT OR Apache-2.0
//! The thread that writes the state.
//!
//! **Invariant:** after a write that failed nothing is written until a list of everything, so that
//! no state is on disk that never was.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::log::Log;
use super::{Bounds, Order, Scope, Shared, StateError};
use crate::error_chain;

/// How long after the first change the file is made safe against a loss of power.
const SYNC_AFTER: Duration = Duration::from_secs(5);

/// How many times longer than the first wait the longest one is.
const RETRY_GROWS: u32 = 16;

/// The thread that writes.
pub(super) struct Writer {
    log: Log,
    shared: Arc<Shared>,
    /// How long to leave the disk alone after the next failure.
    retry_after: Duration,
    bounds: Bounds,
    /// A write failed, and nothing is written until there is a list of everything.
    skipping: bool,
    /// A person has been told so.
    failing: bool,
    sync_at: Option<Instant>,
    /// When to ask for everything anew.
    ask_at: Option<Instant>,
}

impl Writer {
    pub(super) fn new(log: Log, shared: Arc<Shared>, bounds: Bounds) -> Self {
        Self {
            log,
            shared,
            retry_after: bounds.retry_after,
            bounds,
            skipping: false,
            failing: false,
            sync_at: None,
            ask_at: None,
        }
    }

    /// Writes until nobody records any more.
    pub(super) fn run(mut self, inbox: &Receiver<Order>) {
        loop {
            let wake = [self.sync_at, self.ask_at].into_iter().flatten().min();
            let order = match wake {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match order {
                Ok(order) => self.carry_out(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    drop(self.log.sync());
                    return;
                }
            }
            let now = Instant::now();
            if self.sync_at.is_some_and(|at| at <= now) {
                self.sync_at = None;
                let result = self.log.sync();
                self.took(result);
            }
            if self.ask_at.is_some_and(|at| at <= now) {
                self.ask_at = None;
                self.ask_if_behind();
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        if matches!(order, Order::Begin(Scope::Everything)) {
            self.skipping = false;
        }
        let skipping = self.skipping;
        let mut cost = 0;
        let result = match order {
            Order::Change(entries, bytes) => {
                cost = bytes;
                if skipping {
                    Ok(())
                } else {
                    self.log.write(entries)
                }
            }
            Order::Listed => {
                self.shared.backlog().lists -= 1;
                Ok(())
            }
            #[cfg(test)]
            Order::Wait(done) => {
                done.send(()).ok();
                Ok(())
            }
            #[cfg(test)]
            Order::Hang(until) => {
                until.recv().unwrap_err();
                Ok(())
            }
            #[cfg(test)]
            Order::Break => {
                self.log.break_file();
                Ok(())
            }
            Order::Write(_) | Order::Begin(_) | Order::End(_) if skipping => Ok(()),
            Order::Write(entries) => self.log.write(entries),
            Order::Begin(scope) => self.log.begin(scope),
            Order::End(stay) => {
                let ended = self.log.end(&stay);
                if ended.is_ok() {
                    self.works_again();
                }
                ended
            }
        };
        if !self.skipping {
            self.sync_at
                .get_or_insert_with(|| Instant::now() + SYNC_AFTER);
        }
        self.took(result);
        self.shared.backlog().changes -= cost;
        if self.ask_at.is_none() {
            self.ask_if_behind();
        }
    }

    /// Asks for everything once nothing waits any more.
    fn ask_if_behind(&self) {
        let backlog = self.shared.backlog();
        if backlog.behind && backlog.is_empty() {
            self.shared.wanted.notify_one();
        }
    }

    /// After a failure nothing counts but a list of everything, which is asked for later.
    fn took(&mut self, result: Result<(), StateError>) {
        let Err(error) = result else {
            return;
        };
        self.skipping = true;
        self.sync_at = None;
        self.ask_at = Some(Instant::now() + self.retry_after);
        // All objects are handed over for each try.
        self.retry_after = (self.retry_after * 2).min(self.bounds.retry_after * RETRY_GROWS);
        self.shared.backlog().behind = true;
        if !std::mem::replace(&mut self.failing, true) {
            let cause = error_chain(&error);
            warn!("{cause}; what is on disk stays as it is until all can be written anew");
        }
    }

    fn works_again(&mut self) {
        self.retry_after = self.bounds.retry_after;
        if std::mem::take(&mut self.failing) {
            info!("the state on disk can be written again");
        }
    }
}
