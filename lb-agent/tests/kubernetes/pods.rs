// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pods and Namespaces: asked for on demand, waited for by nobody, and what they say of sockets.

use lb_agent::model::pod::{Namespace, Pod, PodKey, PodRules};
use lb_agent::model::snapshot::{Change, Kind, Object, ObjectRef, Update};
use lb_agent::source::index::Index;
use lb_agent::source::manifests::parse;

use crate::server::{Reply, Server, line};
use crate::support::{Following, bookmark, event, nothing, words};

/// The metadata of an object, as a server sends it that was asked for no more.
fn metadata(kind: &str, name: &str, version: u32, annotations: &str) -> String {
    let namespace = if kind == "Pod" {
        r#","namespace":"shop""#
    } else {
        ""
    };
    let object = format!(
        r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{{"name":"{name}"{namespace},"uid":"uid-{name}","resourceVersion":"{version}","annotations":{annotations},"labels":{{"app":"a"}}}}}}"#
    );
    event("ADDED", object)
}

const OFF: &str = r#"{"lb-agent/socket-lb":"off","other":"x"}"#;
const STATIC: &str =
    r#"{"kubernetes.io/config.hash":"hash-c","kubernetes.io/config.source":"file"}"#;

fn served(rules: &PodRules, uids: &[&str]) -> Vec<Option<bool>> {
    uids.iter().map(|uid| rules.serves(uid)).collect()
}

#[tokio::test]
async fn pods_are_asked_for_by_their_metadata_and_nothing_waits_for_them() {
    let (pods, reply) = Reply::live();
    let mut late = Some(reply);
    let server = Server::start(move |request| match late.take_if(|_| request.is("pods")) {
        Some(reply) => reply,
        None if request.is("namespaces") => {
            Reply::lines([metadata("Namespace", "shop", 3, "null"), bookmark(9, true)])
        }
        None => nothing(request),
    })
    .await;
    let mut source = Following::with_pods(&server.url).await;
    let mut index = Index::new("this-node");
    // Namespaces may come before or after what Services need; pods are not there yet.
    for _ in 0..2 {
        let update = source.update().await;
        let text = words(&update);
        assert!(
            ["reset", "relist Namespaces namespace-shop"].contains(&text.as_str()),
            "{text}"
        );
        index.update(update);
        assert_eq!(index.take_pod_rules(true), None, "pods are not listed yet");
    }
    pods.send(line(metadata("Pod", "a", 5, "{}"))).unwrap();
    pods.send(line(metadata("Pod", "b", 6, OFF))).unwrap();
    pods.send(line(metadata("Pod", "c", 7, STATIC))).unwrap();
    pods.send(line(bookmark(9, true))).unwrap();
    let update = source.update().await;
    assert_eq!(words(&update), "relist Pods pod-a pod-b pod-c");
    assert!(update.is_about_pods());
    index.update(update);
    let rules = index.take_pod_rules(true).unwrap();
    let uids = ["uid-a", "uid-b", "uid-c", "hash-c"];
    assert_eq!(
        served(&rules, &uids),
        [Some(true), Some(false), None, Some(true)]
    );
    assert_eq!(index.take_pod_rules(true), None, "told already");
    pods.send(line(metadata("Pod", "a", 10, OFF))).unwrap();
    index.update(source.update().await);
    let rules = index.take_pod_rules(true).unwrap();
    assert_eq!(served(&rules, &["uid-a"]), [Some(false)]);
    assert_eq!(
        index.objects().count(),
        0,
        "what is remembered on disk is without them"
    );

    let requests = server.requests();
    let asked = |resource| {
        requests
            .iter()
            .find(|request| request.is(resource))
            .unwrap()
    };
    assert!(asked("pods").has("fieldSelector=spec.nodeName%3Dthis-node"));
    for resource in ["pods", "namespaces"] {
        assert!(asked(resource).accept.contains("as=partialobjectmetadata"));
    }
    assert!(!asked("services").accept.contains("partialobjectmetadata"));
}

#[tokio::test]
async fn nobody_asks_for_pods_without_need_and_a_refusal_leaves_services_alone() {
    let server = Server::start(nothing).await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset");
    source.nothing().await;
    assert_eq!(server.count(|r| r.is("pods") || r.is("namespaces")), 0);

    let server = Server::start(|request| {
        if request.is("pods") || request.is("namespaces") {
            return Reply::status(403, "pods is forbidden");
        }
        nothing(request)
    })
    .await;
    let mut source = Following::with_pods(&server.url).await;
    assert_eq!(source.next().await, "reset");
    source.nothing().await;
    assert!(server.count(|r| r.is("pods")) > 0);
}

fn pod(name: &str, sockets_off: bool) -> Object {
    Object::Pod(Pod {
        key: PodKey {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        },
        uid: name.to_owned(),
        sockets_off,
    })
}

fn shop(sockets_off: bool) -> Object {
    Object::Namespace(Namespace {
        name: "shop".to_owned(),
        sockets_off,
    })
}

#[test]
fn a_change_of_a_pod_or_of_its_namespace_changes_the_rules() {
    let mut index = Index::new("this-node");
    index.update(Update::reset(vec![
        pod("a", false),
        pod("b", true),
        shop(false),
    ]));
    let mut rules = |update| {
        assert!(index.update(update).is_empty(), "no Service depends on it");
        let rules = index.take_pod_rules(false)?;
        Some(served(&rules, &["a", "b"]))
    };
    let changes = |changes| Some(Update::Changes(changes));
    let apply = |object| changes(vec![Change::Apply(object)]).unwrap();
    assert_eq!(rules(Update::Complete), Some(vec![Some(true), Some(false)]));
    assert_eq!(rules(apply(pod("a", false))), None, "the same");
    assert_eq!(
        rules(apply(pod("b", false))),
        Some(vec![Some(true), Some(true)])
    );
    assert_eq!(
        rules(apply(shop(true))),
        Some(vec![Some(false), Some(false)])
    );
    let ObjectRef::Pod(key) = pod("a", false).reference() else {
        panic!("it is a pod")
    };
    let gone = Update::Changes(vec![Change::Delete(ObjectRef::Pod(key))]);
    assert_eq!(rules(gone), Some(vec![None, Some(false)]));
    let relist = Update::Relist {
        kind: Kind::Pods,
        objects: vec![pod("a", false)],
        invalid: Vec::new(),
    };
    assert_eq!(rules(relist), Some(vec![Some(false), None]));
}

#[test]
fn manifests_may_name_pods_and_namespaces() {
    let text = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {lb-agent/socket-lb: 'off'}}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, uid: 1-2}
spec: {containers: [{name: a, image: a}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, annotations: {lb-agent/socket-lb: 'off'}}
---
apiVersion: v1
kind: Pod
metadata: {}
";
    let (objects, problems) = parse("pods.yaml", text);
    let key = |namespace: &str, name: &str| PodKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let a = Pod {
        key: key("shop", "a"),
        uid: "1-2".to_owned(),
        sockets_off: false,
    };
    let b = Pod {
        key: key("default", "b"),
        uid: "b".to_owned(),
        sockets_off: true,
    };
    assert_eq!(objects, [shop(true), Object::Pod(a), Object::Pod(b)]);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].field.as_deref(), Some("metadata.name"));
}
