// SPDX-License-Identifier: MIT OR Apache-2.0
//! `config` of the chart's values against the flags of `lb-agent run`, and its version against ours.
//!
//! **Invariant:** the flags are read from lb-agent/config.schema.json, which the agent's own tests
//! hold against its flags; nothing is built or run here.
//! Read next: rendering.rs.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Chart, Checks};
use crate::process::root;

/// The schema of the file that `--config` names.
const AGENT_SCHEMA: &str = "lb-agent/config.schema.json";

/// Every check of this file.
pub(super) fn compare(chart: &Chart, checks: &mut Checks) -> Result<()> {
    let agent = json(&root().join(AGENT_SCHEMA))?;
    let flags = &agent["properties"];
    let values = &yaml(chart, "values.yaml")?["config"];
    let schema = json(&chart.file("values.schema.json"))?;
    let properties = &schema["properties"]["config"]["properties"];
    for (what, found) in [
        ("values.yaml, config", values),
        ("values.schema.json, config", properties),
    ] {
        checks.note(difference(&names(flags)?, &names(found)?).map(|d| format!("{what}: {d}")));
    }
    for (name, flag) in flags.as_object().into_iter().flatten() {
        let (wanted, is) = (words(flag, &agent), words(&properties[name], &schema));
        checks.note((wanted != is).then(|| {
            format!("values.schema.json, config.{name} allows {is:?}, the agent {wanted:?}")
        }));
    }
    let version = &yaml(chart, "Chart.yaml")?["appVersion"];
    let manifest = fs::read_to_string(root().join("Cargo.toml")).context("read Cargo.toml")?;
    let ours = manifest
        .lines()
        .find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    checks.note((version.as_str() != ours).then(|| {
        format!("Chart.yaml: appVersion is {version}, the workspace's version is {ours:?}")
    }));
    Ok(())
}

fn json(path: &std::path::Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
}

fn yaml(chart: &Chart, file: &str) -> Result<Value> {
    let said = chart.python(&["json", file])?;
    if !said.success {
        bail!("check.py json {file} failed: {}", said.error.trim());
    }
    serde_json::from_str(&said.out).context("read what check.py says")
}

/// The names of the fields of a mapping, of which there must be some.
fn names(mapping: &Value) -> Result<BTreeSet<&str>> {
    let mapping = mapping.as_object().filter(|mapping| !mapping.is_empty());
    let mapping = mapping.context("there is no mapping where flags or values were expected")?;
    Ok(mapping.keys().map(String::as_str).collect())
}

fn difference(wanted: &BTreeSet<&str>, found: &BTreeSet<&str>) -> Option<String> {
    let missing: Vec<_> = wanted.difference(found).copied().collect();
    let unknown: Vec<_> = found.difference(wanted).copied().collect();
    (wanted != found).then(|| {
        format!("missing are the flags {missing:?}, and no flags of lb-agent run are {unknown:?}")
    })
}

/// The words that a property may have, if only words; null, which leaves a value out, not counted.
fn words(property: &Value, whole: &Value) -> BTreeSet<String> {
    let target = property["$ref"]
        .as_str()
        .and_then(|path| whole.pointer(path.trim_start_matches('#')));
    let mut found = BTreeSet::new();
    let listed = property["enum"].as_array().into_iter().flatten();
    let alone = property.get("const");
    found.extend(
        listed
            .chain(alone)
            .filter_map(Value::as_str)
            .map(str::to_owned),
    );
    for key in ["oneOf", "anyOf"] {
        for part in property[key].as_array().into_iter().flatten() {
            found.extend(words(part, whole));
        }
    }
    found.extend(target.map(|t| words(t, whole)).into_iter().flatten());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_flag_without_a_value_and_a_value_without_a_flag_are_told() {
        let set = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(difference(&set(&["a"]), &set(&["a"])), None);
        let told = difference(&set(&["a", "b"]), &set(&["a", "c"])).unwrap();
        assert!(
            told.contains("[\"b\"]") && told.contains("[\"c\"]"),
            "{told}"
        );
    }

    #[test]
    fn words_are_found_however_a_schema_lists_them() {
        let whole = json!({"$defs": {"mode": {"enum": ["on", "off"]}}});
        let both: BTreeSet<_> = ["off".to_owned(), "on".to_owned()].into();
        for property in [
            json!({"enum": ["on", "off", null]}),
            json!({"oneOf": [{"const": "on"}, {"const": "off"}]}),
            json!({"anyOf": [{"$ref": "#/$defs/mode"}, {"type": "null"}]}),
        ] {
            assert_eq!(words(&property, &whole), both, "{property}");
        }
        assert!(words(&json!({"type": "string"}), &whole).is_empty());
    }
}
