// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/livez` and `/readyz` about the agent itself, for the probes of its pod.
//!
//! Alive is who answers: a request is handed to the loop, and a loop that has not turned for a minute
//! is stuck. Ready is who has brought everything into force once and keeps up since; the body tells
//! what is lacking, also while ready.
//! **Invariant:** an idle agent is not woken up but by requests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::progress::Progress;

/// How long a request waits for the loop, less than the second that a kubelet waits by default.
const WAITS: Duration = Duration::from_millis(500);
/// A loop that has not turned for so long is stuck. The first list of a large cluster takes seconds.
const STUCK_AFTER: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
struct State {
    /// When the loop was asked first, while it has not answered.
    asked: Option<Instant>,
    /// Everything was in force once.
    ready: bool,
    /// What is lacking, in words.
    lacking: Vec<String>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ask: Notify,
    answered: Notify,
}

/// What the loop tells of itself. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse(Arc<Shared>);

impl Pulse {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until somebody asks whether the loop turns. May be dropped and asked again.
    pub(super) async fn asked(&self) {
        self.0.ask.notified().await;
    }

    /// The loop turns.
    pub(super) fn answer(&self) {
        self.state().asked = None;
        self.0.answered.notify_waiters();
    }

    /// Takes note of whether everything was in force once, and of what is lacking.
    pub(super) fn note(&self, ready: bool, lacking: Vec<String>) {
        let mut state = self.state();
        state.ready = ready;
        state.lacking = lacking;
    }

    /// For how long the loop has not turned.
    async fn silence(&self) -> Duration {
        let answered = self.0.answered.notified();
        let since = *self.state().asked.get_or_insert_with(Instant::now);
        self.0.ask.notify_one();
        match timeout(WAITS, answered).await {
            Ok(()) => Duration::ZERO,
            Err(_) => since.elapsed(),
        }
    }

    async fn livez(self) -> (StatusCode, String) {
        let silence = self.silence().await;
        let secs = silence.as_secs();
        if silence >= STUCK_AFTER {
            let text = format!("stuck: the loop has not turned for {secs} s\n");
            return (StatusCode::SERVICE_UNAVAILABLE, text);
        }
        let text = if silence.is_zero() {
            "ok\n".to_owned()
        } else {
            format!("busy for {secs} s\n")
        };
        (StatusCode::OK, text)
    }

    fn readyz(&self, progress: &Progress) -> (StatusCode, String) {
        let state = self.state();
        let keeps_up = progress.keeps_up();
        let (status, mut text) = match (state.ready, keeps_up) {
            (true, true) => (StatusCode::OK, "ready\n".to_owned()),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
        };
        for lacking in &state.lacking {
            text = text + "- " + lacking + "\n";
        }
        if !keeps_up {
            text += "- changes have been waiting for more than a minute\n";
        }
        (status, text)
    }
}

/// Answers by what the loop tells of itself.
pub(super) fn app(pulse: &Pulse, progress: &Progress) -> Router {
    let (lives, ready) = (pulse.clone(), pulse.clone());
    let progress = progress.clone();
    Router::new()
        .route("/livez", get(move || lives.livez()))
        .route(
            "/readyz",
            get(move || async move { ready.readyz(&progress) }),
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::asking::{ask, served};
    use crate::cli::progress::KEEPS_UP;

    #[tokio::test]
    async fn a_loop_that_turns_is_alive_and_one_that_hangs_is_not() {
        let pulse = Pulse::default();
        let port = served(app(&pulse, &Progress::default())).await;
        let turning = pulse.clone();
        let turns = tokio::spawn(async move {
            loop {
                turning.asked().await;
                turning.answer();
            }
        });
        let answer = ask(port, "GET /livez").await;
        assert_eq!((answer.status, &*answer.body), (200, "ok\n"));
        turns.abort();
        turns.await.unwrap_err();
        let answer = ask(port, "GET /livez").await;
        assert_eq!((answer.status, &*answer.body), (200, "busy for 0 s\n"));
        pulse.state().asked = Instant::now().checked_sub(STUCK_AFTER);
        let answer = ask(port, "GET /livez").await;
        assert_eq!(answer.status, 503, "asked a minute ago");
        assert_eq!(answer.body, "stuck: the loop has not turned for 60 s\n");
    }

    #[tokio::test]
    async fn what_is_lacking_is_told_before_and_after_the_agent_is_ready() {
        let (pulse, progress) = (Pulse::default(), Progress::default());
        let port = served(app(&pulse, &progress)).await;
        pulse.note(false, vec!["no programs on veth7 yet".to_owned()]);
        let answer = ask(port, "GET /readyz").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.body, "not ready\n- no programs on veth7 yet\n");
        pulse.note(true, Vec::new());
        let answer = ask(port, "GET /readyz").await;
        assert_eq!((answer.status, &*answer.body), (200, "ready\n"));
        progress.queued();
        progress.waits_for(0, KEEPS_UP);
        let answer = ask(port, "GET /readyz").await;
        assert_eq!(answer.status, 503);
        assert!(answer.body.contains("waiting for more than a minute"));
    }
}
