// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which source `run` takes its objects from, and what it does before that source answers.
//!
//! A folder of manifests if one is given, else the API server. With `--state-dir` what either of
//! them tells is remembered.
//! **Invariant:** what is remembered is used only when the tables are empty: else they are newer.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tokio::sync::mpsc::unbounded_channel;
use tracing::{info, warn};

use super::flags::{RunArgs, SocketLbName};
use crate::error_chain;
use crate::model::snapshot::{Object, Update};
use crate::source::kubernetes::events::EventRecorder;
use crate::source::kubernetes::{self, Access, Client, Outlet, Patience};
use crate::source::state::State;
use crate::source::{Delivery, Updates, manifests};

/// What the list lacks that is made of remembered objects.
const UNREADABLE: &str = "the API server";

/// Where objects come from.
pub(super) enum Source {
    /// A folder.
    Manifests(PathBuf),
    /// The API server.
    ApiServer(Client),
}

/// What goes with a source that has been started.
pub(super) struct Started {
    /// What tells people about Services, if there is somebody to tell.
    pub(super) recorder: Option<EventRecorder>,
    /// What is remembered on disk.
    pub(super) state: Option<State>,
}

impl Source {
    /// The source that the flags name. Nothing is sent to it yet.
    pub(super) async fn find(args: &RunArgs) -> Result<Self, String> {
        if let Some(path) = &args.manifests {
            return Ok(Self::Manifests(path.clone()));
        }
        let access = Access {
            kubeconfig: args.kubeconfig.clone(),
            api_server: args.api_server.clone(),
        };
        let client = kubernetes::connect(&access).await;
        client.map(Self::ApiServer).map_err(|e| error_chain(&e))
    }

    /// Begins to send to `updates`; if the tables are empty, what is remembered comes first. Gives
    /// what else there is to do for it.
    pub(super) fn start(
        self,
        args: &RunArgs,
        node: &str,
        tables_are_empty: bool,
        updates: Updates,
    ) -> Result<Started, String> {
        let (state, objects) = args.state_dir.as_deref().and_then(open).unzip();
        match self {
            Self::Manifests(path) => {
                let updates = match &state {
                    Some(state) => recorded(state.clone(), updates),
                    None => updates,
                };
                manifests::watch(&path, updates).map_err(|e| error_chain(&e))?;
                let recorder = None;
                Ok(Started { recorder, state })
            }
            Self::ApiServer(client) => {
                let objects = objects.filter(|_| tables_are_empty).unwrap_or_default();
                let recorder = EventRecorder::start(client.clone(), node);
                let outlet = Outlet {
                    remembered: remember(objects, &updates),
                    updates,
                    state: state.clone(),
                    recorder: Some(recorder.clone()),
                };
                let watch = kubernetes::watch(&client, node, outlet, Patience::default());
                if args.socket_lb == SocketLbName::All {
                    watch.pods();
                }
                let recorder = Some(recorder);
                Ok(Started { recorder, state })
            }
        }
    }
}

/// The state is a help after a reboot; a node without it still serves.
fn open(folder: &Path) -> Option<(State, Vec<Object>)> {
    match State::open(folder) {
        Ok(opened) => Some(opened),
        Err(error) => {
            let cause = error_chain(&error);
            warn!("{cause}; going on without remembering anything");
            None
        }
    }
}

/// Hands on what is remembered; false if that is nothing.
fn remember(objects: Vec<Object>, updates: &Updates) -> bool {
    if objects.is_empty() {
        return false;
    }
    info!(
        "the tables are empty: serving by {} remembered objects until the API server answers",
        objects.len()
    );
    let update = Update::Partial {
        objects,
        unreadable: vec![UNREADABLE.to_owned()],
    };
    let received = Instant::now();
    // The receiver is there as long as the agent.
    updates.send(Delivery { received, update }).is_ok()
}

/// A way to `updates` on which everything is remembered.
fn recorded(state: State, updates: Updates) -> Updates {
    let (sender, mut inbox) = unbounded_channel::<Delivery>();
    tokio::spawn(async move {
        while let Some(delivery) = inbox.recv().await {
            let recorded = state.record(&delivery.update);
            let sent = updates.send(delivery);
            drop(recorded);
            if sent.is_err() {
                return;
            }
        }
    });
    sender
}
