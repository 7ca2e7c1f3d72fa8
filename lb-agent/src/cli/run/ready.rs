// SPDX-License-Identifier: MIT OR Apache-2.0
//! When a running agent is ready, and what is lacking: for its supervisor and for who asks.
//!
//! **Invariant:** ready is said once, when everything that is known is in force and every managed
//! device has its programs; what is lacking afterwards is told beside it.

use tracing::{debug, info, warn};

use super::{Service, services};
use crate::datapath::SocketState;

impl Service {
    /// Says that all is in force, unless something is lacking.
    pub(super) fn get_ready(&mut self) {
        let lacking = self.lacking();
        if let [first, ..] = &*lacking {
            if self.managed.borrow().lacking.is_empty() {
                debug!("not ready: {first}");
            } else {
                warn!("not ready: {}", lacking.join(", "));
            }
            return;
        }
        self.ready = true;
        info!("ready: everything that is known is in force");
        for warning in self.reconciler.node_warnings() {
            warn!("{warning}");
        }
        let unreadable = self.reconciler.unreadable();
        if !unreadable.is_empty() {
            warn!(
                "{} cannot be read: what earlier runs left in the tables stays until then",
                unreadable.join(", ")
            );
        }
        let sockets = self.managed.borrow().sockets.clone();
        let detail = match sockets {
            SocketState::Lacking(_) => sockets.to_string(),
            SocketState::Off | SocketState::Serving(_) => String::new(),
        };
        self.supervisor.ready(&detail);
    }

    /// Tells who asks what is lacking.
    pub(super) fn note_lacking(&self) {
        let mut lacking = self.lacking();
        if self.ready {
            let unreadable = self.reconciler.unreadable().iter();
            lacking.extend(unreadable.map(|name| format!("{name} cannot be read")));
            let sockets = &self.managed.borrow().sockets;
            if matches!(sockets, SocketState::Lacking(_)) {
                lacking.push(sockets.to_string());
            }
        }
        self.surfaces.pulse.note(self.ready, lacking);
    }

    /// What keeps the agent from being ready.
    fn lacking(&self) -> Vec<String> {
        let mut lacking = Vec::new();
        if !self.reconciler.is_listed() {
            lacking.push("the first list has not come yet".to_owned());
        } else if self.reconciler.is_pending() {
            let failed = services(self.reconciler.failed_len());
            lacking.push(format!("{failed} waiting for another try"));
        }
        let managed = self.managed.borrow();
        if !managed.lacking.is_empty() {
            let names: Vec<_> = managed.lacking.iter().map(String::as_str).collect();
            lacking.push(format!("no programs on {} yet", names.join(", ")));
        }
        if managed.node != self.taught {
            lacking.push("the node's own addresses are being written".to_owned());
        }
        lacking
    }
}
