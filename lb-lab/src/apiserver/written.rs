// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events that clients write: kept as they came, for tests to read.
//!
//! **Invariant:** a POST keeps an Event, a PATCH is merged into the one that it names, as client
//! libraries count repetitions. Read next: `serve`.

use serde_json::{Map, Value};

use super::resource::Resource;
use super::status::Failure;
use super::store::State;

/// Keeps an Event; the status line and the body of the answer.
pub(super) fn write(
    state: &mut State,
    namespace: Option<&str>,
    name: Option<&str>,
    method: &str,
    body: &[u8],
) -> Result<(&'static str, String), Failure> {
    if !matches!((method, name), ("POST", None) | ("PATCH", Some(_))) {
        return Err(Failure::wrong_method());
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Failure::bad_request(format!("the body is no JSON: {error}")))?;
    match (method, name) {
        ("POST", None) => {
            let mut event = value;
            let Some(map) = event.as_object_mut() else {
                return Err(Failure::bad_request("the body is no object"));
            };
            state.version += 1;
            let version = state.version;
            let metadata = map
                .entry("metadata")
                .or_insert_with(|| Map::new().into())
                .as_object_mut()
                .ok_or_else(|| Failure::bad_request("metadata is no object"))?;
            let prefix = metadata.get("generateName").and_then(Value::as_str);
            let made = format!("{}{version:x}", prefix.unwrap_or("event-"));
            metadata.entry("name").or_insert_with(|| made.into());
            metadata.insert("resourceVersion".to_owned(), version.to_string().into());
            if let Some(namespace) = namespace {
                metadata.insert("namespace".to_owned(), namespace.into());
            }
            let text = event.to_string();
            state.written.push(event);
            Ok(("201 Created", text))
        }
        ("PATCH", Some(name)) => {
            state.version += 1;
            let version = state.version;
            let found = state.written.iter_mut().rev().find(|event| {
                let metadata = &event["metadata"];
                metadata["name"] == name && namespace.is_none_or(|ns| metadata["namespace"] == ns)
            });
            let event = found.ok_or_else(|| Failure::not_found(Resource::Event, name))?;
            merge(event, value);
            event["metadata"]["resourceVersion"] = version.to_string().into();
            Ok(("200 OK", event.to_string()))
        }
        _ => Err(Failure::wrong_method()),
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Map::new().into();
    }
    if let Some(target) = target.as_object_mut() {
        for (name, value) in patch {
            if value.is_null() {
                target.remove(&name);
            } else {
                merge(target.entry(name).or_insert(Value::Null), value);
            }
        }
    }
}
