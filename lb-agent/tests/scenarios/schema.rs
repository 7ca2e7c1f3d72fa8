// SPDX-License-Identifier: MIT OR Apache-2.0
//! As much of JSON Schema as `lb-agent/plan.schema.json` and `inspect.schema.json` use.
//!
//! **Invariant:** a keyword that is not known here is a failure, so nothing in the schema goes
//! unchecked.

use serde_json::Value;

/// Every place of `value` that `schema` does not allow, in words; `root` holds the definitions.
pub(crate) fn violations(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    let items = value.as_array().into_iter().flatten();
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" => {}
            "$ref" => {
                let target = rule.as_str().unwrap().strip_prefix('#').unwrap();
                found.extend(violations(root, root.pointer(target).unwrap(), value, at));
            }
            "items" => {
                for (number, item) in items.clone().enumerate() {
                    found.extend(violations(root, rule, item, &format!("{at}[{number}]")));
                }
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    let value = value.get(name).into_iter();
                    let at = format!("{at}.{name}");
                    found.extend(value.flat_map(|value| violations(root, rule, value, &at)));
                }
            }
            "additionalProperties" => {
                assert_eq!(rule, false, "the schema is closed");
                let names = value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, _)| name);
                let unknown = names.filter(|name| schema["properties"].get(name).is_none());
                found.extend(unknown.map(|name| format!("{at}: {name} is not in the schema")));
            }
            "required" => {
                let names = rule.as_array().unwrap().iter();
                let missing = names.filter(|name| value.get(name.as_str().unwrap()).is_none());
                found.extend(missing.map(|name| format!("{at}: {name} is missing")));
            }
            keyword => {
                let what = broken(keyword, rule, value);
                found.extend(what.map(|what| format!("{at}: {what}")));
            }
        }
    }
    found
}

/// Why `value` breaks a rule that concerns itself alone.
fn broken(keyword: &str, rule: &Value, value: &Value) -> Option<String> {
    let limit = || rule.as_i64().unwrap();
    let count = |length: usize| i64::try_from(length).unwrap();
    let (is_broken, what) = match keyword {
        "type" => {
            let types = rule
                .as_array()
                .map_or(std::slice::from_ref(rule), Vec::as_slice);
            let fits = types.iter().any(|t| is_of(value, t.as_str().unwrap()));
            (!fits, format!("{value} is no {rule}"))
        }
        "enum" => {
            let known = rule.as_array().unwrap().contains(value);
            (!known, format!("{value} is none of {rule}"))
        }
        "minimum" => {
            let less = value.as_i64().is_some_and(|n| n < limit());
            (less, format!("{value} breaks the minimum {rule}"))
        }
        "maximum" => {
            let more = value.as_i64().is_some_and(|n| n > limit());
            (more, format!("{value} breaks the maximum {rule}"))
        }
        "minLength" => {
            let text = value.as_str();
            let short = text.is_some_and(|text| count(text.chars().count()) < limit());
            (short, format!("{value} is too short"))
        }
        "minItems" => {
            let items = value.as_array();
            let few = items.is_some_and(|items| count(items.len()) < limit());
            (few, "too few items".to_owned())
        }
        "pattern" => {
            // The only one: two parts around one slash.
            assert_eq!(rule, "^[^/]+/[^/]+$");
            let parts: Option<Vec<_>> = value.as_str().map(|text| text.split('/').collect());
            let other = parts.is_some_and(|p| p.len() != 2 || p.contains(&""));
            (other, format!("{value} is not a/b"))
        }
        "uniqueItems" => {
            let items = value.as_array().map_or(&[][..], Vec::as_slice);
            let twice = (1..items.len()).any(|n| items[..n].contains(&items[n]));
            (twice, "an item is there twice".to_owned())
        }
        other => panic!("the keyword {other} is not checked"),
    };
    is_broken.then_some(what)
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
