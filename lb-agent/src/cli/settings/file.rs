// SPDX-License-Identifier: MIT OR Apache-2.0
//! The file of `--config`: one mapping in YAML (or JSON).
//!
//! **Invariant:** what is wrong is told with the file, the line, the key, the value and what is
//! allowed, and nothing of a file is used of which something is wrong.

use std::path::Path;

use serde_yaml_ng::{Mapping, Value};

use super::describe::{FILE, Kind, Setting};

/// Names this much alike may be meant.
const ALIKE: f64 = 0.8;
/// The same of variables, of which others make some too.
pub(super) const VERY_ALIKE: f64 = 0.94;

/// One key of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Which setting, by its place in the list.
    pub(super) setting: usize,
    /// The values as the flag takes them.
    pub(super) values: Vec<String>,
    /// Where the key stands, if that was found.
    pub(super) line: Option<usize>,
}

/// Reads the file at `path`.
pub(super) fn read(path: &Path, settings: &[Setting]) -> Result<Vec<Entry>, String> {
    let at = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("--config {at}: {e}"))?;
    parse(&text, settings).map_err(|(line, wrong)| match line {
        Some(line) => format!("{at}, line {line}: {wrong}"),
        None => format!("{at}: {wrong}"),
    })
}

/// What is wrong, and in which line.
type Wrong = (Option<usize>, String);

fn parse(text: &str, settings: &[Setting]) -> Result<Vec<Entry>, Wrong> {
    // A file of comments says nothing.
    let read = serde_yaml_ng::from_str::<Option<Value>>(text);
    let value = read.map_err(|error| {
        let line = error.location().map(|place| place.line());
        (line, without_place(&error.to_string()))
    })?;
    let mapping = match value {
        None => Mapping::new(),
        Some(Value::Mapping(mapping)) => mapping,
        Some(other) => {
            let wrong = format!("{}; give a mapping such as socketLb: host", written(&other));
            return Err((None, wrong));
        }
    };
    let mut entries = Vec::with_capacity(mapping.len());
    for (key, value) in &mapping {
        let Some(key) = key.as_str() else {
            return Err((None, format!("the key {} is no name", written(key))));
        };
        let line = line_of(text, key);
        let found = settings
            .iter()
            .position(|setting| setting.key == key && setting.flag != FILE);
        let Some(setting) = found else {
            return Err((line, unknown(key, settings)));
        };
        let values = values(&settings[setting], value).map_err(|wrong| (line, wrong))?;
        entries.push(Entry {
            setting,
            values,
            line,
        });
    }
    Ok(entries)
}

/// The parser tells the place twice.
fn without_place(message: &str) -> String {
    let end = message.find(" at line ").unwrap_or(message.len());
    message[..end].to_owned()
}

fn unknown(key: &str, settings: &[Setting]) -> String {
    let keys = settings.iter().map(|setting| setting.key.as_str());
    match nearest(key, keys.filter(|key| *key != FILE), ALIKE) {
        Some(near) => format!("there is no setting {key}; do you mean {near}?"),
        None => format!(
            "there is no setting {key}; `lb-agent run --help` tells all: --socket-lb is socketLb here"
        ),
    }
}

/// The name that is most like this one, if one is so much `alike`.
pub(super) fn nearest<'a>(
    name: &str,
    names: impl Iterator<Item = &'a str>,
    alike: f64,
) -> Option<&'a str> {
    let plain = |name: &str| name.replace(['-', '_'], "").to_lowercase();
    let wanted = plain(name);
    let likeness = names.map(|name| (strsim::jaro_winkler(&wanted, &plain(name)), name));
    let best = likeness.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= alike).then_some(best.1)
}

/// The values as the flag takes them.
fn values(setting: &Setting, value: &Value) -> Result<Vec<String>, String> {
    let key = &setting.key;
    if !setting.several {
        return Ok(vec![scalar(setting, value)?]);
    }
    let Value::Sequence(items) = value else {
        let written = written(value);
        return Err(format!("{key}: {written} is no list; write [{written}]"));
    };
    items.iter().map(|item| scalar(setting, item)).collect()
}

fn scalar(setting: &Setting, value: &Value) -> Result<String, String> {
    let key = &setting.key;
    let wrong = |what: &str| format!("{key}: {} {what}", written(value));
    let text = match (&setting.kind, value) {
        (Kind::Boolean, Value::Bool(value)) => value.to_string(),
        (Kind::Integer, Value::Number(number)) => number.to_string(),
        (Kind::Word(_) | Kind::Text, Value::String(text)) => text.clone(),
        (_, Value::Null) => {
            let allowed = setting.allowed();
            return Err(format!("{key} has no value; {allowed}, or leave it out"));
        }
        (Kind::Text, _) => return Err(wrong("is no text; put it in quotes")),
        (Kind::Word(_), Value::Bool(_) | Value::Number(_)) => {
            let allowed = setting.allowed();
            return Err(wrong(&format!("is no text; {allowed}, in quotes")));
        }
        (Kind::Boolean | Kind::Integer | Kind::Word(_), _) => {
            let allowed = setting.allowed();
            return Err(wrong(&format!("cannot be used; {allowed}")));
        }
    };
    match setting.refuses(&text) {
        Some(allowed) => Err(wrong(&format!("cannot be used; {allowed}"))),
        None => Ok(text),
    }
}

/// A value as a person would find it in the file.
fn written(value: &Value) -> String {
    // JSON quotes texts, and is on one line.
    serde_json::to_string(value).unwrap_or_else(|_| "this value".to_owned())
}

/// The line in which a key of the outermost mapping stands.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let is_key = |line: &str| {
        let line = line.trim_start_matches([' ', '{', ',', '"', '\'']);
        let rest = line.strip_prefix(key);
        rest.is_some_and(|rest| {
            let rest = rest.trim_start_matches(['"', '\'']).trim_start();
            rest.starts_with(':')
        })
    };
    text.lines().position(is_key).map(|number| number + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::describe::settings;

    fn wrong(text: &str) -> String {
        match parse(text, &settings()) {
            Ok(entries) => format!("taken: {entries:?}"),
            Err((Some(line), wrong)) => format!("{line}: {wrong}"),
            Err((None, wrong)) => wrong,
        }
    }

    #[test]
    fn values_come_as_the_flags_take_them() {
        let settings = settings();
        let text = "# mine\nsocketLb: off\nmasqueradeAll: true\nauditInterval: 60\n\
            snatPortRange:\n  - 2000-3000\n  - 5000-6000\nexcludeInterfaces: []\n";
        let entries = parse(text, &settings).unwrap();
        let told: Vec<_> = entries
            .iter()
            .map(|entry| {
                let key = settings[entry.setting].key.as_str();
                (key, entry.values.join(" "), entry.line.unwrap())
            })
            .collect();
        let wanted = [
            ("socketLb", "off", 2),
            ("masqueradeAll", "true", 3),
            ("auditInterval", "60", 4),
            ("snatPortRange", "2000-3000 5000-6000", 5),
            ("excludeInterfaces", "", 8),
        ];
        assert_eq!(
            told,
            wanted.map(|(key, values, line)| (key, values.to_owned(), line))
        );
        assert_eq!(parse("# nothing\n", &settings), Ok(Vec::new()));
        assert_eq!(
            parse("{\"socketLb\": \"all\"}", &settings).unwrap()[0].line,
            Some(1)
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_line_key_value_and_what_is_allowed() {
        for (text, sentence) in [
            (
                "node: a\nsocketLb: hots\n",
                "2: socketLb: \"hots\" cannot be used; give off, host or all",
            ),
            (
                "socketLb: false\n",
                "1: socketLb: false is no text; give off, host or all, in quotes",
            ),
            (
                "masqueradeMarkBit: 32\n",
                "1: masqueradeMarkBit: 32 cannot be used; give a whole number from 0 to 31",
            ),
            (
                "masqueradeAll: \"yes\"\n",
                "1: masqueradeAll: \"yes\" cannot be used; give true or false",
            ),
            (
                "snatPortRange: 2000-3000\n",
                "1: snatPortRange: \"2000-3000\" is no list; write [\"2000-3000\"]",
            ),
            ("node: 12\n", "1: node: 12 is no text; put it in quotes"),
            (
                "\nnode:\n",
                "2: node has no value; give text, or leave it out",
            ),
            (
                "socket-lb: host\n",
                "1: there is no setting socket-lb; do you mean socketLb?",
            ),
            (
                "\n\nkubeConfg: x\n",
                "3: there is no setting kubeConfg; do you mean kubeconfig?",
            ),
            ("- a\n", "[\"a\"]; give a mapping such as socketLb: host"),
        ] {
            assert_eq!(wrong(text), sentence, "{text}");
        }
        let bind = wrong("metricsBindAddress: here\n");
        assert!(
            bind.starts_with("1: metricsBindAddress: \"here\" cannot be used; give an address")
        );
        assert!(wrong("zzz: 1\n").contains("no setting zzz; `lb-agent run --help`"));
        assert!(wrong("config: other.yaml\n").contains("no setting config"));
        assert!(wrong("node: a\nnode: b\n").contains("duplicate entry"));
        assert!(wrong("node: [\n").contains("2: "), "{}", wrong("node: [\n"));
    }
}
