// SPDX-License-Identifier: MIT OR Apache-2.0
//! One file of manifests: split into documents, each read on its own.
//!
//! Documents are split by their text, at lines that begin with `---`, so that one which is no YAML
//! at all leaves its neighbours readable. A `List` is unpacked into its items.
//! **Invariant:** no I/O in here; the text comes in, objects and problems come out.

use std::fmt;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::snapshot::Object;
use crate::source::convert::{self, FieldError};

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something is left out on purpose.
    Note,
    /// An object that was meant could not be read.
    Error,
}

/// Something in a file that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The name of the file in its folder.
    pub file: String,
    /// Which document of the file, counting from 1; none if it concerns the file as a whole.
    pub document: Option<usize>,
    /// The line that the document begins at, or the one that cannot be read.
    pub line: Option<usize>,
    /// The object, as far as it can be told.
    pub object: Option<String>,
    /// The path of the field, if it is about one.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// How much it matters.
    pub severity: Severity,
}

impl Problem {
    /// What it is about: the object, else the file.
    pub fn subject(&self) -> String {
        let file = || format!("file {}", self.file);
        self.object.clone().unwrap_or_else(file)
    }

    /// What is wrong, with the field if it is about one.
    pub fn detail(&self) -> String {
        match &self.field {
            Some(field) => format!("{field}: {}", self.message),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        match (self.document, self.line) {
            (Some(document), Some(line)) => write!(f, "document {document} (line {line}): ")?,
            (Some(document), None) => write!(f, "document {document}: ")?,
            (None, _) => {}
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// An object and the document that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The object.
    pub(super) object: Object,
    /// Which document of the file, counting from 1.
    pub(super) document: usize,
    /// The line that the document begins at.
    pub(super) line: usize,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// The objects, in order.
    pub(super) objects: Vec<Found>,
    /// What could not be used.
    pub(super) problems: Vec<Problem>,
}

/// Reads the text of `file`; JSON if its name says so, YAML otherwise.
pub(super) fn read(file: &str, text: &str) -> Contents {
    let mut contents = Contents::default();
    // The byte order mark of editors on other systems is no part of the first document.
    let text = text.trim_start_matches('\u{feff}');
    let is_json = file.rsplit('.').next() == Some("json");
    let documents = if is_json {
        vec![(1, text.to_owned())]
    } else {
        split(text)
    };
    for (at, (line, text)) in documents.iter().enumerate() {
        let mut reader = Reader {
            file,
            document: at + 1,
            line: *line,
            contents: &mut contents,
        };
        reader.document(text, is_json);
    }
    contents
}

/// The documents of a text, each with the line it begins at, counting from 1.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut documents = Vec::new();
    let mut current = String::new();
    let mut start = 1;
    for (at, line) in text.lines().enumerate() {
        let rest = line
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_whitespace()));
        if let Some(rest) = rest {
            documents.push((start, std::mem::take(&mut current)));
            start = at + 1;
            // Spaces in place of the marker keep the columns of what follows it.
            current.push_str("   ");
            current.push_str(rest);
        } else {
            current.push_str(line);
        }
        current.push('\n');
    }
    documents.push((start, current));
    // What comes before the first marker is a document only if there is something in it.
    documents.retain(|(_, text)| !is_blank(text));
    documents
}

fn is_blank(text: &str) -> bool {
    text.lines()
        .map(str::trim_start)
        .all(|line| line.is_empty() || line.starts_with('#') || line.starts_with("%YAML"))
}

/// True for the beginning of a kind that is read here.
fn is_cut(kind: &str) -> bool {
    const KINDS: [&str; 7] = [
        "Service",
        "Endpoints",
        "EndpointSlice",
        "Node",
        "Pod",
        "Namespace",
        "List",
    ];
    let starts = |known: &str| known.len() > kind.len() && known.starts_with(kind);
    KINDS
        .iter()
        .any(|known| starts(known) || starts(&format!("{known}List")))
}

/// An object of which only the metadata is read.
#[derive(Debug, Deserialize)]
struct Named {
    #[serde(default)]
    metadata: ObjectMeta,
}

struct Reader<'a> {
    file: &'a str,
    document: usize,
    line: usize,
    contents: &'a mut Contents,
}

impl Reader<'_> {
    fn document(&mut self, text: &str, is_json: bool) {
        let parsed: Result<Value, (usize, String)> = if is_json {
            serde_json::from_str(text).map_err(|e| (e.line(), e.to_string()))
        } else {
            serde_yaml_ng::from_str(text)
                .map_err(|e| (e.location().map_or(1, |l| l.line()), e.to_string()))
        };
        match parsed {
            Ok(value) => self.value(value, "", None),
            Err((line, message)) => {
                // The parser counts from the document's first line.
                let line = self.line + line.saturating_sub(1);
                let message = message.split(" at line ").next().unwrap_or_default();
                let kind = if is_json { "JSON" } else { "YAML" };
                let problem = Problem {
                    line: Some(line),
                    ..self.problem(None, None, format!("malformed {kind}: {message}"))
                };
                self.contents.problems.push(problem);
            }
        }
    }

    fn problem(&self, object: Option<String>, field: Option<String>, message: String) -> Problem {
        Problem {
            file: self.file.to_owned(),
            document: Some(self.document),
            line: Some(self.line),
            object,
            field,
            message,
            severity: Severity::Error,
        }
    }

    /// Reads the object at `path` of the document; `inherited` is what a typed list says of its
    /// items, which need not repeat it.
    fn value(&mut self, value: Value, path: &str, inherited: Option<(&str, &str)>) {
        if value.is_null() {
            return;
        }
        let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        let kind = text("kind").or_else(|| inherited.map(|(_, kind)| kind.to_owned()));
        let version =
            text("apiVersion").or_else(|| inherited.map(|(version, _)| version.to_owned()));
        let (Some(kind), Some(version)) = (kind.clone(), version) else {
            let field = if kind.is_none() { "kind" } else { "apiVersion" };
            let message = "missing".to_owned();
            let problem = self.problem(label(&value, kind.as_deref()), join(path, field), message);
            self.contents.problems.push(problem);
            return;
        };
        if let Some(item_kind) = kind.strip_suffix("List") {
            self.list(value, path, (&version, item_kind));
            return;
        }
        let object = label(&value, Some(&kind));
        let result = match (version.as_str(), kind.as_str()) {
            ("v1", "Service") => parse(value, convert::service).map(Object::Service),
            ("v1", "Endpoints") => parse::<core::Endpoints, _>(value, convert::endpoints)
                .map(|(key, slices)| Object::Endpoints(key, slices)),
            ("v1", "Node") => parse(value, convert::node).map(Object::Node),
            ("v1", "Pod") => {
                parse(value, |pod: &Named| convert::pod(&pod.metadata)).map(Object::Pod)
            }
            ("v1", "Namespace") => {
                parse(value, |one: &Named| convert::namespace(&one.metadata)).map(Object::Namespace)
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                parse::<discovery::EndpointSlice, _>(value, convert::endpoint_slice)
                    .map(Object::EndpointSlice)
            }
            (_, "Service" | "Endpoints" | "Node" | "Pod" | "Namespace" | "EndpointSlice") => {
                Err(FieldError {
                    field: "apiVersion".to_owned(),
                    message: format!("unknown version {version:?} of {kind}"),
                })
            }
            // Not one of ours, but the file may end in the middle of the word.
            _ if value.get("metadata").is_none() && is_cut(&kind) => Err(FieldError {
                field: "kind".to_owned(),
                message: format!("unknown kind {kind}"),
            }),
            _ => {
                self.unknown_kind(object, &version, &kind, path);
                return;
            }
        };
        match result {
            Ok(found) => {
                if matches!(&found, Object::EndpointSlice(slice) if slice.names) {
                    let text = "holds names instead of addresses, ignored";
                    self.note(object, text.to_owned());
                }
                self.contents.objects.push(Found {
                    object: found,
                    document: self.document,
                    line: self.line,
                });
            }
            Err(error) => {
                let field = join(path, &error.field);
                let problem = self.problem(object, field, error.message);
                self.contents.problems.push(problem);
            }
        }
    }

    fn list(&mut self, value: Value, path: &str, (version, item_kind): (&str, &str)) {
        let Value::Object(mut fields) = value else {
            return;
        };
        let typed = (!item_kind.is_empty()).then_some((version, item_kind));
        match fields.remove("items") {
            Some(Value::Array(items)) => {
                for (at, item) in items.into_iter().enumerate() {
                    let path = join(path, &format!("items[{at}]")).unwrap_or_default();
                    self.value(item, &path, typed);
                }
            }
            // No items would be an empty list; none at all is what a list that was cut has left.
            other => {
                let object = Some(format!("{item_kind}List"));
                let message = if other.is_none_or(|items| items.is_null()) {
                    "missing"
                } else {
                    "not a list"
                };
                let problem = self.problem(object, join(path, "items"), message.to_owned());
                self.contents.problems.push(problem);
            }
        }
    }

    /// A kind that is not read is no error: manifests of an application hold many.
    fn unknown_kind(&mut self, object: Option<String>, version: &str, kind: &str, path: &str) {
        let message = format!(
            "unknown kind {kind:?} of {version:?}, ignored (known: Service, EndpointSlice, \
             Endpoints, Node, List)"
        );
        let problem = Problem {
            severity: Severity::Note,
            ..self.problem(object, join(path, "kind"), message)
        };
        self.contents.problems.push(problem);
    }

    fn note(&mut self, object: Option<String>, message: String) {
        let problem = Problem {
            severity: Severity::Note,
            ..self.problem(object, None, message)
        };
        self.contents.problems.push(problem);
    }
}

/// Turns a value into a Kubernetes object and that into one of the model.
fn parse<K: DeserializeOwned, M>(
    value: Value,
    convert: impl Fn(&K) -> Result<M, FieldError>,
) -> Result<M, FieldError> {
    let object: K = serde_path_to_error::deserialize(value).map_err(|error| FieldError {
        field: error.path().to_string(),
        message: error.inner().to_string(),
    })?;
    convert(&object)
}

fn join(path: &str, field: &str) -> Option<String> {
    match (path.is_empty(), field.is_empty() || field == ".") {
        (true, true) => None,
        (true, false) => Some(field.to_owned()),
        (false, true) => Some(path.to_owned()),
        (false, false) => Some(format!("{path}.{field}")),
    }
}

/// `Service default/web`, as far as it can be told.
fn label(value: &Value, kind: Option<&str>) -> Option<String> {
    let kind = kind?;
    let meta = |field: &str| {
        value
            .pointer(&format!("/metadata/{field}"))
            .and_then(Value::as_str)
    };
    Some(match (meta("name"), kind) {
        (None, _) => kind.to_owned(),
        (Some(name), "Node") => format!("Node {name}"),
        (Some(name), _) => format!("{kind} {}/{name}", meta("namespace").unwrap_or("default")),
    })
}
