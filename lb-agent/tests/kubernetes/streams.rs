// SPDX-License-Identifier: MIT OR Apache-2.0
//! Streams after the first list: order, versions, ends, silence.

use std::time::Duration;

use crate::server::{Reply, Request, Server, Step, line, status};
use crate::support::{Following, added, bookmark, event, modified, nothing, patience, service};

/// A server whose stream of Services is listed once and then goes on as `later` says.
async fn server(mut later: impl FnMut(&Request) -> Reply + Send + 'static) -> Server {
    let mut listed = false;
    Server::start(move |request| {
        if !request.is("services") {
            return nothing(request);
        }
        if !std::mem::replace(&mut listed, true) {
            let lines = [added("a", 5, 80), bookmark(9, true)];
            return Reply::steps(
                lines
                    .map(line)
                    .into_iter()
                    .chain([Step::Wait(Duration::from_millis(1_100)), Step::End]),
            );
        }
        later(request)
    })
    .await
}

fn from(version: &str) -> impl Fn(&Request) -> bool {
    let parameter = format!("resourceVersion={version}");
    move |request| request.is("services") && request.has(&parameter)
}

#[tokio::test]
async fn a_stream_that_ends_goes_on_where_it_was() {
    let mut stream = Some(Reply::lines([modified("a", 10, 81)]));
    let server = server(move |_| stream.take().unwrap()).await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80");
    assert_eq!(source.next().await, "+a:81");
    source.nothing().await;
    assert_eq!(server.count(from("9")), 1);
}

#[tokio::test]
async fn events_are_handed_on_in_the_order_of_the_stream() {
    let lines = [
        modified("a", 10, 81),
        modified("a", 10, 81),
        modified("a", 7, 80),
        event("DELETED", service("a", 12, "80")),
        added("a", 11, 82),
    ];
    let server = server(move |_| Reply::lines(&lines)).await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80");
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let next = source.next().await;
        seen.extend(next.split(' ').map(str::to_owned));
    }
    assert_eq!(seen, ["+a:81", "+a:81", "+a:80", "-a", "+a:82"]);
}

#[tokio::test]
async fn a_bookmark_moves_the_version_on_and_half_a_line_does_not() {
    let half = &modified("a", 60, 99)[..150];
    let half = half.to_owned();
    let mut streams = 0;
    let server = server(move |_| {
        streams += 1;
        match streams {
            1 => Reply::steps([
                line(bookmark(50, false)),
                line(bookmark(50, false)),
                Step::Bytes(half.clone()),
                Step::Abort,
            ]),
            _ => Reply::lines([modified("a", 61, 81)]),
        }
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80");
    assert_eq!(source.next().await, "+a:81");
    assert_eq!(server.count(from("50")), 1);
}

#[tokio::test]
async fn a_silent_stream_is_opened_again() {
    let mut streams = 0;
    let server = server(move |_| {
        streams += 1;
        match streams {
            // Bookmarks and then none: the connection is dead.
            1 => Reply::lines([bookmark(50, false)]),
            // Nothing at all for longer than the server was asked to keep it open.
            2 => Reply::steps([]),
            _ => Reply::lines([modified("a", 61, 81)]),
        }
    })
    .await;
    let mut patience = patience();
    patience.stream_secs = (2, 2);
    let mut source = Following::with(&server.url, |_| {}, patience).await;
    assert_eq!(source.next().await, "reset a:80");
    assert_eq!(source.next().await, "+a:81");
    assert_eq!(server.count(from("50")), 2);
}

#[tokio::test]
async fn a_list_after_gone_replaces_the_kind_in_one_step() {
    let mut asked = 0;
    let server = server(move |request| {
        asked += 1;
        match asked {
            1 => Reply::lines([event("ERROR", status(410, "too old resource version"))]),
            // The new list breaks in the middle: nothing of it counts.
            2 => Reply::steps([line(added("b", 20, 80)), Step::Abort]),
            _ if request.wants_initial_events() => {
                let lines = [added("c", 20, 80), added("d", 21, 80), bookmark(30, true)];
                Reply::lines(lines)
            }
            _ => Reply::steps([]),
        }
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80");
    assert_eq!(source.next().await, "relist Services c:80 d:80");
    source.nothing().await;
}

#[tokio::test]
async fn a_version_that_the_server_does_not_know_leads_to_a_list() {
    for answer in [
        Reply::status(410, "gone"),
        Reply::status(504, "Too large resource version: 9, current: 3"),
        Reply::status(400, "invalid resource version"),
        Reply::lines(["{\"type\":\"ADDED\",\"object\":{{{"]),
        // Whatever it says, it is a change that is not known here.
        Reply::lines([event("RENAMED", service("a", 10, "80"))]),
        // Such a bookmark comes from a server that was set back.
        Reply::lines([bookmark(3, false)]),
    ] {
        let mut answer = Some(answer);
        let server = server(move |request| match answer.take() {
            Some(reply) => reply,
            None if request.wants_initial_events() => {
                Reply::lines([added("b", 2, 80), bookmark(3, true)])
            }
            None => Reply::steps([]),
        })
        .await;
        let mut source = Following::start(&server.url).await;
        assert_eq!(source.next().await, "reset a:80");
        assert_eq!(source.next().await, "relist Services b:80");
    }
}

#[tokio::test]
async fn a_stream_that_says_nothing_where_others_had_bookmarks_leads_to_a_list() {
    let mut streams = 0;
    let server = server(move |request| {
        if request.wants_initial_events() {
            return Reply::lines([added("b", 2, 80), bookmark(3, true)]);
        }
        streams += 1;
        let wait = Step::Wait(Duration::from_millis(1_200));
        match streams {
            1 => Reply::steps([line(bookmark(50, false)), wait, Step::End]),
            2 => Reply::steps([wait, Step::End]),
            _ => Reply::steps([]),
        }
    })
    .await;
    let mut patience = patience();
    patience.stream_secs = (1, 1);
    patience.grace = Duration::from_secs(5);
    patience.silence = Duration::from_secs(5);
    let mut source = Following::with(&server.url, |_| {}, patience).await;
    assert_eq!(source.next().await, "reset a:80");
    assert_eq!(source.next().await, "relist Services b:80");
    assert_eq!(server.count(from("50")), 1);
}

#[tokio::test]
async fn a_timeout_of_a_gateway_does_not_lead_to_a_list() {
    let html = "<html><body>504 Gateway Time-out</body></html>".to_owned();
    let timeout = "the request did not complete in time";
    for answer in [
        Reply::status(504, timeout),
        Reply::Whole(504, "", html),
        Reply::lines([event("ERROR", status(504, timeout))]),
        Reply::lines([event("ERROR", status(500, "leader changed"))]),
    ] {
        let mut answer = Some(answer);
        let server = server(move |request| match answer.take() {
            Some(reply) => reply,
            None if request.wants_initial_events() || !request.is_watch() => {
                Reply::lines([added("b", 2, 80), bookmark(3, true)])
            }
            None => Reply::lines([modified("a", 10, 81)]),
        })
        .await;
        let mut source = Following::start(&server.url).await;
        assert_eq!(source.next().await, "reset a:80");
        assert_eq!(source.next().await, "+a:81");
        assert_eq!(server.count(from("9")), 2);
    }
}

#[tokio::test]
async fn a_version_that_is_too_large_is_told_by_the_cause_too() {
    let cause = r#"{"reason":"ResourceVersionTooLarge","message":"odd"}"#;
    let details = format!(r#""details":{{"causes":[{cause}]}},"code":504"#);
    let body = status(504, "Timeout").replace(r#""code":504"#, &details);
    let mut answer = Some(Reply::Whole(504, "", body));
    let server = server(move |request| match answer.take() {
        Some(reply) => reply,
        None if request.wants_initial_events() => {
            Reply::lines([added("b", 2, 80), bookmark(3, true)])
        }
        None => Reply::steps([]),
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80");
    assert_eq!(source.next().await, "relist Services b:80");
}

#[tokio::test]
async fn a_stream_that_is_silent_from_its_beginning_is_opened_again() {
    for bookmarks in [false, true] {
        let mut streams = 0;
        let server = server(move |_| {
            streams += 1;
            let end = [Step::Wait(Duration::from_millis(1_100)), Step::End];
            match streams {
                1 if bookmarks => {
                    let first = [line(bookmark(9, false)), line(bookmark(9, false))];
                    Reply::steps(first.into_iter().chain(end))
                }
                1 => Reply::steps(end),
                // Open for a minute, and dead.
                2 => Reply::steps([]),
                _ => Reply::lines([modified("a", 61, 81)]),
            }
        })
        .await;
        let mut patience = patience();
        patience.silence = Duration::from_millis(1_500);
        let mut source = Following::with(&server.url, |_| {}, patience).await;
        assert_eq!(source.next().await, "reset a:80");
        assert_eq!(source.next().await, "+a:81");
        assert_eq!(server.count(from("9")), 3, "bookmarks: {bookmarks}");
    }
}

#[tokio::test]
async fn two_streams_without_a_line_where_others_had_bookmarks_lead_to_a_list() {
    let mut streams = 0;
    let server = server(move |request| {
        if request.wants_initial_events() {
            return Reply::lines([added("b", 2, 80), bookmark(3, true)]);
        }
        streams += 1;
        match streams {
            1 => Reply::lines([bookmark(50, false)]),
            _ => Reply::steps([]),
        }
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80");
    assert_eq!(source.next().await, "relist Services b:80");
    assert_eq!(server.count(from("50")), 2);
}
