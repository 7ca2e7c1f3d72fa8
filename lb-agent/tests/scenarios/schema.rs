// SPDX-License-Identifier: MIT OR Apache-2.0
//! As much of JSON Schema as `lb-agent/plan.schema.json` uses.
//!
//! **Invariant:** a keyword that is not known here is a failure, so nothing in the schema goes
//! unchecked.

use serde_json::Value;

/// Every place of `value` that `schema` does not allow, in words; `root` holds the definitions.
pub(crate) fn violations(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |what: String| found.push(format!("{at}: {what}"));
    let mut deeper = Vec::new();
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" => {}
            "$ref" => {
                let target = rule.as_str().unwrap().strip_prefix('#').unwrap();
                let target = root.pointer(target).expect("the definition is there");
                deeper.extend(violations(root, target, value, at));
            }
            "type" => {
                let one = std::slice::from_ref(rule);
                let types = rule.as_array().map_or(one, Vec::as_slice);
                if !types.iter().any(|t| is_of(value, t.as_str().unwrap())) {
                    say(format!("{value} is no {rule}"));
                }
            }
            "enum" => {
                if !rule.as_array().unwrap().contains(value) {
                    say(format!("{value} is none of {rule}"));
                }
            }
            "minimum" | "maximum" => {
                let (limit, is_minimum) = (rule.as_i64().unwrap(), keyword == "minimum");
                let number = value.as_i64();
                if number.is_some_and(|n| if is_minimum { n < limit } else { n > limit }) {
                    say(format!("{value} breaks the {keyword} {rule}"));
                }
            }
            "minLength" => {
                let length = value.as_str().map(|text| text.chars().count() as u64);
                if length.is_some_and(|length| length < rule.as_u64().unwrap()) {
                    say(format!("{value} is too short"));
                }
            }
            "pattern" => {
                // The only one: two parts around one slash.
                assert_eq!(rule, "^[^/]+/[^/]+$");
                let parts = value
                    .as_str()
                    .map(|text| text.split('/').collect::<Vec<_>>());
                if parts.is_some_and(|p| p.len() != 2 || p.contains(&"")) {
                    say(format!("{value} is not a/b"));
                }
            }
            "minItems" => {
                let items = value.as_array().map(Vec::len);
                if items.is_some_and(|n| (n as u64) < rule.as_u64().unwrap()) {
                    say("too few items".to_owned());
                }
            }
            "uniqueItems" => {
                let items = value.as_array().map_or(&[][..], Vec::as_slice);
                if (1..items.len()).any(|n| items[..n].contains(&items[n])) {
                    say("an item is there twice".to_owned());
                }
            }
            "items" => {
                for (number, item) in value.as_array().into_iter().flatten().enumerate() {
                    deeper.extend(violations(root, rule, item, &format!("{at}[{number}]")));
                }
            }
            "required" => {
                for name in rule.as_array().unwrap() {
                    if value.get(name.as_str().unwrap()).is_none() {
                        say(format!("{name} is missing"));
                    }
                }
            }
            "additionalProperties" => {
                assert_eq!(rule, false, "the schema is closed");
                for name in value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, _)| name)
                {
                    if schema["properties"].get(name).is_none() {
                        say(format!("{name} is not in the schema"));
                    }
                }
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        deeper.extend(violations(root, rule, value, &format!("{at}.{name}")));
                    }
                }
            }
            other => panic!("the keyword {other} is not checked"),
        }
    }
    found.extend(deeper);
    found
}

fn is_of(value: &Value, kind: &str) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the type {other} is not checked"),
    }
}
