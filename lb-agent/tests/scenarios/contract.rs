// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `lb-agent plan` promises to programs and people, asked of the program itself.
//!
//! It runs as a user without any privilege wherever the tests may choose one.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use lb_agent::model::snapshot::Object;
use lb_agent::model::tables::socket;
use serde_json::Value;
use tempfile::TempDir;

use crate::scenario::{Scenario, scenarios};
use crate::schema::violations;

/// The user and the group that own nothing.
const NOBODY: u32 = 65_534;

/// The program at a place that everybody can reach, and folders of manifests beside it.
struct Program {
    folder: TempDir,
}

impl Program {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path());
        fs::copy(
            env!("CARGO_BIN_EXE_lb-agent"),
            folder.path().join("lb-agent"),
        )
        .unwrap();
        Self { folder }
    }

    /// A folder with these files.
    fn manifests(&self, name: &str, files: &[(String, String)]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).unwrap();
        open(&path);
        for (name, text) in files {
            fs::write(path.join(name), text).unwrap();
            fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o644)).unwrap();
        }
        path
    }

    /// What `lb-agent plan` writes for `manifests`.
    fn plan(&self, manifests: &Path, flags: &[&str]) -> String {
        let mut command = Command::new(self.folder.path().join("lb-agent"));
        command.args(["plan", "--node", "node-a", "--manifests"]);
        command.arg(manifests).args(flags).current_dir("/");
        if nix::unistd::geteuid().is_root() {
            // Leaving root takes every capability away.
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", manifests.display());
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, manifests: &Path, flags: &[&str]) -> Value {
        let all = [&["-o", "json"], flags].concat();
        serde_json::from_str(&self.plan(manifests, &all)).unwrap()
    }
}

fn open(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("plan.schema.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The flags of each scenario, and its text.
fn told(scenario: &Scenario) -> (Vec<String>, String) {
    let text = fs::read_to_string(&scenario.path).unwrap();
    (scenario.flags.clone(), text)
}

fn is_sorted(list: &Value, fields: &[&str]) -> bool {
    let key = |item: &Value| -> Vec<String> {
        let of = |field: &&str| match &item[*field] {
            Value::String(text) => text.clone(),
            Value::Number(number) => format!("{number:>9}"),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => String::new(),
        };
        fields.iter().map(of).collect()
    };
    list.as_array().unwrap().is_sorted_by_key(key)
}

#[test]
fn every_plan_keeps_to_the_schema_and_is_sorted() {
    let (program, schema) = (Program::new(), schema());
    for scenario in scenarios() {
        let (flags, text) = told(scenario);
        let folder = program.manifests(&scenario.name, &[("all.yaml".to_owned(), text)]);
        let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let plain = program.json(&folder, &flags);
        flags.push("--explain");
        let mut explained = program.json(&folder, &flags);
        for plan in [&plain, &explained] {
            let broken = violations(&schema, &schema, plan, "plan");
            assert_eq!(broken, [""; 0], "{}", scenario.name);
            assert!(is_sorted(&plan["frontends"], &["service", "portName"]));
            assert!(is_sorted(&plan["healthChecks"], &["service"]));
            assert!(is_sorted(&plan["warnings"], &["object", "message"]));
            for frontend in plan["frontends"].as_array().unwrap() {
                let forwards = frontend["verdict"] == "forward";
                let backends = frontend["backends"].as_array().unwrap();
                assert_eq!(forwards, !backends.is_empty(), "{}", scenario.name);
            }
        }
        let left_out = explained.as_object_mut().unwrap().remove("leftOut");
        let fields = ["service", "portName", "address"];
        assert!(is_sorted(&left_out.unwrap(), &fields), "{}", scenario.name);
        assert_eq!(plain, explained, "{}: the rest is the same", scenario.name);
    }
}

#[test]
fn a_plan_that_breaks_the_schema_is_noticed() {
    let schema = schema();
    let wrong: Value = serde_json::from_str(
        r#"{"frontends": [{"service": "web", "portName": "", "kind": "Ingress", "address": "10.0.0.1",
            "port": 0, "protocol": "TCP", "scopes": ["pod", "pod"], "verdict": "forward",
            "snat": "never", "affinitySeconds": 86401, "sourceRanges": ["10.0.0.0"],
            "backends": [{"address": "10.244.1.1", "port": "80", "node": "", "local": true, "id": 1}]}],
            "healthChecks": []}"#,
    )
    .unwrap();
    let mut found = violations(&schema, &schema, &wrong, "plan");
    found.sort();
    let expected = [
        "plan.frontends[0].affinitySeconds: 86401 breaks the maximum 86400",
        "plan.frontends[0].backends[0].port: \"80\" is no \"integer\"",
        "plan.frontends[0].backends[0]: \"terminating\" is missing",
        "plan.frontends[0].backends[0]: id is not in the schema",
        "plan.frontends[0].kind: \"Ingress\" is none of [\"ClusterIP\",\"NodePort\",\"ExternalIP\",\"LoadBalancer\"]",
        "plan.frontends[0].port: 0 breaks the minimum 1",
        "plan.frontends[0].scopes: an item is there twice",
        "plan.frontends[0].service: \"web\" is not a/b",
        "plan.frontends[0].sourceRanges[0]: \"10.0.0.0\" is not a/b",
        "plan: \"warnings\" is missing",
    ];
    assert_eq!(found, expected);
}

#[test]
fn every_field_of_the_schema_has_a_description() {
    fn check(schema: &Value, at: &str) {
        for (name, rule) in schema["properties"].as_object().into_iter().flatten() {
            let told = rule.get("description").is_some() || rule["$ref"] == "#/$defs/service";
            assert!(told, "{at}.{name}");
        }
    }
    let schema = schema();
    check(&schema, "plan");
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        check(definition, name);
    }
}

/// Documents of a scenario; none if they quarrel, since then the file that comes first wins.
fn documents(scenario: &Scenario) -> Option<Vec<String>> {
    let (_, text) = told(scenario);
    let whole = scenario.problems().is_empty();
    whole.then(|| text.split("\n---\n").map(|d| format!("{d}\n")).collect())
}

#[test]
fn the_plan_does_not_depend_on_files_and_their_order() {
    let program = Program::new();
    for scenario in scenarios() {
        let Some(documents) = documents(scenario) else {
            continue;
        };
        let (flags, text) = told(scenario);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let flags = [&["-o", "json", "--explain"], &flags[..]].concat();
        let in_files = |folder: &str, number: &dyn Fn(usize) -> usize| {
            let files = documents.iter().enumerate();
            let files = files.map(|(at, text)| (format!("{:03}.yaml", number(at)), text.clone()));
            let files: Vec<_> = files.collect();
            let folder = program.manifests(&format!("{}-{folder}", scenario.name), &files);
            program.plan(&folder, &flags)
        };
        let whole = program.manifests(&scenario.name, &[("all.yaml".to_owned(), text)]);
        let expected = program.plan(&whole, &flags);
        assert_eq!(in_files("forward", &|at| at), expected, "{}", scenario.name);
        let backward = in_files("backward", &|at| 500 - at);
        assert_eq!(backward, expected, "{}", scenario.name);
    }
}

#[test]
fn the_text_aligns() {
    let program = Program::new();
    for scenario in scenarios() {
        let (flags, text) = told(scenario);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let folder = program.manifests(&scenario.name, &[("all.yaml".to_owned(), text)]);
        let text = program.plan(&folder, &[&["--explain"], &flags[..]].concat());
        for section in text.split("\n\n") {
            let mut lines = section.lines();
            let heads = lines.next().unwrap();
            // A column begins two spaces after the one before it; no cell crosses that gap.
            let starts = heads.match_indices("  ").map(|(at, _)| at + 2);
            let starts = starts.filter(|at| heads[*at..].starts_with(|c| c != ' '));
            for start in starts {
                for line in lines.clone().filter(|line| line.len() >= start) {
                    assert!(
                        line.is_char_boundary(start) && line[..start].ends_with("  "),
                        "{}: column {start} of {line:?}",
                        scenario.name
                    );
                }
            }
            assert!(section.lines().all(|line| line.trim_end() == line));
        }
    }
}

/// Each endpoint of the scenario's slices that belong to a Service of it, as `service address`.
fn endpoints(scenario: &Scenario) -> BTreeSet<(String, String)> {
    let services: BTreeSet<String> = scenario
        .objects
        .iter()
        .filter_map(|object| match object {
            Object::Service(service) => Some(service.key.to_string()),
            Object::EndpointSlice(_)
            | Object::Endpoints(..)
            | Object::Node(_)
            | Object::Pod(_)
            | Object::Namespace(_) => None,
        })
        .collect();
    let mut found = BTreeSet::new();
    for object in &scenario.objects {
        let Object::EndpointSlice(slice) = object else {
            continue;
        };
        let Some(service) = slice.service.as_ref().map(ToString::to_string) else {
            continue;
        };
        if !services.contains(&service) {
            continue;
        }
        let addresses = slice.endpoints.iter().map(|e| e.address.to_string());
        let rejected = slice.rejected.iter().map(|r| r.address.clone());
        found.extend(addresses.chain(rejected).map(|a| (service.clone(), a)));
    }
    found
}

#[test]
fn every_endpoint_is_a_backend_or_is_explained() {
    for scenario in scenarios() {
        let plan = lb_agent::cli::PlanText::new(&scenario.listed().reconciler, true);
        let plan = serde_json::to_value(&plan).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut named = BTreeSet::new();
        for frontend in plan["frontends"].as_array().unwrap() {
            let service = text(&frontend["service"]);
            let backends = frontend["backends"].as_array().unwrap();
            named.extend(
                backends
                    .iter()
                    .map(|b| (service.clone(), text(&b["address"]))),
            );
        }
        let left_out = plan["leftOut"].as_array().unwrap();
        let pair = |l: &Value| (text(&l["service"]), text(&l["address"]));
        named.extend(left_out.iter().map(pair));
        let lost: Vec<_> = endpoints(scenario).difference(&named).cloned().collect();
        assert_eq!(lost, [], "{}", scenario.name);
    }
}

#[test]
fn the_plan_and_the_tables_name_the_same_backends() {
    for scenario in scenarios() {
        let bench = scenario.listed();
        let plan = serde_json::to_value(lb_agent::cli::PlanText::new(&bench.reconciler, false));
        let mut planned = BTreeSet::new();
        for frontend in plan.unwrap()["frontends"].as_array().unwrap() {
            for backend in frontend["backends"].as_array().unwrap() {
                let address: IpAddr = backend["address"].as_str().unwrap().parse().unwrap();
                let port = u16::try_from(backend["port"].as_u64().unwrap()).unwrap();
                planned.insert(socket(address, port));
            }
        }
        let text = bench.text();
        let slots = text.lines().filter(|line| line.contains("slot "));
        let written = slots.map(|line| line.split("  ").nth(2).unwrap().to_owned());
        assert_eq!(planned, written.collect(), "{}", scenario.name);
    }
}
