// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watches that nothing goes wrong with.

use std::time::{Duration, Instant};

use lb_lab::Resource;
use serde_json::json;

use crate::client::{Client, SERVICES, SLICES, STREAM};
use crate::{SOON, names, server, service, slice, version};

#[test]
fn a_watch_goes_on_where_the_list_ended() {
    let server = server("ab");
    let mut client = Client::new(&server);
    let list = client.get(SERVICES).body;
    assert_eq!(names(&list), "ab");
    server.apply(service("c")).unwrap();
    let from = version(&list);
    let mut watch = client.watch(&format!("{SERVICES}?watch=true&resourceVersion={from}"));
    watch.tells(&["ADDED c"]);
    server.apply(slice("c", "10.1.0.1")).unwrap();
    server.apply(service("c")).unwrap();
    let deleted = server.delete(Resource::Service, "default", "a").unwrap();
    watch.tells(&["MODIFIED c"]);
    let (kind, object) = watch.event();
    assert_eq!((kind.as_str(), version(&object)), ("DELETED", deleted));
    assert_eq!(object["spec"]["clusterIP"], "10.0.0.1");
}

#[test]
fn a_watch_without_a_version_begins_with_what_there_is() {
    let server = server("ab");
    for query in ["watch=true", "watch=true&resourceVersion=0"] {
        let mut watch = Client::new(&server).watch(&format!("{SERVICES}?{query}"));
        watch.tells(&["ADDED a", "ADDED b"]);
    }
}

#[test]
fn objects_that_start_or_stop_matching_come_and_go() {
    let server = server("a");
    let mut watch =
        Client::new(&server).watch(&format!("{SERVICES}?watch=true&labelSelector=%21skip"));
    watch.tells(&["ADDED a"]);
    let mut skipped = service("a");
    skipped["metadata"]["labels"] = json!({"skip": ""});
    skipped["spec"]["clusterIP"] = "10.0.0.9".into();
    let left = server.apply(skipped.clone()).unwrap();
    server.apply(skipped).unwrap();
    let back = server.apply(service("a")).unwrap();
    let (kind, object) = watch.event();
    assert_eq!((kind.as_str(), version(&object)), ("DELETED", left));
    assert_eq!(
        object["spec"]["clusterIP"], "10.0.0.1",
        "the last object that matched"
    );
    let (kind, object) = watch.event();
    assert_eq!((kind.as_str(), version(&object)), ("ADDED", back));
}

#[test]
fn a_watch_of_a_forgotten_version_ends_with_an_error_event() {
    let server = server("abc");
    server.history(1);
    let mut watch = Client::new(&server).watch(&format!("{SERVICES}?watch=1&resourceVersion=2"));
    let (kind, status) = watch.event();
    assert_eq!(kind, "ERROR");
    assert_eq!(
        (&status["code"], &status["reason"], &status["kind"]),
        (&json!(410), &json!("Expired"), &json!("Status"))
    );
    assert_eq!(watch.line().unwrap(), None);
    let mut watch = Client::new(&server).watch(&format!("{SERVICES}?watch=1&resourceVersion=3"));
    watch.tells(&["ADDED c"]);
}

#[test]
fn a_streaming_list_marks_the_end_of_what_there_was() {
    let server = server("ab");
    let mut watch = Client::new(&server).watch(&format!("{SERVICES}?{STREAM}"));
    watch.tells(&["ADDED a", "ADDED b"]);
    let (kind, object) = watch.event();
    assert_eq!(
        (kind.as_str(), version(&object)),
        ("BOOKMARK", server.version())
    );
    let annotations = &object["metadata"]["annotations"];
    assert_eq!(annotations["k8s.io/initial-events-end"], "true");
    server.apply(service("c")).unwrap();
    watch.tells(&["ADDED c"]);
    let future = Client::new(&server).get(&format!("{SERVICES}?{STREAM}&resourceVersion=999"));
    assert_eq!(future.code, 504);
}

#[test]
fn bookmarks_tell_the_newest_version_to_who_wants_them() {
    let server = server("a");
    let path = format!("{SERVICES}?watch=1&resourceVersion=2");
    let mut without = Client::new(&server).watch(&path);
    let mut with = Client::new(&server).watch(&format!("{path}&allowWatchBookmarks=true"));
    server.apply(slice("s", "10.1.0.1")).unwrap();
    server.bookmark();
    let (kind, object) = with.event();
    assert_eq!(
        (kind.as_str(), version(&object)),
        ("BOOKMARK", server.version())
    );
    assert_eq!(object["metadata"].get("annotations"), None);
    server.bookmark_every(Duration::from_millis(5));
    with.tells(&["BOOKMARK", "BOOKMARK"]);
    server.apply(service("b")).unwrap();
    without.tells(&["ADDED b"]);
}

#[test]
fn a_watch_ends_after_its_time_with_a_bookmark() {
    let server = server("a");
    let path = format!("{SERVICES}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true");
    let start = Instant::now();
    let mut watch = Client::new(&server).watch(&path);
    watch.tells(&["ADDED a", "BOOKMARK"]);
    assert_eq!(watch.line().unwrap(), None);
    assert!(start.elapsed() >= Duration::from_millis(990));
}

#[test]
fn a_watch_whose_client_is_gone_ends() {
    let server = server("a");
    let watch = Client::new(&server).watch(&format!("{SLICES}?watch=1"));
    assert_eq!(server.watches(Resource::EndpointSlice), 1);
    drop(watch);
    let gone = |server: &lb_lab::ApiServer| server.watches(Resource::EndpointSlice) == 0;
    server.wait_until("the watch to end", SOON, gone).unwrap();
}

#[test]
fn the_time_of_handing_over_is_known_for_what_was_taken() {
    let server = server("a");
    let version = server.apply(service("a")).unwrap();
    assert_eq!(server.handed_ns(version, Duration::ZERO), None);
    let mut watch = Client::new(&server).watch(&format!("{SERVICES}?watch=1&resourceVersion=1"));
    watch.tells(&["ADDED a", "MODIFIED a"]);
    let first = server.handed_ns(version, SOON).unwrap();
    let version = server.apply(service("a")).unwrap();
    watch.tells(&["MODIFIED a"]);
    assert!(server.handed_ns(version, SOON).unwrap() > first);
}
