// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects as a server sends them, updates as words, and a source that follows a scripted server.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lb_agent::model::snapshot::{Change, Invalid, Object, ObjectRef, Update};
use lb_agent::source::Delivery;
use lb_agent::source::kubernetes::{Access, Outlet, Patience, connect, watch};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::server::{Reply, Request};

/// For a test that fails.
const LIMIT: Duration = Duration::from_secs(20);

/// Short waits, so that tests do not take long.
pub(crate) fn patience() -> Patience {
    Patience {
        list_quiet: Duration::from_secs(1),
        list_longest: Duration::from_secs(4),
        piece: Duration::from_millis(800),
        settle: Duration::from_millis(150),
        stream_secs: (60, 60),
        silence: Duration::from_millis(600),
        grace: Duration::from_millis(200),
    }
}

/// A source that follows a server.
pub(crate) struct Following {
    updates: UnboundedReceiver<Delivery>,
}

impl Following {
    pub(crate) async fn start(url: &str) -> Self {
        Self::with(url, |_| {}, patience()).await
    }

    pub(crate) async fn with(
        url: &str,
        adjust: impl FnOnce(&mut Outlet),
        patience: Patience,
    ) -> Self {
        let access = Access {
            api_server: Some(url.to_owned()),
            kubeconfig: None,
        };
        let client = connect(&access).await.unwrap();
        let (sender, updates) = unbounded_channel();
        let mut outlet = Outlet {
            updates: sender,
            state: None,
            remembered: false,
            recorder: None,
        };
        adjust(&mut outlet);
        watch(&client, "this-node", outlet, patience);
        Self { updates }
    }

    /// One that follows pods and Namespaces too.
    pub(crate) async fn with_pods(url: &str) -> Self {
        let access = Access {
            api_server: Some(url.to_owned()),
            kubeconfig: None,
        };
        let client = connect(&access).await.unwrap();
        let (sender, updates) = unbounded_channel();
        let outlet = Outlet {
            updates: sender,
            state: None,
            remembered: false,
            recorder: None,
        };
        watch(&client, "this-node", outlet, patience()).pods();
        Self { updates }
    }

    /// The next update.
    pub(crate) async fn update(&mut self) -> Update {
        let next = timeout(LIMIT, self.updates.recv()).await;
        next.unwrap().unwrap().update
    }

    /// The next update in words.
    pub(crate) async fn next(&mut self) -> String {
        words(&self.update().await)
    }

    /// Nothing comes for a while.
    pub(crate) async fn nothing(&mut self) {
        let next = timeout(Duration::from_millis(300), self.updates.recv()).await;
        assert!(next.is_err(), "{next:?}");
    }
}

/// An update in words.
pub(crate) fn words(update: &Update) -> String {
    let all = |objects: &[Object]| objects.iter().map(object).collect::<Vec<_>>().join(" ");
    match update {
        Update::Reset { objects, invalid } => format!("reset {} {}", all(objects), bad(invalid)),
        Update::Partial {
            objects,
            unreadable,
        } => format!("partial {} without {}", all(objects), unreadable.join(", ")),
        Update::Relist {
            kind,
            objects,
            invalid,
        } => format!("relist {kind:?} {} {}", all(objects), bad(invalid)),
        Update::Complete => "complete".to_owned(),
        Update::Changes(changes) => {
            let words: Vec<_> = changes.iter().map(change).collect();
            words.join(" ")
        }
    }
    .split_whitespace()
    .collect::<Vec<_>>()
    .join(" ")
}

fn change(change: &Change) -> String {
    match change {
        Change::Apply(it) => format!("+{}", object(it)),
        Change::Delete(reference) => format!("-{}", name(reference)),
        Change::Invalid(invalid) => bad(std::slice::from_ref(invalid)),
    }
}

fn bad(invalid: &[Invalid]) -> String {
    let words = invalid.iter().map(|it| format!("!{}", name(&it.object)));
    words.collect::<Vec<_>>().join(" ")
}

fn object(object: &Object) -> String {
    match object {
        Object::Service(service) => format!("{}:{}", service.key.name, service.ports[0].port),
        Object::EndpointSlice(_)
        | Object::Endpoints(..)
        | Object::Node(_)
        | Object::Pod(_)
        | Object::Namespace(_) => name(&object.reference()),
    }
}

fn name(reference: &ObjectRef) -> String {
    match reference {
        ObjectRef::Service(key) | ObjectRef::Endpoints(key) => key.name.clone(),
        ObjectRef::EndpointSlice(key) => format!("slice-{}", key.name),
        ObjectRef::Node(name) => format!("node-{name}"),
        ObjectRef::Pod(key) => format!("pod-{}", key.name),
        ObjectRef::Namespace(name) => format!("namespace-{name}"),
    }
}

/// A Service as a server sends it.
pub(crate) fn service(name: &str, version: u32, port: &str) -> String {
    format!(
        r#"{{"kind":"Service","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"default","uid":"u-{name}","resourceVersion":"{version}","creationTimestamp":"2026-01-01T00:00:00Z","labels":null,"annotations":{{"kubectl.kubernetes.io/last-applied-configuration":"{{}}","lb-agent/algorithm":"random"}},"managedFields":[{{"manager":"kubectl","operation":"Update","fieldsV1":{{"f:spec":{{}}}}}}]}},"spec":{{"clusterIP":"10.0.0.1","clusterIPs":["10.0.0.1"],"ports":[{{"port":{port},"protocol":"TCP","targetPort":80}}],"type":"ClusterIP"}},"status":{{"loadBalancer":{{}}}}}}"#
    )
}

/// An event of a stream.
pub(crate) fn event(kind: &str, object: impl AsRef<str>) -> String {
    format!(r#"{{"type":"{kind}","object":{}}}"#, object.as_ref())
}

pub(crate) fn added(name: &str, version: u32, port: u16) -> String {
    event("ADDED", service(name, version, &port.to_string()))
}

pub(crate) fn modified(name: &str, version: u32, port: u16) -> String {
    event("MODIFIED", service(name, version, &port.to_string()))
}

/// A bookmark; `end` for the one that ends the first list.
pub(crate) fn bookmark(version: u32, end: bool) -> String {
    let annotations = if end {
        r#","annotations":{"k8s.io/initial-events-end":"true"}"#
    } else {
        ""
    };
    event(
        "BOOKMARK",
        format!(
            r#"{{"kind":"Service","apiVersion":"v1","metadata":{{"resourceVersion":"{version}"{annotations}}}}}"#
        ),
    )
}

/// A page of a list.
pub(crate) fn page(version: u32, next: &str, items: &[String]) -> String {
    let items = items.join(",");
    format!(
        r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"{version}","continue":"{next}"}},"items":[{items}]}}"#
    )
}

/// What a server answers that has nothing and to which nothing happens.
pub(crate) fn nothing(request: &Request) -> Reply {
    if request.wants_initial_events() {
        Reply::lines([bookmark(1, true)])
    } else if request.is_watch() {
        Reply::steps([])
    } else {
        Reply::json(page(1, "", &[]))
    }
}

/// What is logged on this thread, until it is dropped.
pub(crate) struct Logged {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Logged {
    pub(crate) fn start() -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&text);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || Sink(Arc::clone(&sink)))
            .finish();
        Self {
            text,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    pub(crate) fn count(&self, words: &str) -> usize {
        let text = String::from_utf8(self.text.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(words)).count()
    }
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
