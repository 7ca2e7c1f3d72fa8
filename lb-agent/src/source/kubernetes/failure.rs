// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong between us and the API server, and how long to wait before the next try.
//!
//! **Invariant:** no failure ends the source: each of them leads to another try, later and later,
//! and a person hears of it when it begins and when it is over, not for every try.
//! Read next: wire.rs, which these come from.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::snapshot::Kind;

/// The first wait; doubled for each further one.
const WAIT_FIRST: Duration = Duration::from_millis(250);
/// The longest wait of ours.
const WAIT_LONGEST: Duration = Duration::from_secs(30);
/// The longest wait that a server may ask for.
const ASKED_LONGEST: Duration = Duration::from_mins(2);

/// A request or a stream that did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// No answer.
    #[error("the API server cannot be reached: {cause}")]
    Unreachable {
        /// What the system said.
        cause: String,
    },
    /// The credentials are not accepted.
    #[error("the API server does not accept the credentials (401): {message}")]
    Unauthorized {
        /// What the server said.
        message: String,
    },
    /// The credentials do not suffice.
    #[error(
        "the API server forbids to {verb} {resource} (403): the agent's ClusterRole needs the verbs \
         get, list and watch on {resource}: {message}"
    )]
    Forbidden {
        /// `list` or `watch`.
        verb: &'static str,
        /// The resource.
        resource: &'static str,
        /// What the server said.
        message: String,
    },
    /// The version that we know is too old to go on from.
    #[error("the API server has forgotten the version that is known here (410)")]
    Gone,
    /// The server's versions are below those that it has told before.
    #[error("the state of the API server is older than the one that is known here")]
    SetBack,
    /// The server is overloaded or broken.
    #[error("the API server cannot serve now ({code}): {message}")]
    Busy {
        /// The status code.
        code: u16,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
        /// What it said.
        message: String,
    },
    /// The server does not want this request.
    #[error("the API server refuses to {verb} {resource} ({code}): {message}")]
    Refused {
        /// `list` or `watch`.
        verb: &'static str,
        /// The resource.
        resource: &'static str,
        /// The status code.
        code: u16,
        /// What it said.
        message: String,
    },
    /// The answer ended or stopped before it was complete.
    #[error("the answer of the API server broke off: {cause}")]
    Broken {
        /// What the system said.
        cause: String,
    },
    /// The answer makes no sense.
    #[error("the API server sent what cannot be read: {cause}")]
    Garbled {
        /// What is wrong with it.
        cause: String,
    },
}

impl Failure {
    /// What tells one state of trouble from another, whatever the words.
    fn class(&self) -> (u8, &'static str) {
        match self {
            Self::Unreachable { .. } => (0, ""),
            Self::Unauthorized { .. } => (1, ""),
            Self::Forbidden { resource, .. } => (2, resource),
            Self::Gone => (3, ""),
            Self::Busy { .. } => (4, ""),
            Self::Refused { resource, .. } => (5, resource),
            Self::Broken { .. } => (6, ""),
            Self::Garbled { .. } => (7, ""),
            Self::SetBack => (8, ""),
        }
    }

    /// A part of everyday life unless it goes on: a server that is restarted, a list that is too old.
    fn is_everyday(&self) -> bool {
        matches!(self, Self::Gone | Self::Broken { .. })
    }
}

/// The waits between tries.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    random: RandomState,
    tries: u64,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self {
            next: WAIT_FIRST,
            random: RandomState::new(),
            tries: 0,
        }
    }

    /// It worked: the next wait is a first one.
    pub(super) fn reset(&mut self) {
        self.next = WAIT_FIRST;
    }

    /// How long to wait after `failure`.
    pub(super) fn wait(&mut self, failure: &Failure) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(WAIT_LONGEST);
        // Between half of it and all of it, so that a thousand agents do not come back at once.
        let ours = wait.mul_f64(f64::midpoint(1.0, self.draw()));
        match failure {
            Failure::Busy {
                retry_after: Some(asked),
                ..
            } => {
                let asked = (*asked).min(ASKED_LONGEST);
                ours.max(asked.mul_f64(1.0 + self.draw() / 5.0))
            }
            Failure::Unreachable { .. }
            | Failure::Unauthorized { .. }
            | Failure::Forbidden { .. }
            | Failure::Gone
            | Failure::SetBack
            | Failure::Busy { .. }
            | Failure::Refused { .. }
            | Failure::Broken { .. }
            | Failure::Garbled { .. } => ours,
        }
    }

    /// Between 0 and 1.
    fn draw(&mut self) -> f64 {
        self.tries += 1;
        let bytes = self.random.hash_one(self.tries).to_le_bytes();
        f64::from(u16::from_le_bytes([bytes[0], bytes[1]])) / f64::from(u16::MAX)
    }
}

/// What a person has been told about the connection.
#[derive(Debug, Default)]
pub(super) struct Health {
    troubles: Mutex<BTreeMap<Kind, (u8, &'static str)>>,
}

impl Health {
    /// A try for `kind` failed. Says so, unless the same is known already.
    pub(super) fn failed(&self, kind: Kind, failure: &Failure) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let class = failure.class();
        let known = troubles.values().any(|trouble| *trouble == class);
        let before = troubles.insert(kind, class);
        if known {
            tracing::debug!("{failure}");
        } else if failure.is_everyday() && before.is_none() {
            tracing::info!("{failure}; going on with what is known and trying again");
        } else {
            tracing::warn!("{failure}; going on with what is known and trying again");
        }
    }

    /// A try for `kind` succeeded.
    pub(super) fn succeeded(&self, kind: Kind) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.remove(&kind).is_some() && troubles.is_empty() {
            tracing::info!("the API server serves again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> Failure {
        Failure::Unreachable {
            cause: "connection refused".to_owned(),
        }
    }

    #[test]
    fn waits_double_up_to_half_a_minute_and_start_over_after_a_success() {
        let mut backoff = Backoff::new();
        let mut limit = WAIT_FIRST;
        for _ in 0..10 {
            let wait = backoff.wait(&unreachable());
            assert!(wait <= limit && wait >= limit / 2, "{wait:?} of {limit:?}");
            limit = (limit * 2).min(WAIT_LONGEST);
        }
        assert_eq!(limit, WAIT_LONGEST);
        backoff.reset();
        assert!(backoff.wait(&unreachable()) <= WAIT_FIRST);
    }

    #[test]
    fn a_server_is_not_asked_again_before_the_time_it_names() {
        let asked = |seconds| Failure::Busy {
            code: 429,
            retry_after: Some(Duration::from_secs(seconds)),
            message: String::new(),
        };
        let wait = Backoff::new().wait(&asked(3));
        assert!(wait >= Duration::from_secs(3) && wait < Duration::from_secs(4));
        let wait = Backoff::new().wait(&asked(1_000_000));
        assert!(wait <= ASKED_LONGEST * 2, "nobody may put us to sleep");
    }
}
