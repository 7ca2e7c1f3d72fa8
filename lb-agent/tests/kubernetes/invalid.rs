// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects that cannot be read: they do not vanish, and their neighbours do not suffer.

use crate::server::{Reply, Server, line, status};
use crate::support::{Following, Logged, added, bookmark, event, modified, nothing, page, service};

/// A Service that no API server should send: in the wrong form, or with a wrong value.
fn wrong(name: &str, port: &str) -> String {
    event("MODIFIED", service(name, 20, port))
}

#[tokio::test]
async fn an_object_that_cannot_be_read_keeps_its_last_good_state() {
    let logged = Logged::start();
    let (stream, reply) = Reply::live();
    let mut reply = Some(reply);
    let server = Server::start(
        move |request| match reply.take_if(|_| request.is("services")) {
            Some(reply) => reply,
            None if request.is("services") && request.wants_initial_events() => Reply::lines([
                event("ADDED", service("a", 5, "\"eighty\"")),
                added("c", 5, 80),
                bookmark(40, true),
            ]),
            None => nothing(request),
        },
    )
    .await;
    let mut source = Following::start(&server.url).await;
    for text in [added("a", 5, 80), added("b", 5, 80), bookmark(9, true)] {
        stream.send(line(text)).unwrap();
    }
    assert_eq!(source.next().await, "reset a:80 b:80");
    for text in [
        wrong("a", "\"eighty\""),
        modified("b", 21, 81),
        wrong("b", "0"),
    ] {
        stream.send(line(text)).unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(source.next().await);
    }
    assert_eq!(seen.join(" "), "!a +b:81 !b");
    stream
        .send(line(event("ERROR", status(410, "gone"))))
        .unwrap();
    assert_eq!(source.next().await, "relist Services c:80 !a");
    source.nothing().await;
    assert_eq!(logged.count("Service default/a cannot be read"), 1);
    assert_eq!(logged.count("Service default/b cannot be read"), 1);
    assert_eq!(
        logged.count("Service default/b can be read again or is gone"),
        1
    );
}

#[tokio::test]
async fn a_first_list_with_an_unreadable_object_is_partial_until_it_can_be_read() {
    let (stream, reply) = Reply::live();
    let mut reply = Some(reply);
    let server = Server::start(move |request| match request {
        request if request.wants_initial_events() => Reply::status(422, "unknown"),
        request if request.is("services") && !request.is_watch() => {
            let items = [service("a", 1, "\"eighty\""), service("b", 2, "80")];
            Reply::json(page(7, "", &items))
        }
        request => match reply.take_if(|_| request.is("services")) {
            Some(reply) => reply,
            None => nothing(request),
        },
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(
        source.next().await,
        "partial b:80 without Service default/a"
    );
    assert_eq!(source.next().await, "!a");
    stream.send(line(modified("a", 8, 80))).unwrap();
    assert_eq!(source.next().await, "+a:80");
    assert_eq!(source.next().await, "complete");
}

#[tokio::test]
async fn what_was_remembered_stands_in_for_what_cannot_be_read() {
    let server = Server::start(|request| {
        if request.is("services") && request.wants_initial_events() {
            let broken = event("ADDED", service("a", 5, "0"));
            return Reply::lines([broken, added("b", 6, 80), bookmark(9, true)]);
        }
        nothing(request)
    })
    .await;
    let remembered = |outlet: &mut lb_agent::source::kubernetes::Outlet| outlet.remembered = true;
    let mut source = Following::with(&server.url, remembered, crate::support::patience()).await;
    assert_eq!(source.next().await, "reset b:80 !a", "all in one");
    source.nothing().await;
}
