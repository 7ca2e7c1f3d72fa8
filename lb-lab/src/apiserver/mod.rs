// SPDX-License-Identifier: MIT OR Apache-2.0
//! An API server that tests can make fail: lists, watches and Events over plain HTTP/1.1.
//!
//! It behaves as kube-apiserver 1.36 does for Services, EndpointSlices and Nodes, as far as a client
//! can see, until a [`Fault`] says otherwise.
//! **Invariant:** nothing is validated and nothing is defaulted but name, namespace, uid and version: what
//! a test puts in is what clients get. Read next: `serve`, `store`, [`fault`].

mod console;
pub mod fault;
mod generate;
mod list;
mod object;
mod out;
mod query;
mod real;
mod resource;
mod selector;
mod serve;
mod status;
mod store;
mod stream;
mod watch;
mod written;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use socket2::{Domain, Protocol, Socket, Type};

pub use self::console::converse;
pub use self::fault::{Fault, FaultId, Rule};
pub use self::generate::{Cluster, ClusterSpec};
pub use self::real::RealApiServer;
pub use self::resource::Resource;

use self::fault::Active;
use self::object::{Identity, Object, Parts};
use self::serve::{Acceptor, Shared};
use crate::error::LabError;

/// Connections that may wait for the accepting thread.
const BACKLOG: i32 = 1024;
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// A request that the server has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `get`, `list`, `watch`, `create`, `patch` or `update`.
    pub verb: String,
    /// The path without the query.
    pub path: String,
    /// The query as it came, still encoded.
    pub query: String,
    /// What the client calls itself.
    pub user_agent: String,
}

/// A running API server; it stops when dropped.
///
/// It listens in the network namespace of the thread that starts it, and has threads of its own.
#[derive(Debug)]
#[must_use = "the server stops when dropped"]
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Mutex<Option<Acceptor>>,
}

impl ApiServer {
    /// Starts a server without objects; port 0 takes a free one.
    pub fn start(address: SocketAddr) -> Result<Self, LabError> {
        let listener = listen(address)?;
        let doing = format!("listen on {address}");
        let address = listener.local_addr().map_err(LabError::io(doing))?;
        let shared = Arc::new(Shared::new()?);
        let acceptor = Acceptor::start(&shared, listener)?;
        Ok(Self {
            address,
            shared,
            acceptor: Mutex::new(Some(acceptor)),
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as a kubeconfig names it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The text of a kubeconfig for it.
    pub fn kubeconfig(&self) -> String {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": self.url()}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "users": [{"name": "lab", "user": {}}],
            "current-context": "lab",
        });
        config.to_string()
    }

    /// Creates or replaces an object, or each item of a `List`; the version afterwards.
    pub fn apply(&self, value: Value) -> Result<u64, LabError> {
        let Value::Object(mut map) = value else {
            return Err(object::malformed("it is no object"));
        };
        if map.get("kind").is_some_and(|kind| kind == "List") {
            let items = map.remove("items");
            let mut version = self.version();
            if let Some(Value::Array(items)) = items {
                for item in items {
                    version = self.apply(item)?;
                }
            }
            return Ok(version);
        }
        self.put(map)
    }

    fn put(&self, map: Map<String, Value>) -> Result<u64, LabError> {
        let identity = Identity::of(&map)?;
        let mut state = self.shared.lock();
        let previous = state.get(identity.resource, &identity.key());
        let version = state.version + 1;
        let object = Object::from_value(&identity, map, previous.map(AsRef::as_ref), version)?;
        Ok(state.put(identity.resource, object))
    }

    /// As [`ApiServer::apply`], for YAML with any number of documents.
    pub fn apply_yaml(&self, text: &str) -> Result<u64, LabError> {
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let value = Value::deserialize(document)
                .map_err(|error| object::malformed(&error.to_string()))?;
            if !value.is_null() {
                self.apply(value)?;
            }
        }
        Ok(self.version())
    }

    /// Creates or replaces an object that is text already.
    fn put_parts(&self, parts: Parts<'_>) -> u64 {
        let resource = parts.resource;
        let mut state = self.shared.lock();
        let version = state.version + 1;
        state.put(resource, Object::new(parts, version))
    }

    /// Deletes an object; the version afterwards, none if there was no such object.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Option<u64> {
        let key = object::key(resource, namespace, name);
        self.shared.lock().delete(resource, &key)
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.shared.lock().version
    }

    /// Every request until now.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// Every Event that clients have written, with what they have changed in it since.
    pub fn events(&self) -> Vec<Value> {
        self.shared.lock().written.clone()
    }

    /// How many watches of a resource are open.
    pub fn watches(&self, resource: Resource) -> usize {
        let state = self.shared.lock();
        let of_resource = state
            .watchers
            .values()
            .filter(|watcher| watcher.resource == resource);
        of_resource.count()
    }

    /// How many requests came, and how many bytes were sent.
    pub fn traffic(&self) -> (usize, u64) {
        let requests = self.shared.lock().requests.len();
        (requests, self.shared.bytes.load(Ordering::Relaxed))
    }

    /// Switches a fault on, for requests from now on and for running watches.
    pub fn fault(&self, rule: impl Into<Rule>) -> FaultId {
        let mut state = self.shared.lock();
        let id = FaultId(state.next_id());
        state.rules.push(Active::new(id, rule.into()));
        state.wake_all();
        id
    }

    /// How many requests it has happened to; 0 once it is lifted.
    pub fn fired(&self, id: FaultId) -> u64 {
        let state = self.shared.lock();
        let found = state.rules.iter().find(|active| active.id == id);
        found.map_or(0, |active| active.claimed)
    }

    /// Switches a fault off.
    pub fn lift(&self, id: FaultId) {
        let mut state = self.shared.lock();
        state.rules.retain(|active| active.id != id);
        state.wake_all();
    }

    /// Switches all faults off.
    pub fn lift_all(&self) {
        let mut state = self.shared.lock();
        state.rules.clear();
        state.wake_all();
    }

    /// Sends a bookmark on every watch that wants any.
    pub fn bookmark(&self) {
        let mut state = self.shared.lock();
        state.bookmark_round += 1;
        state.wake_all();
    }

    /// How often bookmarks are sent unasked; a minute if not said, as a real server does.
    pub fn bookmark_every(&self, time: Duration) {
        let mut state = self.shared.lock();
        state.bookmark_every = time;
        state.wake_all();
    }

    /// How many events of each resource a watch can resume from; older versions are gone.
    pub fn history(&self, events: usize) {
        self.shared.lock().set_window(events);
    }

    /// Forgets all history, as etcd does every five minutes: all versions before this one are gone.
    pub fn compact(&self) {
        self.shared.lock().compact();
    }

    /// Closes the listener and all connections: new ones are refused by the kernel.
    pub fn pause(&self) {
        drop(self.acceptor().take());
        self.shared.close_connections();
    }

    /// Listens again, with all objects and the same versions.
    pub fn resume(&self) -> Result<(), LabError> {
        let acceptor = Acceptor::start(&self.shared, listen(self.address)?)?;
        *self.acceptor() = Some(acceptor);
        Ok(())
    }

    fn acceptor(&self) -> std::sync::MutexGuard<'_, Option<Acceptor>> {
        self.acceptor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the event of a version was handed to a socket, in nanoseconds of `CLOCK_MONOTONIC`, taken
    /// just before the write; none if no watch took it within the time.
    pub fn handed_ns(&self, version: u64, timeout: Duration) -> Option<u64> {
        let until = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            let handed = state.event(version)?.handed_ns.load(Ordering::Relaxed);
            let left = until.saturating_duration_since(Instant::now());
            if handed != 0 {
                return Some(handed);
            }
            if left.is_zero() {
                return None;
            }
            let waited = self.shared.handed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until something is so.
    pub fn wait_until(
        &self,
        what: &str,
        timeout: Duration,
        is_so: impl Fn(&Self) -> bool,
    ) -> Result<(), LabError> {
        let until = Instant::now() + timeout;
        while !is_so(self) {
            if Instant::now() >= until {
                return Err(LabError::Timeout {
                    what: what.to_owned(),
                    millis: timeout.as_millis(),
                    log: String::new(),
                });
            }
            thread::park_timeout(LOOK);
        }
        Ok(())
    }

    /// Closes everything and waits for the threads; dropping the value does the same.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.acceptor().take());
        self.shared.stop();
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, LabError> {
    let listening = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // A server that comes back takes its port from connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        // A client that is gone again must not stop the accepting thread.
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    listening().map_err(LabError::io(format!("listen on {address}")))
}
