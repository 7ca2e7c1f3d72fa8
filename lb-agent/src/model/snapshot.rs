// SPDX-License-Identifier: MIT OR Apache-2.0
//! How objects arrive, and what planning gets to see of them.
//!
//! A source sends one [`Update::Reset`] when its first list is complete, then changes. When parts
//! of the first list cannot be read and nothing is remembered of them, it sends
//! [`Update::Partial`], and [`Update::Complete`] once they can. A kind that had to be listed anew
//! comes as [`Update::Relist`]. Each of these is one piece: nothing is planned on half of it.
//! **Invariant:** a [`ServiceSnapshot`] holds one Service and nothing of any other, so planning
//! costs what that Service costs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::endpoint::{EndpointSlice, SliceKey};
use super::pod::{Namespace, Pod, PodKey};
use super::service::{Node, Service, ServiceKey};

/// An object that a source delivers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// The classic Endpoints object of the Service of the same name, as slices.
    Endpoints(ServiceKey, Vec<EndpointSlice>),
    /// A Node.
    Node(Node),
    /// A pod of this node.
    Pod(Pod),
    /// A Namespace.
    Namespace(Namespace),
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectRef {
    /// A Service.
    Service(ServiceKey),
    /// An EndpointSlice.
    EndpointSlice(SliceKey),
    /// The classic Endpoints object of a Service.
    Endpoints(ServiceKey),
    /// A Node by name.
    Node(String),
    /// A pod.
    Pod(PodKey),
    /// A Namespace by name.
    Namespace(String),
}

impl Object {
    /// What identifies it.
    pub fn reference(&self) -> ObjectRef {
        match self {
            Self::Service(service) => ObjectRef::Service(service.key.clone()),
            Self::EndpointSlice(slice) => ObjectRef::EndpointSlice(slice.key.clone()),
            Self::Endpoints(key, _) => ObjectRef::Endpoints(key.clone()),
            Self::Node(node) => ObjectRef::Node(node.name.clone()),
            Self::Pod(pod) => ObjectRef::Pod(pod.key.clone()),
            Self::Namespace(namespace) => ObjectRef::Namespace(namespace.name.clone()),
        }
    }
}

impl ObjectRef {
    /// The kind it is listed with; none for the classic Endpoints object.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Service(_) => Some(Kind::Services),
            Self::EndpointSlice(_) => Some(Kind::EndpointSlices),
            Self::Endpoints(_) => None,
            Self::Node(_) => Some(Kind::Nodes),
            Self::Pod(_) => Some(Kind::Pods),
            Self::Namespace(_) => Some(Kind::Namespaces),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "Service {key}"),
            Self::EndpointSlice(key) => write!(f, "EndpointSlice {}/{}", key.namespace, key.name),
            Self::Endpoints(key) => write!(f, "Endpoints {key}"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Pod(key) => write!(f, "Pod {key}"),
            Self::Namespace(name) => write!(f, "Namespace {name}"),
        }
    }
}

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new or different.
    Apply(Object),
    /// It is gone.
    Delete(ObjectRef),
    /// It is there and cannot be read; its last good state stays.
    Invalid(Invalid),
}

/// An object that is there and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The object.
    pub object: ObjectRef,
    /// The Service whose EndpointSlice it says to be, where that much of it can be read.
    pub service: Option<ServiceKey>,
    /// What is wrong with it.
    pub message: String,
}

/// A kind of objects that a source lists as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Nodes.
    Nodes,
    /// Pods of this node.
    Pods,
    /// Namespaces.
    Namespaces,
}

impl Kind {
    /// Says nothing but whose sockets are served.
    pub fn is_about_pods(self) -> bool {
        matches!(self, Self::Pods | Self::Namespaces)
    }
}

/// What a source sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Everything there is of all kinds; what is not in it is gone.
    Reset {
        /// The objects.
        objects: Vec<Object>,
        /// Objects that are there and cannot be read; their last good state stays.
        invalid: Vec<Invalid>,
    },
    /// All that can be read of the first list; what is not in it may still be there.
    Partial {
        /// The objects.
        objects: Vec<Object>,
        /// Names of what could not be read.
        unreadable: Vec<String>,
    },
    /// Everything that there is of one kind; what is not in it is gone.
    Relist {
        /// The kind.
        kind: Kind,
        /// The objects, all of that kind.
        objects: Vec<Object>,
        /// Objects that are there and cannot be read; their last good state stays.
        invalid: Vec<Invalid>,
    },
    /// Changes since the last update, in order.
    Changes(Vec<Change>),
    /// What an earlier [`Update::Partial`] lacked has come since then or is gone.
    Complete,
}

impl Update {
    /// Says nothing but whose sockets are served.
    pub fn is_about_pods(&self) -> bool {
        let is_it = |reference: ObjectRef| reference.kind().is_some_and(Kind::is_about_pods);
        match self {
            Self::Relist { kind, .. } => kind.is_about_pods(),
            Self::Changes(changes) => changes.iter().all(|change| {
                is_it(match change {
                    Change::Apply(object) => object.reference(),
                    Change::Delete(reference) => reference.clone(),
                    Change::Invalid(invalid) => invalid.object.clone(),
                })
            }),
            Self::Reset { .. } | Self::Partial { .. } | Self::Complete => false,
        }
    }

    /// Everything there is, all of which can be read.
    pub fn reset(objects: Vec<Object>) -> Self {
        Self::Reset {
            objects,
            invalid: Vec::new(),
        }
    }
}

/// One Service with its endpoints.
#[derive(Clone, Debug)]
pub struct ServiceSnapshot<'a> {
    /// The Service.
    pub service: &'a Service,
    /// Its slices, in the order of their names.
    pub slices: Vec<&'a EndpointSlice>,
    /// What is wrong with slices that cannot be read now and are as they were, in words.
    pub invalid: Vec<String>,
    /// What is wrong with slices that cannot be read and of which nothing is known, in words.
    pub unread: Vec<String>,
    /// A classic Endpoints object exists too and is not used, because slices exist.
    pub endpoints_ignored: bool,
}
