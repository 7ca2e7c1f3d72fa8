// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each fault, as a client sees it.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use lb_lab::{ApiServer, Fault, Resource};
use serde_json::json;

use crate::client::{Client, SERVICES, SLICES, STREAM, Watch};
use crate::{SOON, names, server, service, slice, version};

fn watch(server: &ApiServer) -> Watch {
    Client::new(server).watch(&format!(
        "{SERVICES}?watch=true&allowWatchBookmarks=true&resourceVersion=1"
    ))
}

/// Waits until so many watches are left.
fn only(server: &ApiServer, left: usize) {
    let is_so = |server: &ApiServer| server.watches(Resource::Service) == left;
    server.wait_until("watches to end", SOON, is_so).unwrap();
}

#[test]
fn a_fault_happens_where_and_as_often_as_it_is_told() {
    let server = server("a");
    let id = server.fault(Fault::Status(503).on(Resource::EndpointSlice).times(2));
    let mut client = Client::new(&server);
    let mut code = |path| client.get(path).code;
    assert_eq!(code(SERVICES), 200);
    assert_eq!([code(SLICES), code(SLICES), code(SLICES)], [503, 503, 200]);
    assert_eq!(server.fired(id), 2);
    let id = server.fault(Fault::Status(500));
    assert_eq!([code(SLICES), code(SERVICES)], [500, 500]);
    server.lift(id);
    assert_eq!([code(SLICES), code(SERVICES)], [200, 200]);
}

#[test]
fn refusals_have_a_status_and_say_when_to_come_back() {
    let server = server("a");
    let mut client = Client::new(&server);
    for (code, reason) in [
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ] {
        server.fault(Fault::Status(code).once());
        let answer = client.get(SERVICES);
        assert_eq!(
            (answer.code, &answer.body["reason"]),
            (code, &json!(reason))
        );
        let retry = answer.head.contains("\r\nRetry-After: 1\r\n");
        assert_eq!(retry, code == 429, "{}", answer.head);
    }
    server.fault(Fault::RetryAfter { code: 503, secs: 7 }.once());
    let answer = client.get(SERVICES);
    assert!(answer.head.contains("Retry-After: 7"), "{}", answer.head);
    assert_eq!(answer.body["details"]["retryAfterSeconds"], 7);
}

#[test]
fn connections_are_reset_or_refused_and_come_back() {
    let server = server("a");
    let mut old = Client::new(&server);
    old.get(SERVICES);
    let id = server.fault(Fault::Refuse);
    let reset = |result: std::io::Result<u16>| {
        let kind = result.unwrap_err().kind();
        let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(kinds.contains(&kind), "{kind:?}");
    };
    let get = |client: &mut Client| {
        client
            .request("GET", SERVICES, "")
            .map(|answer| answer.code)
    };
    reset(get(&mut old));
    // The connect itself may see the reset, too.
    reset(Client::connect(&server).and_then(|mut client| get(&mut client)));
    server.lift(id);
    let mut again = Client::new(&server);
    assert_eq!(get(&mut again).unwrap(), 200);
    server.pause();
    get(&mut again).unwrap_err();
    let refused = Client::connect(&server).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    server.resume().unwrap();
    assert_eq!(get(&mut Client::new(&server)).unwrap(), 200);
}

#[test]
fn a_version_is_gone_at_the_start_or_in_the_stream() {
    let server = server("abc");
    server.fault(Fault::Gone.once());
    let answer = Client::new(&server).get(&format!("{SERVICES}?watch=1"));
    assert_eq!((answer.code, &answer.body["code"]), (410, &json!(410)));
    server.fault(Fault::GoneInStream { after: 2 }.once());
    let mut watch = watch(&server);
    watch.tells(&["ADDED a", "ADDED b"]);
    let (kind, status) = watch.event();
    assert_eq!((kind.as_str(), &status["code"]), ("ERROR", &json!(410)));
    assert_eq!(watch.line().unwrap(), None);
}

#[test]
fn a_running_watch_ends_cleanly_in_a_line_or_by_a_reset() {
    let server = server("a");
    let mut clean = watch(&server);
    clean.tells(&["ADDED a"]);
    server.fault(Fault::EndWatch { after: 1 }.once());
    server.apply(service("b")).unwrap();
    clean.tells(&["ADDED b"]);
    assert_eq!(clean.line().unwrap(), None);

    let mut cut = watch(&server);
    cut.tells(&["ADDED a", "ADDED b"]);
    server.fault(Fault::CutWatch { after: 0 }.once());
    assert_eq!(cut.line().unwrap_err().kind(), ErrorKind::UnexpectedEof);

    let mut reset = watch(&server);
    reset.tells(&["ADDED a", "ADDED b"]);
    server.fault(Fault::ResetWatch { after: 0 }.once());
    assert_eq!(reset.line().unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_list_ends_in_the_middle_or_between_its_pages() {
    let server = server("abcd");
    server.fault(Fault::CutList { after: 3 }.on(Resource::Service).once());
    let cut = Client::new(&server).request("GET", SERVICES, "");
    assert_eq!(cut.err().unwrap().kind(), ErrorKind::UnexpectedEof);

    server.fault(Fault::ExpireContinue.once());
    let mut client = Client::new(&server);
    let first = client.get(&format!("{SERVICES}?limit=2")).body;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let path = format!("{SERVICES}?limit=2&continue={token}");
    assert_eq!(client.get(&path).code, 410);
    assert_eq!(names(&client.get(&path).body), "cd");
}

#[test]
fn bookmarks_are_held_back_or_tell_too_much() {
    let server = server("a");
    let held = server.fault(Fault::HoldBookmarks);
    let mut stream = Client::new(&server).watch(&format!("{SERVICES}?{STREAM}"));
    stream.tells(&["ADDED a"]);
    server.bookmark();
    server.apply(service("b")).unwrap();
    stream.tells(&["ADDED b"]);
    server.lift(held);
    let (_, end) = stream.event();
    assert_eq!(
        end["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(version(&end), server.version());

    let mut watch = watch(&server);
    watch.tells(&["ADDED a", "ADDED b"]);
    server.fault(Fault::BookmarkGap { ahead: 10 });
    server.bookmark();
    let (kind, bookmark) = watch.event();
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(version(&bookmark), server.version() + 10);
}

#[test]
fn streaming_lists_can_be_unknown_or_switched_off() {
    let server = server("a");
    let path = format!("{SERVICES}?{STREAM}");
    let id = server.fault(Fault::RefuseWatchList);
    let refused = Client::new(&server).get(&path);
    assert_eq!(refused.code, 422);
    assert_eq!(
        refused.body["details"]["causes"][0]["field"],
        "sendInitialEvents"
    );
    watch(&server).tells(&["ADDED a"]);
    server.lift(id);
    server.fault(Fault::IgnoreWatchList);
    let mut stream = Client::new(&server).watch(&path);
    stream.tells(&["ADDED a"]);
    server.apply(service("b")).unwrap();
    stream.tells(&["ADDED b"]);
}

#[test]
fn events_come_twice_or_again_after_newer_ones() {
    let server = server("ab");
    let id = server.fault(Fault::DuplicateEvents);
    watch(&server).tells(&["ADDED a", "ADDED a", "ADDED b", "ADDED b"]);
    server.lift(id);
    server.fault(Fault::RepeatLate { after: 2 });
    server.apply(service("c")).unwrap();
    watch(&server).tells(&["ADDED a", "ADDED b", "ADDED c", "ADDED a"]);
}

#[test]
fn one_kind_is_held_back_while_another_goes_on() {
    let server = server("");
    let mut services = watch(&server);
    let mut slices = Client::new(&server).watch(&format!("{SLICES}?watch=1"));
    let held = server.fault(Fault::HoldEvents.on(Resource::Service));
    server.apply(service("a")).unwrap();
    server.apply(service("b")).unwrap();
    let later = server.apply(slice("a", "10.1.0.1")).unwrap();
    slices.tells(&["ADDED a"]);
    assert!(server.handed_ns(later, SOON).is_some());
    assert_eq!(server.handed_ns(later - 1, Duration::ZERO), None);
    server.lift(held);
    services.tells(&["ADDED a", "ADDED b"]);
}

#[test]
fn a_silent_watch_stays_open_and_silent() {
    let server = server("a");
    let id = server.fault(Fault::SilentWatch.once());
    let path = format!("{SERVICES}?watch=1&timeoutSeconds=1");
    let mut client = Client::new(&server);
    client.get(SERVICES);
    let mut silent = client.watch(&path);
    server.lift(id);
    let version = server.apply(service("b")).unwrap();
    watch(&server).tells(&["ADDED a", "ADDED b"]);
    assert!(server.handed_ns(version, SOON).is_some());
    only(&server, 1);
    server.pause();
    // Nothing came before the end, which is not a clean one.
    assert!(silent.line().is_err());
}

#[test]
fn lines_objects_and_types_can_be_wrong() {
    let server = server("abc");
    server.fault(Fault::MalformedEvent { after: 1 }.once());
    let mut malformed = watch(&server);
    malformed.tells(&["ADDED a"]);
    let line = malformed.line().unwrap().unwrap();
    serde_json::from_str::<serde_json::Value>(&line).unwrap_err();
    malformed.tells(&["ADDED c"]);
    drop(malformed);
    // A running watch would claim the next fault.
    only(&server, 0);

    server.fault(Fault::UnknownEvent { after: 1 }.once());
    watch(&server).tells(&["ADDED a", "RENAMED b", "ADDED c"]);
    only(&server, 0);

    server.fault(Fault::BrokenObject { after: 0 }.once());
    let mut broken = watch(&server);
    let (kind, object) = broken.event();
    assert_eq!(kind, "ADDED");
    assert_eq!(object["spec"]["ports"][0]["port"], "abc");
    broken.tells(&["ADDED b"]);
}

#[test]
fn half_a_list_looks_complete() {
    let server = server("abcde");
    server.fault(Fault::HalfList);
    let list = Client::new(&server).get(SERVICES).body;
    assert_eq!(names(&list), "ace");
    assert_eq!(list["metadata"].get("continue"), None);
    let mut stream = Client::new(&server).watch(&format!("{SERVICES}?{STREAM}"));
    stream.tells(&["ADDED a", "ADDED c", "ADDED e", "BOOKMARK"]);
}

#[test]
fn bytes_come_slowly() {
    let server = server("ab");
    let mut client = Client::new(&server);
    let length = client.get(SERVICES).body.to_string().len();
    server.fault(Fault::SlowBytes { per_ms: 10 }.once());
    let start = Instant::now();
    assert_eq!(names(&client.get(SERVICES).body), "ab");
    let least = Duration::from_millis(length as u64 / 10);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
}
