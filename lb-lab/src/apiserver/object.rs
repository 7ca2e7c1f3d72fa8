// SPDX-License-Identifier: MIT OR Apache-2.0
//! An object as the bytes that are served, written once when it changes.
//!
//! **Invariant:** serving an object, to however many clients, copies bytes and writes no JSON: list items
//! and watch events are cut from the same text. Only a version that differs is put in between.
//! Read next: `store`.

use std::ops::Range;

use serde_json::{Map, Value};

use super::resource::Resource;
use crate::error::LabError;

/// When objects that do not say so came to be.
const CREATED: &str = "2026-01-01T00:00:00Z";

/// One version of an object.
#[derive(Debug)]
pub(super) struct Object {
    /// `NAMESPACE/NAME`, or the name where there are no namespaces; lists are in this order.
    pub(super) key: String,
    name_at: usize,
    uid: String,
    labels: Vec<(String, String)>,
    cluster_ip: String,
    service_type: String,
    bytes: Box<[u8]>,
    /// Where the text begins that items of a list have: they do not repeat the kind.
    item_from: usize,
    version_at: Range<usize>,
}

/// What an object is made of.
pub(super) struct Parts<'a> {
    pub(super) resource: Resource,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) uid: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) cluster_ip: String,
    pub(super) service_type: String,
    /// The members of `metadata` but the version, each with a comma before it.
    pub(super) metadata: &'a str,
    /// The members beside `metadata`, each with a comma before it.
    pub(super) rest: &'a str,
}

impl Object {
    pub(super) fn new(parts: Parts<'_>, version: u64) -> Self {
        let resource = parts.resource;
        let (kind, api_version) = (resource.kind(), resource.api_version());
        let mut text = format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","#);
        text.reserve(parts.metadata.len() + parts.rest.len() + 64);
        let item_from = text.len();
        text.push_str(r#""metadata":{"resourceVersion":""#);
        let from = text.len();
        text.push_str(&version.to_string());
        let version_at = from..text.len();
        text.push('"');
        text.push_str(parts.metadata);
        text.push('}');
        text.push_str(parts.rest);
        text.push('}');
        let key = key(resource, parts.namespace, parts.name);
        Self {
            name_at: key.len() - parts.name.len(),
            key,
            uid: parts.uid,
            labels: parts.labels,
            cluster_ip: parts.cluster_ip,
            service_type: parts.service_type,
            bytes: text.into_bytes().into_boxed_slice(),
            item_from,
            version_at,
        }
    }

    /// From what a client would send; `previous` is the object that it replaces.
    pub(super) fn from_value(
        identity: &Identity,
        mut value: Map<String, Value>,
        previous: Option<&Self>,
        version: u64,
    ) -> Result<Self, LabError> {
        value.remove("kind");
        value.remove("apiVersion");
        let Some(Value::Object(mut metadata)) = value.remove("metadata") else {
            return Err(malformed("it has no metadata"));
        };
        metadata.remove("resourceVersion");
        let resource = identity.resource;
        if resource.is_namespaced() {
            metadata.insert("namespace".to_owned(), identity.namespace.clone().into());
        }
        let given = metadata.get("uid").and_then(Value::as_str);
        let uid = given.or(previous.map(|previous| previous.uid.as_str()));
        let uid = uid.map_or_else(
            || format!("00000000-0000-4000-8000-{version:012}"),
            str::to_owned,
        );
        metadata.insert("uid".to_owned(), uid.clone().into());
        metadata
            .entry("creationTimestamp")
            .or_insert_with(|| CREATED.into());
        let labels = metadata.get("labels").and_then(Value::as_object);
        let labels = labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        let labels = labels.collect();
        let spec = |field: &str| {
            let found = value.get("spec").and_then(|spec| spec.get(field));
            found.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let parts = Parts {
            resource,
            namespace: &identity.namespace,
            name: &identity.name,
            uid,
            labels,
            cluster_ip: spec("clusterIP"),
            service_type: spec("type"),
            metadata: &members(&metadata),
            rest: &members(&value),
        };
        Ok(Self::new(parts, version))
    }

    pub(super) fn name(&self) -> &str {
        &self.key[self.name_at..]
    }

    pub(super) fn namespace(&self) -> &str {
        self.key[..self.name_at].trim_end_matches('/')
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(own, _)| own == key);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn field(&self, name: &str) -> &str {
        match name {
            "metadata.name" => self.name(),
            "metadata.namespace" => self.namespace(),
            "spec.clusterIP" => &self.cluster_ip,
            "spec.type" => &self.service_type,
            _ => "",
        }
    }

    /// The whole text, as a GET answers it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends the object as an item of a list.
    pub(super) fn write_item(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        out.extend_from_slice(&self.bytes[self.item_from..]);
    }

    /// Appends a line of a watch; a deleted object has the version of its deletion.
    pub(super) fn write_event(&self, out: &mut Vec<u8>, kind: &str, version: Option<u64>) {
        out.extend_from_slice(br#"{"type":""#);
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(br#"","object":"#);
        if let Some(version) = version {
            out.extend_from_slice(&self.bytes[..self.version_at.start]);
            out.extend_from_slice(version.to_string().as_bytes());
            out.extend_from_slice(&self.bytes[self.version_at.end..]);
        } else {
            out.extend_from_slice(&self.bytes);
        }
        out.extend_from_slice(b"}\n");
    }
}

/// Which object a value is.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) resource: Resource,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Identity {
    pub(super) fn of(value: &Map<String, Value>) -> Result<Self, LabError> {
        let kind = value.get("kind").and_then(Value::as_str);
        let kind = kind.ok_or_else(|| malformed("it has no kind"))?;
        let resource = Resource::of_kind(kind)
            .ok_or_else(|| malformed(&format!("the API server has no resource of kind {kind}")))?;
        let member = |name: &str| value.get("metadata")?.get(name)?.as_str();
        let name = member("name").ok_or_else(|| malformed("it has no metadata.name"))?;
        Ok(Self {
            resource,
            namespace: member("namespace").unwrap_or("default").to_owned(),
            name: name.to_owned(),
        })
    }

    pub(super) fn key(&self) -> String {
        key(self.resource, &self.namespace, &self.name)
    }
}

pub(super) fn key(resource: Resource, namespace: &str, name: &str) -> String {
    if resource.is_namespaced() {
        format!("{namespace}/{name}")
    } else {
        name.to_owned()
    }
}

pub(super) fn malformed(why: &str) -> LabError {
    LabError::Malformed {
        what: "an object for the API server".to_owned(),
        why: why.to_owned(),
    }
}

/// `,"name":value` for each member.
fn members(map: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (name, value) in map {
        text.push(',');
        text.push_str(&Value::from(name.as_str()).to_string());
        text.push(':');
        text.push_str(&value.to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value, version: u64) -> Object {
        let Value::Object(map) = value else {
            unreachable!()
        };
        let identity = Identity::of(&map).unwrap();
        Object::from_value(&identity, map, None, version).unwrap()
    }

    #[test]
    fn an_object_is_read_back_with_version_uid_and_namespace() {
        let value = json!({"kind": "Service", "metadata": {"name": "a", "labels": {"x": "y"}},
            "spec": {"clusterIP": "10.0.0.1"}});
        let object = object(value, 7);
        assert_eq!((object.name(), object.namespace()), ("a", "default"));
        assert_eq!(object.label("x"), Some("y"));
        assert_eq!(object.field("spec.clusterIP"), "10.0.0.1");
        let read: Value = serde_json::from_slice(object.bytes()).unwrap();
        assert_eq!(read["metadata"]["resourceVersion"], "7");
        assert_eq!(read["metadata"]["namespace"], "default");
        assert_eq!(read["apiVersion"], "v1");
    }

    #[test]
    fn items_lack_the_kind_and_events_can_tell_another_version() {
        let object = object(json!({"kind": "Node", "metadata": {"name": "n"}}), 7);
        let mut item = Vec::new();
        object.write_item(&mut item);
        let item: Value = serde_json::from_slice(&item).unwrap();
        assert_eq!(item.get("kind"), None);
        assert_eq!(item["metadata"]["name"], "n");
        let mut line = Vec::new();
        object.write_event(&mut line, "DELETED", Some(1234));
        let event: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(event["type"], "DELETED");
        assert_eq!(event["object"]["metadata"]["resourceVersion"], "1234");
    }
}
