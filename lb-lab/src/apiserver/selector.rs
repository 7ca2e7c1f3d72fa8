// SPDX-License-Identifier: MIT OR Apache-2.0
//! Label and field selectors, and the filter that they make together with a path.
//!
//! **Invariant:** as in the API server, a missing label satisfies `!=` and `notin`.
//! Read next: `query`, which reads them; `watch`, which turns a change of the match into an event.

use super::object::Object;

/// Requirements that must all hold.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Missing,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selector {
    /// Reads `!key`, `key`, `key=v`, `key==v`, `key!=v`, `key in (a,b)`, `key notin (a,b)`, with commas.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parts = split(text)
            .into_iter()
            .map(str::trim)
            .filter(|part| !part.is_empty());
        parts.map(requirement).collect::<Result<_, _>>().map(Self)
    }

    /// The keys that it names.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|requirement| requirement.key.as_str())
    }

    /// Whether every test is for a value, as field selectors need.
    pub(super) fn is_by_value(&self) -> bool {
        let by_value =
            |requirement: &Requirement| matches!(requirement.test, Test::In(_) | Test::NotIn(_));
        self.0.iter().all(by_value)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn matches<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = value(&requirement.key);
            let among = |values: &[String]| value.is_some_and(|v| values.iter().any(|w| w == v));
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Missing => value.is_none(),
                Test::In(values) => among(values),
                Test::NotIn(values) => !among(values),
            }
        })
    }
}

/// The parts between commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let one = |value: &str| vec![value.trim().to_owned()];
    let (key, test) = if let Some(key) = part.strip_prefix('!') {
        (key, Test::Missing)
    } else if let Some((key, value)) = part.split_once("!=") {
        (key, Test::NotIn(one(value)))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (key, Test::In(one(value)))
    } else if let Some((key, values)) = set(part, " notin ") {
        (key, Test::NotIn(values))
    } else if let Some((key, values)) = set(part, " in ") {
        (key, Test::In(values))
    } else {
        (part, Test::Exists)
    };
    let key = key.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if key.is_empty() || !key.chars().all(allowed) {
        return Err(format!("unable to parse requirement: {part:?}"));
    }
    Ok(Requirement {
        key: key.to_owned(),
        test,
    })
}

fn set<'a>(part: &'a str, word: &str) -> Option<(&'a str, Vec<String>)> {
    let (key, values) = part.split_once(word)?;
    let values = values.trim().strip_prefix('(')?.strip_suffix(')')?;
    let values = values.split(',').map(|value| value.trim().to_owned());
    Some((key, values.collect()))
}

/// Which objects a request is about.
#[derive(Debug, Default)]
pub(super) struct Filter {
    pub(super) namespace: Option<String>,
    pub(super) labels: Selector,
    pub(super) fields: Selector,
}

impl Filter {
    pub(super) fn matches(&self, object: &Object) -> bool {
        let namespace = self.namespace.as_deref();
        namespace.is_none_or(|namespace| namespace == object.namespace())
            && self.labels.matches(|key| object.label(key))
            && self.fields.matches(|key| Some(object.field(key)))
    }

    /// Whether selectors take part: then a list does not say how many objects remain.
    pub(super) const fn selects(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(selector: &str, labels: &[(&'static str, &'static str)]) -> bool {
        let selector = Selector::parse(selector).unwrap();
        selector.matches(|key| {
            let found = labels.iter().find(|(own, _)| *own == key);
            found.map(|(_, value)| *value)
        })
    }

    #[test]
    fn every_operator_does_what_the_api_server_does() {
        let labels = [("app", "web"), ("tier", "")];
        for (selector, expected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("app=web", true),
            ("app==web,tier=", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (db, web),!x", true),
            ("app notin (db,web)", false),
            ("other notin (db)", true),
            ("other in (db)", false),
        ] {
            assert_eq!(holds(selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn a_selector_without_sense_is_refused() {
        assert!(Selector::parse("a b").is_err());
        assert!(Selector::parse("=x").is_err());
        assert!(!Selector::parse("a").unwrap().is_by_value());
    }
}
