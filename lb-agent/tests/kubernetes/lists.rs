// SPDX-License-Identifier: MIT OR Apache-2.0
//! First lists: streamed, paged, refused, ignored, late.

use std::time::{Duration, Instant};

use crate::server::{Reply, Server, Step, line, status};
use crate::support::{
    Following, added, bookmark, event, modified, nothing, page, patience, service,
};

#[tokio::test]
async fn the_first_update_waits_for_every_kind_and_has_everything() {
    let (nodes, reply) = Reply::live();
    let mut late = Some(reply);
    let server = Server::start(move |request| match late.take_if(|_| request.is("nodes")) {
        Some(reply) => reply,
        None if request.is("services") => {
            let lines = [added("a", 5, 80), added("b", 3, 80), bookmark(9, true)];
            let later = [modified("a", 10, 81), added("c", 11, 80)];
            Reply::lines(lines.into_iter().chain(later))
        }
        None => nothing(request),
    })
    .await;
    let mut source = Following::start(&server.url).await;
    source.nothing().await;
    nodes.send(line(bookmark(9, true))).unwrap();
    assert_eq!(source.next().await, "reset a:80 b:80");
    assert_eq!(source.next().await, "+a:81 +c:80");
    let requests = server.requests();
    let target = |resource| {
        let found = requests.iter().find(|request| request.is(resource));
        found.unwrap().target.clone()
    };
    assert!(target("services").contains("fieldSelector=spec.clusterIP%21%3DNone"));
    assert!(
        target("services").contains("labelSelector=%21service.kubernetes.io%2Fservice-proxy-name")
    );
    assert!(target("endpointslices").contains("%21service.kubernetes.io%2Fheadless%2C%21"));
    assert!(target("nodes").contains("fieldSelector=metadata.name%3Dthis-node"));
}

#[tokio::test]
async fn a_server_that_refuses_streamed_lists_is_listed_page_by_page() {
    let server = Server::start(|request| match request {
        request if request.wants_initial_events() => {
            Reply::status(422, "sendInitialEvents is forbidden")
        }
        request if request.is("services") && !request.is_watch() => {
            if request.has("continue=second") {
                Reply::json(page(7, "", &[service("b", 2, "80")]))
            } else {
                Reply::json(page(7, "second", &[service("a", 1, "80")]))
            }
        }
        request if request.is("services") => Reply::lines([added("c", 8, 80)]),
        request => nothing(request),
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80 b:80");
    assert_eq!(source.next().await, "+c:80");
    let watches = |r: &crate::server::Request| r.is("services") && r.has("resourceVersion=7");
    assert_eq!(server.count(watches), 1);
}

#[tokio::test]
async fn a_server_that_ignores_streamed_lists_twice_is_not_asked_for_them_again() {
    let mut streams = 0;
    let server = Server::start(move |request| {
        if request.is("services") && request.is_watch() && !request.has("resourceVersion=7") {
            // An old server: what there is, then changes, and no mark between the two.
            let changes = (6..200).flat_map(|version| {
                let change = line(modified("a", version, 80));
                [change, Step::Wait(Duration::from_millis(100))]
            });
            let first = [line(added("a", 5, 80))];
            return Reply::steps(first.into_iter().chain(changes));
        }
        if request.is("services") && request.is_watch() {
            streams += 1;
            return match streams {
                1 | 2 => gone(),
                _ => Reply::steps([]),
            };
        }
        if request.is("services") {
            return Reply::json(page(7, "", &[service("a", 5, "80")]));
        }
        nothing(request)
    })
    .await;
    let start = Instant::now();
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80");
    let took = start.elapsed();
    assert!(
        took < patience().list_longest,
        "{took:?} in spite of changes"
    );
    assert_eq!(source.next().await, "relist Services a:80");
    assert_eq!(source.next().await, "relist Services a:80");
    let streamed = server.count(|r| r.is("services") && r.wants_initial_events());
    assert_eq!(streamed, 2, "the third list does not try again");
}

/// What makes a client list anew.
fn gone() -> Reply {
    Reply::lines([event("ERROR", status(410, ""))])
}

/// A server whose streamed lists of Services are answered by `streamed`, the first ones, and whose
/// first watch ends for good. Gives how many streamed lists were asked for until the second list.
async fn streamed_after(mut streamed: impl FnMut() -> Reply + Send + 'static) -> usize {
    let mut watches = 0;
    let mut streams = 0;
    let server = Server::start(move |request| {
        if !request.is("services") {
            return nothing(request);
        }
        if request.wants_initial_events() {
            streams += 1;
            return if streams == 1 {
                streamed()
            } else {
                Reply::lines([added("b", 8, 80), bookmark(9, true)])
            };
        }
        if !request.is_watch() {
            return Reply::json(page(7, "", &[service("a", 5, "80")]));
        }
        watches += 1;
        if watches == 1 {
            gone()
        } else {
            Reply::steps([])
        }
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80");
    let next = source.next().await;
    let streams = server.count(|r| r.is("services") && r.wants_initial_events());
    let wanted = ["relist Services a:80", "relist Services b:80"];
    assert_eq!(next, wanted[streams - 1]);
    streams
}

#[tokio::test]
async fn a_streamed_list_that_stops_is_tried_again_at_the_next_list() {
    // With everything and without its end, with a part, without anything, without an answer.
    let whole = || Reply::lines([added("a", 5, 80)]);
    assert_eq!(streamed_after(whole).await, 2);
    let half = || Reply::steps([Step::Bytes(added("a", 5, 80)[..100].to_owned())]);
    assert_eq!(streamed_after(half).await, 2);
    assert_eq!(streamed_after(|| Reply::steps([])).await, 2);
    assert_eq!(streamed_after(|| Reply::Never).await, 2);
}

#[tokio::test]
async fn only_a_refusal_that_names_the_wish_for_streamed_lists_is_for_good() {
    let wish = "sendInitialEvents is forbidden for watch unless the WatchList gate is enabled";
    let old = "resourceVersionMatch is forbidden for watch";
    for (code, message, streams) in [
        (422, wish, 1),
        (400, wish, 1),
        (422, old, 1),
        (400, "the request is odd today", 2),
        (404, wish, 2),
        (422, "something else is not valid", 2),
    ] {
        let asked = streamed_after(move || Reply::status(code, message)).await;
        assert_eq!(asked, streams, "{code} {message}");
        let in_stream = move || Reply::lines([event("ERROR", status(code, message))]);
        assert_eq!(streamed_after(in_stream).await, streams, "{code} {message}");
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_or_whose_pages_are_too_old_begins_anew() {
    let mut lists = 0;
    let server = Server::start(move |request| {
        if request.wants_initial_events() {
            return Reply::status(400, "unknown parameter");
        }
        if !request.is("services") || request.is_watch() {
            return nothing(request);
        }
        lists += 1;
        let whole = page(7, "next", &[service("old", 1, "80")]);
        match lists {
            1 | 3 | 5 => Reply::json(whole),
            2 => Reply::status(410, "The provided continue parameter is too old"),
            // Ends in the middle, properly for the protocol and not.
            4 => Reply::json(&whole[..whole.len() / 2]),
            6 => Reply::steps([Step::Bytes(whole[..100].to_owned()), Step::Abort]),
            _ => Reply::json(page(8, "", &[service("new", 1, "80")])),
        }
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset new:80");
}

#[tokio::test]
async fn slow_bytes_are_waited_for() {
    let server = Server::start(|request| {
        if !request.is("services") || !request.wants_initial_events() {
            return nothing(request);
        }
        let text = format!("{}\n{}\n", added("a", 5, 80), bookmark(9, true));
        let bytes: Vec<char> = text.chars().collect();
        Reply::steps(bytes.chunks(80).flat_map(|piece| {
            let piece = piece.iter().collect();
            [Step::Bytes(piece), Step::Wait(Duration::from_millis(60))]
        }))
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80");
    assert_eq!(server.count(|r| r.is("services")), 1);
}
