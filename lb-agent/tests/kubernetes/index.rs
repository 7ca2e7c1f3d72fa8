// SPDX-License-Identifier: MIT OR Apache-2.0
//! A list of one kind replaces what is known of that kind, and nothing else.

use std::collections::BTreeSet;

use lb_agent::model::endpoint::{EndpointSlice, SliceKey};
use lb_agent::model::service::{IpFamily, Node, ServiceKey};
use lb_agent::model::snapshot::{Kind, Object, ObjectRef, Update};
use lb_agent::source::index::Index;

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

fn slice(name: &str, service: &str) -> Object {
    Object::EndpointSlice(EndpointSlice {
        key: SliceKey {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        },
        service: Some(key(service)),
        family: IpFamily::V4,
        skipped: false,
        ports: Vec::new(),
        endpoints: Vec::new(),
        rejected: Vec::new(),
    })
}

fn node(zone: &str) -> Object {
    Object::Node(Node {
        name: "this-node".to_owned(),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        zone: Some(zone.to_owned()),
    })
}

fn relist(kind: Kind, objects: Vec<Object>, invalid: Vec<ObjectRef>) -> Update {
    Update::Relist {
        kind,
        objects,
        invalid,
    }
}

fn keys(names: &[&str]) -> BTreeSet<ServiceKey> {
    names.iter().map(|name| key(name)).collect()
}

#[test]
fn a_list_of_one_kind_touches_what_differs_and_keeps_what_cannot_be_read() {
    let mut index = Index::new("this-node");
    let slices = [slice("a-1", "a"), slice("b-1", "b"), slice("c-1", "c")];
    let mut objects = slices.to_vec();
    objects.push(node("east"));
    index.update(Update::Reset(objects));

    let unchanged = relist(Kind::EndpointSlices, slices.to_vec(), Vec::new());
    assert_eq!(index.update(unchanged), keys(&[]));
    let next = vec![slice("a-1", "a"), slice("d-1", "d")];
    let kept = vec![slices[1].reference()];
    let dirty = index.update(relist(Kind::EndpointSlices, next.clone(), kept));
    assert_eq!(dirty, keys(&["c", "d"]));
    let dirty = index.update(relist(Kind::EndpointSlices, next, Vec::new()));
    assert_eq!(dirty, keys(&["b"]), "it was still there");

    assert_eq!(index.zone(), Some("east"), "Nodes are another kind");
    index.update(relist(Kind::Nodes, Vec::new(), Vec::new()));
    assert_eq!(index.zone(), None);
}
