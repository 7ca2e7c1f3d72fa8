// SPDX-License-Identifier: MIT OR Apache-2.0
//! The schema of the file of `--config`, made of the same description as everything else.
//!
//! **Invariant:** `lb-agent/config.schema.json` is what this says; a test compares them.

use serde_json::{Map, Value, json};

use super::describe::{FILE, Kind, Setting, settings};

/// The schema as text, with a line at its end.
pub fn config_schema() -> String {
    let mut properties = Map::new();
    for setting in settings().iter().filter(|setting| setting.flag != FILE) {
        properties.insert(setting.key.clone(), property(setting));
    }
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "lb-agent run --config FILE",
        "description": "Each key is a flag of `lb-agent run` in camelCase. Generated from the flags.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    // A value of JSON can always be written.
    let text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text + "\n"
}

fn property(setting: &Setting) -> Value {
    let mut one = Map::new();
    match &setting.kind {
        Kind::Boolean => {
            one.insert("type".to_owned(), json!("boolean"));
        }
        Kind::Integer => {
            let (least, most) = setting.bounds();
            one.insert("type".to_owned(), json!("integer"));
            one.insert("minimum".to_owned(), json!(least));
            one.extend(most.map(|most| ("maximum".to_owned(), json!(most))));
        }
        Kind::Word(words) => {
            one.insert("type".to_owned(), json!("string"));
            one.insert("enum".to_owned(), json!(words));
        }
        Kind::Text => {
            one.insert("type".to_owned(), json!("string"));
        }
    }
    let default: Vec<_> = setting
        .default
        .iter()
        .map(|text| typed(setting, text))
        .collect();
    let mut whole = Map::from_iter([("description".to_owned(), json!(setting.help))]);
    if setting.several {
        whole.insert("type".to_owned(), json!("array"));
        whole.insert("items".to_owned(), Value::Object(one));
        if !default.is_empty() {
            whole.insert("default".to_owned(), Value::Array(default));
        }
    } else {
        whole.extend(one);
        whole.extend(
            default
                .into_iter()
                .next()
                .map(|d| ("default".to_owned(), d)),
        );
    }
    Value::Object(whole)
}

/// A default as the file would have it.
fn typed(setting: &Setting, text: &str) -> Value {
    let read = match setting.kind {
        Kind::Boolean | Kind::Integer => serde_json::from_str(text).ok(),
        Kind::Word(_) | Kind::Text => None,
    };
    read.unwrap_or_else(|| json!(text))
}
