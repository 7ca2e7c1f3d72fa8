// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last known objects, and which Services a change touches.
//!
//! Every call answers with the dirty Services; a change of a slice costs what that slice costs.
//! **Invariant:** an update that changes nothing makes nothing dirty, and `reset` is one step: no
//! half of it can be seen.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::endpoint::{EndpointSlice, SliceKey};
use crate::model::pod::{Namespace, Pod, PodKey, PodRules};
use crate::model::service::{Node, Service, ServiceKey};
use crate::model::snapshot::{Change, Invalid, Kind, Object, ObjectRef, ServiceSnapshot, Update};

/// All objects of a source.
#[derive(Debug, Default)]
pub struct Index {
    node_name: String,
    services: BTreeMap<ServiceKey, Service>,
    slices: BTreeMap<SliceKey, EndpointSlice>,
    slices_of: BTreeMap<ServiceKey, BTreeSet<SliceKey>>,
    endpoints: BTreeMap<ServiceKey, Vec<EndpointSlice>>,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<PodKey, Pod>,
    namespaces: BTreeMap<String, Namespace>,
    /// What `take_pod_rules` gives may have changed.
    pods_changed: bool,
    /// Kinds about pods that were listed each by itself.
    listed_apart: BTreeSet<Kind>,
    /// Objects that are there and cannot be read.
    invalid: BTreeMap<ObjectRef, Invalid>,
    /// Slices among them, by the Service that they say to be for now.
    invalid_slices_of: BTreeMap<ServiceKey, BTreeSet<SliceKey>>,
}

impl Index {
    /// An empty index for the node `node_name`, whose Node object decides about zones.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            ..Self::default()
        }
    }

    /// Takes an update in and says which Services must be planned again.
    pub fn update(&mut self, update: Update) -> BTreeSet<ServiceKey> {
        match update {
            Update::Reset { objects, invalid } => self.reset(objects, &invalid),
            Update::Partial { objects, .. } => objects
                .into_iter()
                .flat_map(|object| self.apply(object))
                .collect(),
            Update::Relist {
                kind,
                objects,
                invalid,
            } => self.relist(kind, objects, &invalid),
            Update::Complete => BTreeSet::new(),
            Update::Changes(changes) => changes
                .into_iter()
                .flat_map(|change| match change {
                    Change::Apply(object) => self.apply(object),
                    Change::Delete(reference) => self.delete(&reference),
                    Change::Invalid(invalid) => self.note_invalid(&invalid),
                })
                .collect(),
        }
    }

    /// Replaces everything, but for the objects that cannot be read.
    fn reset(&mut self, objects: Vec<Object>, invalid: &[Invalid]) -> BTreeSet<ServiceKey> {
        let mut before = std::mem::replace(self, Self::new(self.node_name.clone()));
        self.pods_changed = true;
        self.listed_apart = std::mem::take(&mut before.listed_apart);
        // What can be read of an object before it could no longer be is newer than what was known.
        let kept: Vec<Object> = invalid
            .iter()
            .filter_map(|invalid| before.take(&invalid.object))
            .collect();
        for object in kept.into_iter().chain(objects) {
            self.apply(object);
        }
        for invalid in invalid {
            self.note_invalid(invalid);
        }
        let mut dirty: BTreeSet<_> = before.services.into_keys().collect();
        dirty.extend(self.services.keys().cloned());
        dirty
    }

    /// Replaces everything of one kind, but for the objects that cannot be read.
    fn relist(
        &mut self,
        kind: Kind,
        objects: Vec<Object>,
        invalid: &[Invalid],
    ) -> BTreeSet<ServiceKey> {
        let mut gone: BTreeSet<ObjectRef> = match kind {
            Kind::Services => self
                .services
                .keys()
                .cloned()
                .map(ObjectRef::Service)
                .collect(),
            Kind::EndpointSlices => self
                .slices
                .keys()
                .cloned()
                .map(ObjectRef::EndpointSlice)
                .collect(),
            Kind::Nodes => self.nodes.keys().cloned().map(ObjectRef::Node).collect(),
            Kind::Pods => self.pods.keys().cloned().map(ObjectRef::Pod).collect(),
            Kind::Namespaces => {
                let names = self.namespaces.keys().cloned();
                names.map(ObjectRef::Namespace).collect()
            }
        };
        if kind.is_about_pods() {
            self.pods_changed = true;
            self.listed_apart.insert(kind);
        }
        let invalid_before = self.invalid.keys();
        gone.extend(invalid_before.filter(|r| r.kind() == Some(kind)).cloned());
        let mut dirty = BTreeSet::new();
        for object in objects {
            gone.remove(&object.reference());
            dirty.extend(self.apply(object));
        }
        for invalid in invalid {
            gone.remove(&invalid.object);
            dirty.extend(self.note_invalid(invalid));
        }
        for reference in gone {
            dirty.extend(self.delete(&reference));
        }
        dirty
    }

    /// Takes note of an object that cannot be read; the Service of a slice gets a warning.
    fn note_invalid(&mut self, invalid: &Invalid) -> BTreeSet<ServiceKey> {
        if self.invalid.get(&invalid.object) == Some(invalid) {
            return BTreeSet::new();
        }
        let before = self.forget_invalid(&invalid.object);
        let mut dirty: BTreeSet<ServiceKey> = before.into_iter().collect();
        if let ObjectRef::EndpointSlice(key) = &invalid.object {
            dirty.extend(self.slices.get(key).and_then(|slice| slice.service.clone()));
            if let Some(service) = &invalid.service {
                let slices = self.invalid_slices_of.entry(service.clone()).or_default();
                slices.insert(key.clone());
                dirty.insert(service.clone());
            }
        }
        self.invalid.insert(invalid.object.clone(), invalid.clone());
        dirty
    }

    /// An object can be read, or is gone. Gives the Service that it said to be for.
    fn forget_invalid(&mut self, reference: &ObjectRef) -> Option<ServiceKey> {
        let service = self.invalid.remove(reference)?.service?;
        if let ObjectRef::EndpointSlice(key) = reference
            && let Some(slices) = self.invalid_slices_of.get_mut(&service)
        {
            slices.remove(key);
            if slices.is_empty() {
                self.invalid_slices_of.remove(&service);
            }
        }
        Some(service)
    }

    /// What is wrong with slices that say to be for the Service `key` and of which no good state is
    /// known that is for it.
    fn unread_slices(&self, key: &ServiceKey) -> Vec<String> {
        let Some(slices) = self.invalid_slices_of.get(key) else {
            return Vec::new();
        };
        let known = self.slices_of.get(key);
        let unread = slices.iter();
        let unread = unread.filter(|slice| known.is_none_or(|known| !known.contains(slice)));
        unread
            .filter_map(|slice| self.invalid_slice(slice))
            .collect()
    }

    /// What is wrong with the slice `key`, if it cannot be read now.
    fn invalid_slice(&self, key: &SliceKey) -> Option<String> {
        if self.invalid.is_empty() {
            return None;
        }
        let invalid = self.invalid.get(&ObjectRef::EndpointSlice(key.clone()))?;
        Some(format!("EndpointSlice {}: {}", key.name, invalid.message))
    }

    /// Slices that serve no Service, each with the reason.
    pub fn stray_slices(&self) -> impl Iterator<Item = (&EndpointSlice, String)> {
        let strays = self.slices.values();
        strays.filter_map(|slice| {
            let reason = match &slice.service {
                None => "names no Service".to_owned(),
                Some(key) if !self.services.contains_key(key) => {
                    format!("is for Service {key}, which is not there")
                }
                Some(_) => return None,
            };
            Some((slice, reason))
        })
    }

    /// Number of objects that are there and cannot be read.
    pub fn invalid_len(&self) -> usize {
        self.invalid.len()
    }

    fn apply(&mut self, object: Object) -> BTreeSet<ServiceKey> {
        if self.invalid.is_empty() {
            return self.put(object, false);
        }
        let reference = object.reference();
        let healed = self.invalid.contains_key(&reference);
        let service = self.forget_invalid(&reference);
        let mut dirty = self.put(object, healed);
        dirty.extend(service);
        dirty
    }

    fn put(&mut self, object: Object, healed: bool) -> BTreeSet<ServiceKey> {
        match object {
            Object::Service(service) => {
                let key = service.key.clone();
                let changed = self.services.get(&key) != Some(&service);
                self.services.insert(key.clone(), service);
                changed.then_some(key).into_iter().collect()
            }
            Object::EndpointSlice(slice) => {
                if self.slices.get(&slice.key) == Some(&slice) {
                    // Its Service has a warning to lose.
                    return slice.service.filter(|_| healed).into_iter().collect();
                }
                if let Some(known) = self.slices.get_mut(&slice.key)
                    && known.service == slice.service
                {
                    // The usual case: nothing but the endpoints has changed.
                    let service = slice.service.clone();
                    *known = slice;
                    return service.into_iter().collect();
                }
                let mut dirty = self.remove_slice(&slice.key);
                if let Some(service) = &slice.service {
                    self.slices_of
                        .entry(service.clone())
                        .or_default()
                        .insert(slice.key.clone());
                    dirty.insert(service.clone());
                }
                self.slices.insert(slice.key.clone(), slice);
                dirty
            }
            Object::Endpoints(key, slices) => {
                let changed = self.endpoints.get(&key) != Some(&slices);
                self.endpoints.insert(key.clone(), slices);
                changed.then_some(key).into_iter().collect()
            }
            Object::Node(node) => {
                let name = node.name.clone();
                let before = self.nodes.insert(name.clone(), node);
                self.all_if_node_changed(&name, before.as_ref())
            }
            Object::Pod(pod) => {
                self.pods_changed |= self.pods.get(&pod.key) != Some(&pod);
                self.pods.insert(pod.key.clone(), pod);
                BTreeSet::new()
            }
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                self.pods_changed |= self.namespaces.get(&name) != Some(&namespace);
                self.namespaces.insert(name, namespace);
                BTreeSet::new()
            }
        }
    }

    fn delete(&mut self, reference: &ObjectRef) -> BTreeSet<ServiceKey> {
        let said = self.forget_invalid(reference);
        let mut dirty = self.remove(reference);
        dirty.extend(said);
        dirty
    }

    fn remove(&mut self, reference: &ObjectRef) -> BTreeSet<ServiceKey> {
        match reference {
            ObjectRef::Service(key) => self
                .services
                .remove(key)
                .map(|service| service.key)
                .into_iter()
                .collect(),
            ObjectRef::EndpointSlice(key) => self.remove_slice(key),
            ObjectRef::Endpoints(key) => self
                .endpoints
                .remove(key)
                .map(|_| key.clone())
                .into_iter()
                .collect(),
            ObjectRef::Node(name) => {
                let before = self.nodes.remove(name);
                self.all_if_node_changed(name, before.as_ref())
            }
            ObjectRef::Pod(key) => {
                self.pods_changed |= self.pods.remove(key).is_some();
                BTreeSet::new()
            }
            ObjectRef::Namespace(name) => {
                self.pods_changed |= self.namespaces.remove(name).is_some();
                BTreeSet::new()
            }
        }
    }

    /// Takes an object out, to keep it.
    fn take(&mut self, reference: &ObjectRef) -> Option<Object> {
        match reference {
            ObjectRef::Service(key) => self.services.remove(key).map(Object::Service),
            ObjectRef::EndpointSlice(key) => self.slices.remove(key).map(Object::EndpointSlice),
            ObjectRef::Endpoints(key) => {
                let slices = self.endpoints.remove(key);
                slices.map(|slices| Object::Endpoints(key.clone(), slices))
            }
            ObjectRef::Node(name) => self.nodes.remove(name).map(Object::Node),
            ObjectRef::Pod(key) => self.pods.remove(key).map(Object::Pod),
            ObjectRef::Namespace(name) => {
                let namespace = self.namespaces.remove(name);
                namespace.map(Object::Namespace)
            }
        }
    }

    fn remove_slice(&mut self, key: &SliceKey) -> BTreeSet<ServiceKey> {
        let Some(service) = self.slices.remove(key).and_then(|slice| slice.service) else {
            return BTreeSet::new();
        };
        if let Some(keys) = self.slices_of.get_mut(&service) {
            keys.remove(key);
            if keys.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        BTreeSet::from([service])
    }

    /// All Services, if the Node `name` is this one and was `before`, which plans otherwise.
    fn all_if_node_changed(&self, name: &str, before: Option<&Node>) -> BTreeSet<ServiceKey> {
        let same = match (self.node(), before) {
            (Some(now), Some(before)) => now.plans_like(before),
            (now, before) => now.is_none() && before.is_none(),
        };
        if name != self.node_name || same {
            return BTreeSet::new();
        }
        self.services.keys().cloned().collect()
    }

    /// Whose sockets are served, if that may have changed since the last call. Where pods and
    /// Namespaces are listed `apart` from the rest, nothing before both were.
    pub fn take_pod_rules(&mut self, apart: bool) -> Option<PodRules> {
        let kinds = [Kind::Pods, Kind::Namespaces];
        if apart && !kinds.iter().all(|kind| self.listed_apart.contains(kind)) {
            return None;
        }
        let rules = || PodRules::new(self.pods.values(), &self.namespaces);
        std::mem::take(&mut self.pods_changed).then(rules)
    }

    /// All objects that Services depend on, as they were when they could last be read.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        let services = self.services.values().cloned().map(Object::Service);
        let slices = self.slices.values().cloned().map(Object::EndpointSlice);
        let endpoints = self.endpoints.iter();
        let endpoints = endpoints.map(|(key, all)| Object::Endpoints(key.clone(), all.clone()));
        let nodes = self.nodes.values().cloned().map(Object::Node);
        services.chain(slices).chain(endpoints).chain(nodes)
    }

    /// Objects that are there and cannot be read.
    pub fn invalid(&self) -> impl Iterator<Item = &ObjectRef> {
        self.invalid.keys()
    }

    /// This node's object, once it is known.
    pub fn node(&self) -> Option<&Node> {
        self.nodes.get(&self.node_name)
    }

    /// The Services, in the order of their names.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The name of this node.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The zone of this node, once its Node object is known.
    pub fn zone(&self) -> Option<&str> {
        self.node()?.zone.as_deref()
    }

    /// Number of Services.
    pub fn services_len(&self) -> usize {
        self.services.len()
    }

    /// One Service, or none if there is none of that name.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// One Service with its endpoints, or none if there is no such Service.
    pub fn snapshot(&self, key: &ServiceKey) -> Option<ServiceSnapshot<'_>> {
        let service = self.services.get(key)?;
        let mut slices: Vec<_> = self
            .slices_of
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|slice| self.slices.get(slice))
            .collect();
        let classic = self.endpoints.get(key);
        // The control plane mirrors classic Endpoints into slices; both together count twice.
        let only_names = slices.iter().all(|slice| slice.names);
        let endpoints_ignored = classic.is_some() && !only_names;
        if only_names {
            slices.extend(classic.into_iter().flatten());
        }
        let invalid = slices
            .iter()
            .filter_map(|slice| self.invalid_slice(&slice.key));
        Some(ServiceSnapshot {
            service,
            invalid: invalid.collect(),
            unread: self.unread_slices(key),
            slices,
            endpoints_ignored,
        })
    }
}
