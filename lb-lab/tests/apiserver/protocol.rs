// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lists, single objects, Events, refusals.

use std::net::TcpStream;

use lb_lab::Resource;
use serde_json::json;

use crate::client::{Client, SERVICES, SLICES, STREAM};
use crate::{names, server, service, slice, version};

#[test]
fn a_list_shows_every_object_with_the_version_of_all() {
    let server = server("ba");
    server.apply(slice("c", "10.1.0.1")).unwrap();
    let mut client = Client::new(&server);
    let list = client.get(SERVICES).body;
    assert_eq!(
        (&list["kind"], names(&list).as_str()),
        (&json!("ServiceList"), "ab")
    );
    assert_eq!(version(&list), server.version());
    assert!(version(&list["items"][1]) < version(&list["items"][0]));
    assert_eq!(list["items"][0].get("kind"), None);
    let slices = client.get(SLICES).body;
    assert_eq!(slices["kind"], "EndpointSliceList");
    assert_eq!(version(&slices), version(&list));
    let of_namespace = "/api/v1/namespaces/other/services";
    assert_eq!(names(&client.get(of_namespace).body), "");
}

#[test]
fn pages_show_one_version_whatever_happens_between() {
    let server = server("abcde");
    let mut client = Client::new(&server);
    let first = client.get(&format!("{SERVICES}?limit=2")).body;
    assert_eq!(names(&first), "ab");
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    server.delete(Resource::Service, "default", "c").unwrap();
    server.apply(service("d")).unwrap();
    server.apply(service("cc")).unwrap();
    let page = |client: &mut Client, token: &str| {
        client.get(&format!("{SERVICES}?limit=2&continue={token}"))
    };
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = page(&mut client, token).body;
    assert_eq!(names(&second), "cd");
    assert_eq!(second["metadata"]["remainingItemCount"], 1);
    assert_eq!(version(&second), version(&first));
    assert!(version(&second["items"][1]) <= version(&first));
    let third = page(
        &mut client,
        second["metadata"]["continue"].as_str().unwrap(),
    )
    .body;
    assert_eq!(names(&third), "e");
    assert_eq!(third["metadata"].get("continue"), None);

    server.compact();
    let gone = page(&mut client, token);
    assert_eq!((gone.code, &gone.body["reason"]), (410, &json!("Expired")));
    let token = gone.body["metadata"]["continue"].as_str().unwrap();
    assert_eq!(names(&page(&mut client, token).body), "ccd");
}

#[test]
fn a_version_is_listed_while_it_is_remembered() {
    let server = server("ab");
    let before = server.version();
    server.delete(Resource::Service, "default", "a").unwrap();
    let mut client = Client::new(&server);
    let mut list = |query: String| client.get(&format!("{SERVICES}?{query}"));
    let exact = format!("resourceVersion={before}&resourceVersionMatch=Exact");
    assert_eq!(names(&list(exact.clone()).body), "ab");
    let newer = format!("resourceVersion={before}&resourceVersionMatch=NotOlderThan");
    assert_eq!(names(&list(newer).body), "b");
    // Memory answers whole lists, whatever the limit.
    assert_eq!(
        names(&list("resourceVersion=0&limit=1".to_owned()).body),
        "b"
    );
    let future = list("resourceVersion=999".to_owned());
    assert_eq!(future.code, 504);
    let cause = &future.body["details"]["causes"][0]["reason"];
    assert_eq!(cause, "ResourceVersionTooLarge");
    server.compact();
    assert_eq!(list(exact).code, 410);
}

#[test]
fn selectors_choose_by_labels_and_fields() {
    let server = server("abc");
    let mut headless = service("h");
    headless["spec"]["clusterIP"] = "None".into();
    headless["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    server.apply(headless).unwrap();
    let mut client = Client::new(&server);
    for (query, expected) in [
        ("labelSelector=app%3Da", "a"),
        ("labelSelector=app%21%3Da", "bch"),
        ("labelSelector=app+in+%28a%2Cc%29%2Capp%21%3Da", "c"),
        (
            "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name&fieldSelector=spec.clusterIP%21%3DNone",
            "abc",
        ),
        ("fieldSelector=spec.clusterIP%3DNone", "h"),
        (
            "fieldSelector=metadata.name%3Db%2Cmetadata.namespace%3Ddefault",
            "b",
        ),
        ("labelSelector=app&limit=1", "a"),
    ] {
        let list = client.get(&format!("{SERVICES}?{query}")).body;
        assert_eq!(names(&list), expected, "{query}");
        assert_eq!(list["metadata"].get("remainingItemCount"), None);
    }
}

#[test]
fn single_objects_and_the_version_can_be_read() {
    let server = server("a");
    server
        .apply(json!({"kind": "Node", "metadata": {"name": "n"}}))
        .unwrap();
    let mut client = Client::new(&server);
    let one = client.get("/api/v1/namespaces/default/services/a");
    assert_eq!((one.code, &one.body["kind"]), (200, &json!("Service")));
    assert_eq!(client.get("/api/v1/nodes/n").body["metadata"]["name"], "n");
    assert_eq!(client.get("/version").body["minor"], "36");
    assert_eq!(client.get("/readyz").body, "ok");
    let missing = client.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/x");
    assert_eq!(
        (missing.code, &missing.body["kind"], &missing.body["reason"]),
        (404, &json!("Status"), &json!("NotFound"))
    );
    let message = "endpointslices.discovery.k8s.io \"x\" not found";
    assert_eq!(missing.body["message"], message);
    assert_eq!(client.get("/api/v1/pods").code, 404);
    assert_eq!(client.request("DELETE", SERVICES, "").unwrap().code, 405);
    assert_eq!(client.get("/api/v1/events").code, 405);
}

#[test]
fn a_replaced_object_keeps_its_uid_and_a_new_one_has_another() {
    let server = server("a");
    let mut client = Client::new(&server);
    let mut uid = || {
        let body = client.get("/api/v1/namespaces/default/services/a").body;
        body["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let first = uid();
    server.apply(service("a")).unwrap();
    assert_eq!(uid(), first);
    server.delete(Resource::Service, "default", "a").unwrap();
    assert_eq!(server.delete(Resource::Service, "default", "a"), None);
    server.apply(service("a")).unwrap();
    assert_ne!(uid(), first);
}

#[test]
fn options_are_refused_in_the_words_of_a_real_server() {
    let server = server("a");
    let mut client = Client::new(&server);
    let refused = client.get(&format!("{SERVICES}?{}", STREAM.replace("watch=true&", "")));
    assert_eq!(
        (refused.code, &refused.body["reason"]),
        (422, &json!("Invalid"))
    );
    let message = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list";
    assert_eq!(refused.body["message"], message);
    let refused = client.get(&format!("{SERVICES}?labelSelector=a+b"));
    assert_eq!(
        (refused.code, &refused.body["reason"]),
        (400, &json!("BadRequest"))
    );
}

#[test]
fn events_are_kept_and_their_series_counted() {
    let server = server("");
    let mut client = Client::new(&server);
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({"metadata": {"name": "e"}, "reason": "Full", "note": "n"}).to_string();
    let made = client.request("POST", path, &event).unwrap();
    assert_eq!(
        (made.code, &made.body["metadata"]["namespace"]),
        (201, &json!("default"))
    );
    let series = json!({"series": {"count": 2}, "note": null}).to_string();
    let patch = client.request("PATCH", &format!("{path}/e"), &series);
    assert_eq!(patch.unwrap().code, 200);
    assert_eq!(
        client
            .request("PATCH", &format!("{path}/f"), &series)
            .unwrap()
            .code,
        404
    );
    let core = "/api/v1/namespaces/other/events";
    let unnamed = json!({"metadata": {"generateName": "g-"}}).to_string();
    assert_eq!(client.request("POST", core, &unnamed).unwrap().code, 201);
    let events = server.events();
    assert_eq!(events.len(), 2);
    assert_eq!(
        (&events[0]["reason"], &events[0]["series"]["count"]),
        (&json!("Full"), &json!(2))
    );
    assert_eq!(events[0].get("note"), None);
    let name = events[1]["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("g-"), "{name}");
}

#[test]
fn yaml_with_several_documents_and_lists_is_applied() {
    let server = server("");
    let text = "\
kind: Service
metadata: {name: a}
---
---
kind: List
items:
- kind: Service
  metadata: {name: b}
- kind: EndpointSlice
  metadata: {name: c}
";
    server.apply_yaml(text).unwrap();
    let mut client = Client::new(&server);
    assert_eq!(names(&client.get(SERVICES).body), "ab");
    assert_eq!(names(&client.get(SLICES).body), "c");
    for wrong in ["kind: Pod\nmetadata: {name: p}", "kind: Service", "a: ["] {
        server.apply_yaml(wrong).unwrap_err();
    }
}

#[test]
fn requests_are_remembered_with_who_made_them() {
    let server = server("a");
    let mut client = Client::new(&server);
    client.get(&format!("{SERVICES}?limit=5"));
    let watch = client.watch(&format!("{SERVICES}?watch=1"));
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(
        (requests[0].verb.as_str(), requests[0].query.as_str()),
        ("list", "limit=5")
    );
    assert_eq!(
        (requests[1].verb.as_str(), requests[1].path.as_str()),
        ("watch", SERVICES)
    );
    assert_eq!(requests[1].user_agent, "test/1");
    drop(watch);
}

#[test]
fn a_stopped_server_is_gone_with_its_connections() {
    let server = server("a");
    let address = server.address();
    let mut watch = Client::new(&server).watch(&format!("{SERVICES}?watch=1"));
    watch.tells(&["ADDED a"]);
    server.stop();
    assert!(watch.line().is_err());
    TcpStream::connect(address).unwrap_err();
}
