// SPDX-License-Identifier: MIT OR Apache-2.0
//! Holds the JSON of the verbs that look at a node against `lb-agent/inspect.schema.json`.
//!
//! **Invariant:** the schema is closed: a field that it does not know is a failure.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

#[path = "../../tests/scenarios/schema.rs"]
mod schema;

fn root() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("inspect.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What `shown`, the JSON of `verb`, breaks of the schema.
pub(super) fn broken(verb: &str, shown: &impl Serialize) -> Vec<String> {
    let root = root();
    let shown = serde_json::to_value(shown).unwrap();
    schema::violations(&root, &root["$defs"][verb], &shown, verb)
}

#[test]
fn every_field_of_the_schema_has_a_description() {
    for (name, definition) in root()["$defs"].as_object().unwrap() {
        assert!(definition.get("description").is_some(), "{name}");
        for (field, rule) in definition["properties"].as_object().into_iter().flatten() {
            assert!(rule.get("description").is_some(), "{name}.{field}");
        }
    }
}

#[test]
fn a_field_that_the_schema_does_not_know_is_noticed() {
    let wrong = serde_json::json!({"established": 1, "halfOpen": "2", "other": 0});
    assert_eq!(
        broken("flows", &wrong),
        [
            "flows: other is not in the schema",
            "flows.halfOpen: \"2\" is no \"integer\"",
        ]
    );
}
