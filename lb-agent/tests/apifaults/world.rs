// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sets of objects, what the tables must hold for them, and the ways from one set to another.
//!
//! **Invariant:** a world has only objects that an API server would take; the scenarios' others are
//! left out. The anchor's objects are in every world and never change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use lb_agent::cli::table_text;
use lb_agent::model::snapshot::{Object, Update};
use lb_agent::model::tables::{FamilyTables, TableContent, protocol_name, socket};
use lb_agent::plan::ids::{IdLimits, Ids};
use lb_agent::plan::node::PlanOptions;
use lb_agent::reconcile::{Reconciler, Settings};
use lb_agent::source::manifests::{self, Severity};
use lb_agent::tables::Memory;
use lb_common::abi::{List, SlotKey};
use lb_lab::{ApiServer, Resource};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// The name of this node.
pub(crate) const NODE: &str = "node-a";

/// Which object: resource, namespace and name.
pub(crate) type Id = (Resource, String, String);

/// Frontends, and the backends that each leads to, in words.
pub(crate) type View = BTreeSet<String>;

/// Objects as they are sent, and as the source of manifests reads them.
#[derive(Clone, Debug, Default)]
pub(crate) struct World(BTreeMap<Id, (Value, Option<Object>)>);

/// What the tables must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// The tables without ids.
    pub(crate) text: String,
    pub(crate) view: View,
}

/// A change of one object.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Apply(Value),
    Delete(Id),
}

pub(crate) fn settings() -> Settings {
    Settings {
        node_name: NODE.to_owned(),
        options: PlanOptions::default(),
        id_limits: IdLimits::default(),
    }
}

impl World {
    pub(crate) fn of(values: impl IntoIterator<Item = Value>) -> Self {
        let mut world = Self::default();
        for value in values {
            world.put(value);
        }
        world
    }

    pub(crate) fn put(&mut self, value: Value) {
        let value = complete(value).unwrap();
        let (object, problem) = read(&value);
        assert!(!problem, "{value} is as an API server would take it");
        self.0.insert(id(&value), (value, object));
    }

    pub(crate) fn take(&mut self, step: &Step) {
        match step {
            Step::Apply(value) => self.put(value.clone()),
            Step::Delete(id) => drop(self.0.remove(id)),
        }
    }

    pub(crate) fn get(&self, id: &Id) -> Option<&Value> {
        self.0.get(id).map(|(value, _)| value)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Value> {
        self.0.values().map(|(value, _)| value)
    }

    /// Puts all objects on a server, also those that are there already.
    pub(crate) fn serve(&self, server: &ApiServer) {
        for value in self.values() {
            server.apply(value.clone()).unwrap();
        }
    }

    /// What one list of all the objects leads to.
    pub(crate) fn reference(&self) -> Reference {
        let objects = self.0.values().filter_map(|(_, object)| object.clone());
        let mut reconciler = Reconciler::restore(settings(), &TableContent::default(), 1);
        let mut tables = Memory::default();
        reconciler.receive(Update::reset(objects.collect()));
        reconciler.sync(&mut tables);
        assert!(!reconciler.is_pending());
        Reference {
            text: text(tables.content(), reconciler.ids()),
            view: view(tables.content()),
        }
    }

    /// The steps to another world: what comes first, then what goes.
    pub(crate) fn steps_to(&self, other: &Self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (id, (value, _)) in &other.0 {
            if self.get(id) != Some(value) {
                steps.push(Step::Apply(value.clone()));
            }
        }
        let gone = self.0.keys().filter(|id| !other.0.contains_key(*id));
        steps.extend(gone.cloned().map(Step::Delete));
        steps
    }

    /// What every state on the way has, however far each kind is ahead of the others.
    pub(crate) fn common(&self, steps: &[Step]) -> View {
        let of = |resource| -> Vec<&Step> {
            let all = steps.iter();
            all.filter(|step| step.resource() == resource).collect()
        };
        let kinds = [Resource::Service, Resource::EndpointSlice, Resource::Node].map(of);
        let mut common = self.reference().view;
        for services in 0..=kinds[0].len() {
            for slices in 0..=kinds[1].len() {
                for nodes in 0..=kinds[2].len() {
                    let mut world = self.clone();
                    for (kind, count) in kinds.iter().zip([services, slices, nodes]) {
                        kind[..count].iter().for_each(|step| world.take(step));
                    }
                    let there = world.reference().view;
                    common.retain(|entry| there.contains(entry));
                }
            }
        }
        common
    }
}

impl Step {
    fn resource(&self) -> Resource {
        match self {
            Self::Apply(value) => id(value).0,
            Self::Delete(id) => id.0,
        }
    }

    pub(crate) fn carry_out(&self, server: &ApiServer) {
        match self {
            Self::Apply(value) => drop(server.apply(value.clone()).unwrap()),
            Self::Delete((resource, namespace, name)) => {
                server.delete(*resource, namespace, name).unwrap();
            }
        }
    }
}

/// Which object a complete value is.
pub(crate) fn id(value: &Value) -> Id {
    let resource = resource(value).unwrap();
    let member = |name: &str| value["metadata"][name].as_str().unwrap_or("").to_owned();
    (resource, member("namespace"), member("name"))
}

fn resource(value: &Value) -> Option<Resource> {
    let kind = value["kind"].as_str()?;
    let all = [Resource::Service, Resource::EndpointSlice, Resource::Node];
    all.into_iter().find(|resource| resource.kind() == kind)
}

/// Adds what every API server adds; none for what it does not have.
fn complete(mut value: Value) -> Option<Value> {
    let resource = resource(&value)?;
    let name = value["metadata"]["name"].as_str()?.to_owned();
    let version = resource.api_version();
    if value["apiVersion"].as_str().unwrap_or(version) != version {
        return None;
    }
    value["apiVersion"] = version.into();
    let metadata = value["metadata"].as_object_mut()?;
    let mut add = |name: &str, value: &str| {
        metadata
            .entry(name)
            .or_insert_with(|| value.to_owned().into());
    };
    if resource != Resource::Node {
        add("namespace", "default");
    }
    add("uid", &format!("{}-{name}", resource.plural()));
    add("creationTimestamp", "2026-01-01T00:00:00Z");
    Some(value)
}

/// Reads one object by the source of manifests; true if something is wrong with it.
fn read(value: &Value) -> (Option<Object>, bool) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("object.json"), value.to_string()).unwrap();
    let (objects, problems) = manifests::load(folder.path()).unwrap();
    let wrong = problems.iter().any(|p| p.severity == Severity::Error);
    (objects.into_iter().next(), wrong)
}

/// The tables as text, without what depends on the order of arrival: ids and slots.
pub(crate) fn text(content: &TableContent, ids: &Ids) -> String {
    let mut whole = String::new();
    for frontend in table_text(content, ids) {
        frontend.write_to(&mut whole);
    }
    let mut blocks: Vec<Vec<String>> = Vec::new();
    for line in whole.lines() {
        let indented = line.starts_with(' ');
        let ours = |word: &&str| {
            let of_ids = ["slot", "local slot", "backend", "service "];
            !of_ids.iter().any(|start| word.starts_with(start))
        };
        let kept: Vec<&str> = line.split("  ").filter(ours).collect();
        let kept = kept.join("  ");
        match blocks.last_mut() {
            Some(block) if indented => block.push(kept),
            _ => blocks.push(vec![kept]),
        }
    }
    for block in &mut blocks {
        block[1..].sort();
    }
    blocks.concat().join("\n")
}

/// What clients can reach.
pub(crate) fn view(content: &TableContent) -> View {
    let mut view = View::new();
    family(content, &content.v4, &mut view);
    family(content, &content.v6, &mut view);
    view
}

fn family<A: Ord + Copy + Into<IpAddr>>(
    content: &TableContent,
    tables: &FamilyTables<A>,
    view: &mut View,
) {
    for (key, value) in &tables.frontends {
        let protocol = protocol_name(key.proto);
        let frontend = format!("{} {protocol}", socket(key.address.into(), key.port));
        let lists = [
            (List::Cluster, value.cluster_count),
            (List::Local, value.local_count),
        ];
        for (list, count) in lists {
            for slot in 0..count {
                let id = content.slots[&SlotKey::new(value.service, list, slot)];
                let backend = &tables.backends[&id];
                let address = socket(backend.address.into(), backend.port);
                // A policy that changes is switched by the frontend, after both lists.
                view.insert(format!("{frontend} {list:?} -> {address}"));
            }
        }
        view.insert(frontend);
    }
}

pub(crate) fn service(name: &str, ip: &str) -> Value {
    json!({
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP",
            "ports": [{"port": 80, "protocol": "TCP"}]},
    })
}

/// The slice `NAME-1` with these addresses.
pub(crate) fn slice(name: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    json!({
        "kind": "EndpointSlice",
        "metadata": {"name": format!("{name}-1"),
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

pub(crate) fn node(zone: &str) -> Value {
    json!({"kind": "Node", "metadata": {"name": NODE,
        "labels": {"topology.kubernetes.io/zone": zone}}, "spec": {}})
}

/// The objects that are in every world.
pub(crate) fn anchor() -> World {
    World::of([
        service("anchor", "10.0.99.1"),
        slice("anchor", &["10.244.99.1", "10.244.99.2"]),
        service("tide", "10.0.99.2"),
        slice("tide", &["10.244.98.1", "10.244.98.2"]),
    ])
}

/// Each scenario as a world, with the anchor; one slice of it differs from world to world.
pub(crate) fn scenarios() -> Vec<(String, World)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "yaml"));
    paths.sort();
    assert!(paths.len() >= 15, "the scenarios are there");
    let world = |(number, path): (usize, &std::path::PathBuf)| {
        let mut world = anchor();
        let moved = format!("10.244.98.{}", 2 + number % 3);
        world.put(slice("tide", &["10.244.98.1", &moved]));
        for value in documents(&fs::read_to_string(path).unwrap()) {
            world.put_new(value);
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, world)
    };
    paths.iter().enumerate().map(world).collect()
}

impl World {
    /// Puts an object if an API server has such, and would take it, and has none of the name.
    fn put_new(&mut self, value: Value) {
        if let Some(value) = complete(value)
            && let (object, false) = read(&value)
        {
            self.0.entry(id(&value)).or_insert((value, object));
        }
    }
}

/// The objects of a file; documents that are no YAML are left out.
fn documents(text: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for part in text.split("\n---") {
        let document = serde_yaml_ng::Deserializer::from_str(part);
        let Ok(mut value) = Value::deserialize(document) else {
            continue;
        };
        let kind = value["kind"].as_str().unwrap_or_default().to_owned();
        let Some(of) = kind.strip_suffix("List") else {
            found.push(value);
            continue;
        };
        for mut item in value["items"].as_array_mut().unwrap().drain(..) {
            if item.get("kind").is_none() {
                item["kind"] = of.into();
            }
            found.push(item);
        }
    }
    found
}
