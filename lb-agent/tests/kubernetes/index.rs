// SPDX-License-Identifier: MIT OR Apache-2.0
//! A list of one kind replaces what is known of that kind, a list of everything all of it.

use std::collections::BTreeSet;

use lb_agent::model::endpoint::{EndpointSlice, SliceKey};
use lb_agent::model::service::{IpFamily, Node, Service, ServiceKey};
use lb_agent::model::snapshot::{Change, Invalid, Kind, Object, ObjectRef, Update};
use lb_agent::source::index::Index;

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

fn slice(name: &str, service: &str) -> Object {
    Object::EndpointSlice(EndpointSlice {
        triggered_micros: None,
        key: SliceKey {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        },
        service: Some(key(service)),
        family: IpFamily::V4,
        skipped: false,
        names: false,
        ports: Vec::new(),
        endpoints: Vec::new(),
        rejected: Vec::new(),
        ignored: Vec::new(),
    })
}

fn node(zone: &str) -> Object {
    Object::Node(Node {
        name: "this-node".to_owned(),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        zone: Some(zone.to_owned()),
        leaving: false,
    })
}

fn invalid(object: ObjectRef) -> Invalid {
    Invalid {
        object,
        service: None,
        message: "it is odd".to_owned(),
    }
}

fn relist(kind: Kind, objects: Vec<Object>, invalid: Vec<Invalid>) -> Update {
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
    index.update(Update::reset(objects));

    let unchanged = relist(Kind::EndpointSlices, slices.to_vec(), Vec::new());
    assert_eq!(index.update(unchanged), keys(&[]));
    let next = vec![slice("a-1", "a"), slice("d-1", "d")];
    let kept = vec![invalid(slices[1].reference())];
    let update = relist(Kind::EndpointSlices, next.clone(), kept);
    let dirty = index.update(update.clone());
    assert_eq!(dirty, keys(&["b", "c", "d"]), "b has something to say");
    assert_eq!(index.update(update), keys(&[]), "the same once more");
    let dirty = index.update(relist(Kind::EndpointSlices, next, Vec::new()));
    assert_eq!(dirty, keys(&["b"]), "it was still there");
    assert_eq!(index.invalid_len(), 0);

    assert_eq!(index.zone(), Some("east"), "Nodes are another kind");
    index.update(relist(Kind::Nodes, Vec::new(), Vec::new()));
    assert_eq!(index.zone(), None);
}

#[test]
fn a_slice_that_can_be_read_again_takes_its_warning_with_it() {
    let mut index = Index::new("this-node");
    let slices = vec![slice("a-1", "a"), slice("b-1", "b")];
    index.update(Update::reset(slices.clone()));
    let bad = vec![invalid(slices[0].reference())];
    index.update(relist(Kind::EndpointSlices, slices[1..].to_vec(), bad));
    assert_eq!(index.invalid_len(), 1);
    let dirty = index.update(relist(Kind::EndpointSlices, slices, Vec::new()));
    assert_eq!(dirty, keys(&["a"]), "nothing else has changed");
    assert_eq!(index.invalid_len(), 0);
}

#[test]
fn a_list_of_everything_keeps_what_cannot_be_read_and_nothing_else() {
    let mut index = Index::new("this-node");
    let slices = [slice("a-1", "a"), slice("b-1", "b"), slice("c-1", "c")];
    let mut objects = slices.to_vec();
    objects.push(node("east"));
    index.update(Update::reset(objects));

    let known = |index: &Index| {
        let strays = index
            .stray_slices()
            .map(|(slice, _)| slice.key.name.clone());
        strays.collect::<Vec<_>>().join(" ")
    };
    let never_seen = slice("d-1", "d").reference();
    let bad = [slices[0].reference(), node("").reference(), never_seen];
    index.update(Update::Reset {
        objects: vec![slices[1].clone()],
        invalid: bad.map(invalid).to_vec(),
    });
    assert_eq!(known(&index), "a-1 b-1");
    assert_eq!(index.zone(), Some("east"));
    assert_eq!(index.invalid_len(), 3);

    // It could be read when it was listed, and no longer afterwards: the list is newer.
    index.update(Update::Reset {
        objects: vec![node("west")],
        invalid: vec![invalid(node("").reference())],
    });
    assert_eq!((known(&index).as_str(), index.zone()), ("", Some("west")));
    assert_eq!(index.invalid_len(), 1);
}

#[test]
fn a_slice_that_was_never_read_concerns_the_service_that_it_names() {
    let mut index = Index::new("this-node");
    let services = ["a", "b"].map(|name| {
        Object::Service(Service {
            key: key(name),
            ..Service::default()
        })
    });
    index.update(Update::reset(services.to_vec()));
    let unread = |index: &Index, name| index.snapshot(&key(name)).unwrap().unread;
    let says = |service| {
        Change::Invalid(Invalid {
            service: Some(key(service)),
            ..invalid(slice("a-1", "").reference())
        })
    };
    let dirty = index.update(Update::Changes(vec![says("a")]));
    assert_eq!(dirty, keys(&["a"]));
    assert_eq!(unread(&index, "a"), ["EndpointSlice a-1: it is odd"]);
    assert_eq!(index.update(Update::Changes(vec![says("a")])), keys(&[]));

    let dirty = index.update(Update::Changes(vec![says("b")]));
    assert_eq!(dirty, keys(&["a", "b"]), "it names another one");
    assert!(unread(&index, "a").is_empty());
    let good = Change::Apply(slice("a-1", "a"));
    let dirty = index.update(Update::Changes(vec![good]));
    assert_eq!(dirty, keys(&["a", "b"]));
    assert!(unread(&index, "b").is_empty());

    // Now there is a good state, of which its Service is told by the other warning.
    index.update(Update::Changes(vec![says("a")]));
    let snapshot = index.snapshot(&key("a")).unwrap();
    assert_eq!((snapshot.invalid.len(), snapshot.unread.len()), (1, 0));
    index.update(Update::Changes(vec![says("b")]));
    assert_eq!(unread(&index, "b").len(), 1, "none that is for b");
    let gone = Change::Delete(slice("a-1", "").reference());
    let dirty = index.update(Update::Changes(vec![gone]));
    assert_eq!(dirty, keys(&["a", "b"]));
    assert!(unread(&index, "b").is_empty());
    assert_eq!(index.invalid_len(), 0);
}

#[test]
fn a_slice_of_names_is_no_reason_to_ignore_classic_endpoints() {
    let Object::EndpointSlice(mut names) = slice("a-1", "a") else {
        panic!("it is a slice");
    };
    names.names = true;
    let mut index = Index::new("this-node");
    let Object::EndpointSlice(classic) = slice("a", "a") else {
        panic!("it is a slice");
    };
    let service = Service {
        key: key("a"),
        ..Service::default()
    };
    index.update(Update::reset(vec![
        Object::Service(service),
        Object::Endpoints(key("a"), vec![classic.clone()]),
        Object::EndpointSlice(names),
    ]));
    let snapshot = index.snapshot(&key("a")).unwrap();
    assert!(!snapshot.endpoints_ignored && snapshot.slices.contains(&&classic));
    index.update(Update::Changes(vec![Change::Apply(slice("a-2", "a"))]));
    let snapshot = index.snapshot(&key("a")).unwrap();
    assert!(snapshot.endpoints_ignored && !snapshot.slices.contains(&&classic));
}

#[test]
fn a_node_that_leaves_has_nothing_planned_anew() {
    let mut index = Index::new("this-node");
    let service = Object::Service(Service {
        key: key("a"),
        ..Service::default()
    });
    index.update(Update::reset(vec![service, node("east")]));
    let leaves = |zone: &str, leaving: bool| {
        let Object::Node(node) = node(zone) else {
            unreachable!("it is one");
        };
        let node = Node { leaving, ..node };
        Update::Changes(vec![Change::Apply(Object::Node(node))])
    };
    assert_eq!(index.update(leaves("east", true)), keys(&[]));
    assert!(index.node().is_some_and(|node| node.leaving));
    assert_eq!(index.update(leaves("west", true)), keys(&["a"]));
}
