// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects from the API server: Services, their EndpointSlices, and this node's own Node; on demand its
//! pods and the Namespaces.
//!
//! [`connect()`] finds the server, [`watch`] follows it for as long as anybody takes updates. Each
//! kind is followed by a task of its own (`follow`); `hub` brings them together.
//! **Invariant:** whatever the server does or does not do, what was known stays in force until
//! something newer is known for certain.

mod connect;
mod decode;
pub mod events;
mod failure;
mod follow;
mod hub;
mod wire;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

pub use kube::Client;

pub use connect::{Access, AccessError, connect};
use events::EventRecorder;
use follow::Follower;
use hub::Hub;
use wire::Query;

use crate::source::Updates;
use crate::source::state::State;

/// Services that another proxy serves, or that have no virtual address, are not asked for.
const SERVICE_LABELS: &str = "!service.kubernetes.io/service-proxy-name";
const SERVICE_FIELDS: &str = "spec.clusterIP!=None";
const SLICE_LABELS: &str =
    "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// Where the source puts what it finds.
#[derive(Debug)]
pub struct Outlet {
    /// The reconciler's channel.
    pub updates: Updates,
    /// What is remembered on disk.
    pub state: Option<State>,
    /// Remembered objects were handed on already, and stand in for what cannot be read.
    pub remembered: bool,
    /// Where to tell people about Services that cannot be read.
    pub recorder: Option<EventRecorder>,
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Silence after which a stream that should begin with a list is not believed to do so.
    pub list_quiet: Duration,
    /// The longest that a streamed list may take.
    pub list_longest: Duration,
    /// Silence after which an answer in pieces counts as broken.
    pub piece: Duration,
    /// A stream that is open for so long works, even if nothing happens.
    pub settle: Duration,
    /// The shortest and the longest time for which a stream is asked for, in seconds.
    pub stream_secs: (u32, u32),
    /// Silence after which a stream is opened anew, also before its first bookmark.
    pub silence: Duration,
    /// How much longer than asked for a stream may stay open.
    pub grace: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            list_quiet: Duration::from_secs(5),
            list_longest: Duration::from_mins(1),
            piece: Duration::from_secs(30),
            settle: Duration::from_secs(2),
            stream_secs: (240, 300),
            // API servers send a bookmark about once a minute, up to a quarter later: two are missing.
            silence: Duration::from_secs(150),
            grace: Duration::from_secs(15),
        }
    }
}

impl Patience {
    /// A length for a stream; they differ, so that agents do not come back at the same time.
    fn stream_secs(&self) -> u32 {
        let (least, most) = self.stream_secs;
        let random = RandomState::new().hash_one(least);
        let span = u64::from(most.saturating_sub(least)) + 1;
        least + u32::try_from(random % span).unwrap_or(0)
    }
}

/// What follows an API server, to ask it for more.
pub struct Watch {
    all: (Client, Arc<Hub>, Patience),
    node: String,
}

impl Watch {
    /// Follows the pods of this node and all Namespaces too. Only their metadata is asked for, and
    /// nothing else waits for them.
    pub fn pods(&self) {
        let pods = Query {
            path: "/api/v1/pods",
            resource: "pods",
            labels: None,
            fields: Some(format!("spec.nodeName={}", self.node)),
            metadata: true,
        };
        let namespaces = Query {
            path: "/api/v1/namespaces",
            resource: "namespaces",
            labels: None,
            fields: None,
            metadata: true,
        };
        tokio::spawn(follower::<decode::Pod>(pods, &self.all).run());
        tokio::spawn(follower::<decode::Namespace>(namespaces, &self.all).run());
    }
}

/// Follows the API server on tasks of the current runtime, until nobody takes updates any more.
pub fn watch(client: &Client, node: &str, outlet: Outlet, patience: Patience) -> Watch {
    let hub = Arc::new(Hub::new(outlet));
    let services = Query {
        path: "/api/v1/services",
        resource: "services",
        labels: Some(SERVICE_LABELS),
        fields: Some(SERVICE_FIELDS.to_owned()),
        metadata: false,
    };
    let slices = Query {
        path: "/apis/discovery.k8s.io/v1/endpointslices",
        resource: "endpointslices",
        labels: Some(SLICE_LABELS),
        fields: None,
        metadata: false,
    };
    let nodes = Query {
        path: "/api/v1/nodes",
        resource: "nodes",
        labels: None,
        fields: Some(format!("metadata.name={node}")),
        metadata: false,
    };
    let all = (client.clone(), hub, patience);
    tokio::spawn(follower::<decode::Service>(services, &all).run());
    tokio::spawn(follower::<decode::EndpointSlice>(slices, &all).run());
    tokio::spawn(follower::<decode::Node>(nodes, &all).run());
    let node = node.to_owned();
    Watch { all, node }
}

fn follower<T: decode::Watched>(
    query: Query,
    (client, hub, patience): &(Client, Arc<Hub>, Patience),
) -> Follower<T> {
    Follower::new(client.clone(), query, Arc::clone(hub), *patience)
}
