// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that are away, overloaded, or do not want us.

use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use crate::server::{Reply, Server, Step};
use crate::support::{Following, Logged, added, bookmark, nothing};

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for_and_that_is_said_once() {
    let logged = Logged::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut source = Following::start(&format!("http://{address}")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        logged.count("cannot be reached"),
        1,
        "three kinds, several tries"
    );
    let listener = TcpListener::bind(address).await.unwrap();
    let _server = Server::on(listener, nothing);
    assert_eq!(source.next().await, "reset");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(logged.count("serves again"), 1);
    assert_eq!(logged.count("no Node of this node's name"), 1);
    assert_eq!(logged.count("WARN"), 2, "these two");
}

#[tokio::test]
async fn a_server_that_asks_for_time_gets_it() {
    let mut asked = 0;
    let server = Server::start(move |request| {
        if !request.is("services") {
            return nothing(request);
        }
        asked += 1;
        match asked {
            1 => Reply::Whole(429, "retry-after: 2\r\n", "Too many requests".to_owned()),
            2 => Reply::status(503, "apiserver is shutting down"),
            _ => Reply::lines([added("a", 5, 80), bookmark(9, true)]),
        }
    })
    .await;
    let start = Instant::now();
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset a:80");
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(server.count(|r| r.is("services")), 3);
}

#[tokio::test]
async fn what_rbac_lacks_is_named() {
    let logged = Logged::start();
    let mut allowed = false;
    let server = Server::start(move |request| {
        if request.is("endpointslices") && !std::mem::replace(&mut allowed, true) {
            return Reply::status(403, "endpointslices is forbidden");
        }
        nothing(request)
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset");
    let sentence = "forbids to watch endpointslices (403): the agent's ClusterRole needs the verbs";
    assert_eq!(logged.count(sentence), 1);
}

#[tokio::test]
async fn a_server_that_ends_every_stream_at_once_is_not_asked_all_the_time() {
    let server = Server::start(move |request| {
        if request.wants_initial_events() || !request.is("services") {
            return nothing(request);
        }
        Reply::steps([Step::End])
    })
    .await;
    let mut source = Following::start(&server.url).await;
    assert_eq!(source.next().await, "reset");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let asked = server.count(|r| r.is("services"));
    assert!(asked < 8, "{asked} requests in 3 seconds");
}
