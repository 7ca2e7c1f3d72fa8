// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the bytes of an answer to objects of the model.
//!
//! Only the fields that are read are ever built: `managedFields`, most annotations and most of a
//! status are skipped in the bytes. One object that cannot be read leaves its neighbours alone.
//! **Invariant:** versions are opaque text here; nothing compares them.
//! Read next: `source::convert`, which checks what was decoded.

mod pods;

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::core::Status;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::model::endpoint::SliceKey;
use crate::model::pod::PodKey;
use crate::model::service::ServiceKey;
use crate::model::snapshot::{Kind, Object, ObjectRef};
use crate::source::convert::{self, FieldError};

pub(super) use pods::{Namespace, Pod};

/// The annotations that are ours begin so; the others are not kept.
const ANNOTATIONS: &str = "lb-agent/";
/// The bookmark with this annotation ends the first list of a stream.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// An object, or what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) reference: ObjectRef,
    pub(super) uid: String,
    /// None for an object that means nothing to us.
    pub(super) object: Result<Option<Object>, Unread>,
}

/// An object that is named and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unread {
    /// The Service whose EndpointSlice it says to be, where that much of it can be read.
    pub(super) service: Option<ServiceKey>,
    /// What is wrong with it.
    pub(super) message: String,
}

impl From<FieldError> for Unread {
    fn from(error: FieldError) -> Self {
        Self {
            service: None,
            message: error.to_string(),
        }
    }
}

/// One line of a stream.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time and not for long; a box would be an allocation per event"
)]
pub(super) enum Event {
    /// An object is new or different.
    Applied(Item, Option<String>),
    /// It is gone.
    Deleted(ObjectRef, Option<String>),
    /// This version has been reached, and whether it is the end of the first list.
    Bookmark(Option<String>, bool),
    /// The server ends the stream.
    Ended(Box<Status>),
    /// An object without a name: nothing can be kept for it.
    Nameless(String),
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Item>,
    /// What is wrong with objects that have no name.
    pub(super) nameless: Vec<String>,
    pub(super) version: Option<String>,
    pub(super) continue_token: Option<String>,
}

/// The metadata that is read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<Ours>,
}

/// The annotations that are read.
#[derive(Debug, Default)]
struct Ours(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Ours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pick;
        impl<'de> Visitor<'de> for Pick {
            type Value = Ours;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ours, A::Error> {
                let mut ours = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let known = [
                        INITIAL_EVENTS_END,
                        convert::ANNOTATION_CONFIG_HASH,
                        convert::ANNOTATION_TRIGGERED,
                    ];
                    if key.starts_with(ANNOTATIONS) || known.contains(&key.as_str()) {
                        ours.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Ours(ours))
            }
        }
        deserializer.deserialize_map(Pick)
    }
}

impl Meta {
    fn into_object_meta(self) -> ObjectMeta {
        ObjectMeta {
            name: self.name,
            namespace: self.namespace,
            uid: self.uid,
            creation_timestamp: self.creation_timestamp,
            deletion_timestamp: self.deletion_timestamp,
            labels: self.labels,
            annotations: self.annotations.map(|ours| ours.0),
            ..ObjectMeta::default()
        }
    }
}

/// A kind of object as it is decoded: trimmed, then put into Kubernetes' own type.
pub(super) trait Watched: DeserializeOwned {
    /// Which list it belongs to.
    const KIND: Kind;

    /// Its metadata.
    fn meta(&mut self) -> &mut Meta;

    /// Checks it and fills in defaults. None for what means nothing to us.
    fn convert(self) -> Result<Option<Object>, Unread>;
}

/// A Service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    metadata: Meta,
    spec: Option<core::ServiceSpec>,
    status: Option<ServiceStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: Option<core::LoadBalancerStatus>,
}

impl Watched for Service {
    const KIND: Kind = Kind::Services;

    fn meta(&mut self) -> &mut Meta {
        &mut self.metadata
    }

    fn convert(self) -> Result<Option<Object>, Unread> {
        let whole = core::Service {
            metadata: self.metadata.into_object_meta(),
            spec: self.spec,
            status: self.status.map(|status| core::ServiceStatus {
                load_balancer: status.load_balancer,
                ..core::ServiceStatus::default()
            }),
        };
        Ok(Some(Object::Service(convert::service(&whole)?)))
    }
}

/// An EndpointSlice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct EndpointSlice {
    metadata: Meta,
    address_type: String,
    endpoints: Option<Vec<discovery::Endpoint>>,
    ports: Option<Vec<discovery::EndpointPort>>,
}

impl Watched for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlices;

    fn meta(&mut self) -> &mut Meta {
        &mut self.metadata
    }

    fn convert(self) -> Result<Option<Object>, Unread> {
        let whole = discovery::EndpointSlice {
            metadata: self.metadata.into_object_meta(),
            address_type: self.address_type,
            endpoints: self.endpoints,
            ports: self.ports,
        };
        let slice = convert::endpoint_slice(&whole).map_err(|error| Unread {
            service: service_of(&whole.metadata),
            message: error.to_string(),
        })?;
        Ok(Some(Object::EndpointSlice(slice)))
    }
}

fn service_of(meta: &ObjectMeta) -> Option<ServiceKey> {
    let label = meta.labels.as_ref()?.get(convert::LABEL_SERVICE_NAME)?;
    convert::service_of_slice(namespace(meta.namespace.as_deref()), label)
}

/// A Node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    metadata: Meta,
    spec: Option<NodeSpec>,
    status: Option<NodeStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<core::Taint>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<core::NodeAddress>>,
}

impl Watched for Node {
    const KIND: Kind = Kind::Nodes;

    fn meta(&mut self) -> &mut Meta {
        &mut self.metadata
    }

    fn convert(self) -> Result<Option<Object>, Unread> {
        let whole = core::Node {
            metadata: self.metadata.into_object_meta(),
            spec: self.spec.map(|spec| core::NodeSpec {
                pod_cidr: spec.pod_cidr,
                pod_cidrs: spec.pod_cidrs,
                taints: spec.taints,
                ..core::NodeSpec::default()
            }),
            status: self.status.map(|status| core::NodeStatus {
                addresses: status.addresses,
                ..core::NodeStatus::default()
            }),
        };
        Ok(Some(Object::Node(convert::node(&whole)?)))
    }
}

/// Reads one page of a list.
pub(super) fn page<T: Watched>(bytes: &[u8]) -> Result<Page, serde_json::Error> {
    #[derive(Deserialize)]
    struct List<I> {
        metadata: ListMeta,
        items: Option<Vec<I>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ListMeta {
        resource_version: Option<String>,
        #[serde(rename = "continue")]
        continue_token: Option<String>,
    }
    let (meta, items) = if let Ok(list) = serde_json::from_slice::<List<T>>(bytes) {
        let items = list.items.unwrap_or_default();
        (list.metadata, items.into_iter().map(item).collect())
    } else {
        // Some object is not as it should be: each one for itself, which takes longer.
        let list = serde_json::from_slice::<List<&RawValue>>(bytes)?;
        let read = |raw: &RawValue| decode::<T>(raw.get().as_bytes());
        let items = list.items.unwrap_or_default();
        let items: Vec<_> = items.into_iter().map(read).collect();
        (list.metadata, items)
    };
    let mut page = Page {
        items: Vec::with_capacity(items.len()),
        nameless: Vec::new(),
        version: meta.resource_version.filter(|version| !version.is_empty()),
        continue_token: meta.continue_token.filter(|token| !token.is_empty()),
    };
    for item in items {
        match item {
            Ok((item, _)) => page.items.push(item),
            Err(message) => page.nameless.push(message),
        }
    }
    Ok(page)
}

/// Reads one line of a stream.
pub(super) fn event<T: Watched>(line: &[u8]) -> Result<Event, serde_json::Error> {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    /// How an API server begins nearly every line; what is left is the object and a brace.
    const USUAL: [&[u8]; 2] = [
        b"{\"type\":\"ADDED\",\"object\":",
        b"{\"type\":\"MODIFIED\",\"object\":",
    ];
    for prefix in USUAL {
        let object = line.strip_prefix(prefix).and_then(|l| l.strip_suffix(b"}"));
        if let Some(object) = object
            && let Ok(whole) = serde_json::from_slice::<T>(object)
        {
            return Ok(applied(item(whole)));
        }
    }
    let line: Line<'_> = serde_json::from_slice(line)?;
    let object = line.object.get().as_bytes();
    Ok(match line.kind {
        "ADDED" | "MODIFIED" => applied(decode::<T>(object)),
        "DELETED" => match decode::<T>(object) {
            Ok((item, version)) => Event::Deleted(item.reference, version),
            Err(message) => Event::Nameless(message),
        },
        "BOOKMARK" => {
            let meta = serde_json::from_slice::<Envelope>(object)?.metadata;
            let ends = meta.annotations.is_some_and(|ours| {
                ours.0.get(INITIAL_EVENTS_END).map(String::as_str) == Some("true")
            });
            Event::Bookmark(meta.resource_version.filter(|v| !v.is_empty()), ends)
        }
        "ERROR" => Event::Ended(serde_json::from_slice(object)?),
        // Whatever it says is not known here, so what is known is no longer all there is.
        other => {
            let what = format!("an event of the unknown type {other:?}");
            return Err(serde::de::Error::custom(what));
        }
    })
}

/// Any object, of which only the metadata can be read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Envelope {
    metadata: Meta,
}

/// An object of which not even all metadata can be read.
#[derive(Debug, Deserialize)]
struct Name<'a> {
    #[serde(borrow)]
    metadata: BareMeta<'a>,
}

#[derive(Debug, Deserialize)]
struct BareMeta<'a> {
    name: Option<String>,
    namespace: Option<String>,
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    uid: Option<String>,
    /// They may be what is wrong.
    #[serde(borrow)]
    labels: Option<&'a RawValue>,
}

impl BareMeta<'_> {
    /// The Service of a slice with this metadata.
    fn service(&self) -> Option<ServiceKey> {
        let labels: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(self.labels?.get()).ok()?;
        let label = labels.get(convert::LABEL_SERVICE_NAME)?.as_str()?;
        convert::service_of_slice(namespace(self.namespace.as_deref()), label)
    }
}

type Decoded = Result<(Item, Option<String>), String>;

fn applied(decoded: Decoded) -> Event {
    match decoded {
        Ok((item, version)) => Event::Applied(item, version),
        Err(message) => Event::Nameless(message),
    }
}

fn decode<T: Watched>(object: &[u8]) -> Decoded {
    let mut reader = serde_json::Deserializer::from_slice(object);
    let error = match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Ok(whole) => return item(whole),
        Err(error) => {
            // A position in bytes that nobody sees helps nobody, and differs from try to try.
            let message = error.inner().to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            format!("{}: {message}", error.path())
        }
    };
    let Ok(Name { metadata: meta }) = serde_json::from_slice(object) else {
        return Err(error);
    };
    let service = match T::KIND {
        Kind::EndpointSlices => meta.service(),
        Kind::Services | Kind::Nodes | Kind::Pods | Kind::Namespaces => None,
    };
    let item = Item {
        reference: reference_of(T::KIND, meta.namespace.as_deref(), meta.name)?,
        uid: meta.uid.unwrap_or_default(),
        object: Err(Unread {
            service,
            message: error,
        }),
    };
    Ok((item, meta.resource_version))
}

fn item<T: Watched>(mut whole: T) -> Decoded {
    let meta = whole.meta();
    let version = meta.resource_version.take();
    let uid = meta.uid.clone().unwrap_or_default();
    let reference = reference_of(T::KIND, meta.namespace.as_deref(), meta.name.clone())?;
    let item = Item {
        reference,
        uid,
        object: whole.convert(),
    };
    Ok((item, version))
}

/// The namespace of an object that says so, or not.
fn namespace(named: Option<&str>) -> &str {
    named.filter(|name| !name.is_empty()).unwrap_or("default")
}

fn reference_of(
    kind: Kind,
    namespace: Option<&str>,
    name: Option<String>,
) -> Result<ObjectRef, String> {
    let name = name.filter(|name| !name.is_empty());
    let Some(name) = name else {
        return Err("an object without a name".to_owned());
    };
    let namespace = self::namespace(namespace).to_owned();
    Ok(match kind {
        Kind::Services => ObjectRef::Service(ServiceKey { namespace, name }),
        Kind::EndpointSlices => ObjectRef::EndpointSlice(SliceKey { namespace, name }),
        Kind::Nodes => ObjectRef::Node(name),
        Kind::Pods => ObjectRef::Pod(PodKey { namespace, name }),
        Kind::Namespaces => ObjectRef::Namespace(name),
    })
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
