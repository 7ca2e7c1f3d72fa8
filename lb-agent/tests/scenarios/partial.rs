// SPDX-License-Identifier: MIT OR Apache-2.0
//! A start while parts of the folder cannot be read removes nothing that an earlier process left.
//!
//! Each test saves a file by halves, starts a new agent on the tables of the one before, and then
//! mends the file.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use lb_agent::model::snapshot::{Change, Object, Update};
use lb_agent::model::tables::TableContent;
use lb_agent::source::Delivery;
use lb_agent::source::manifests::watch;
use proptest::prelude::*;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::support::Bench;

const NONE: [String; 0] = [];

/// A restart on `before` with parts of the objects missing removes nothing and shortens no list,
/// and leads to the same tables once the rest has come.
pub(crate) fn check_restarts(
    before: &TableContent,
    told: &[Object],
    text: &str,
) -> Result<(), TestCaseError> {
    for part in 0..3 {
        let (rest, read): (Vec<_>, Vec<_>) = (0..).zip(told).partition(|(at, _)| at % 3 == part);
        let mut bench = Bench::on(before.clone(), 1_000);
        bench.take(Update::Partial {
            objects: read.into_iter().map(|(_, o)| o.clone()).collect(),
            unreadable: vec!["rest.yaml".to_owned()],
        });
        let writes = bench.writes();
        prop_assert!(
            !writes.iter().any(|w| w.starts_with("delete")),
            "{writes:?}"
        );
        let after = bench.tables.content();
        for (key, frontend) in &before.v4.frontends {
            prop_assert!(after.v4.frontends[key].cluster_count >= frontend.cluster_count);
        }
        for (key, frontend) in &before.v6.frontends {
            prop_assert!(after.v6.frontends[key].cluster_count >= frontend.cluster_count);
        }
        let rest = rest.into_iter().map(|(_, o)| Change::Apply(o.clone()));
        bench.take(Update::Changes(rest.collect()));
        bench.take(Update::Complete);
        prop_assert_eq!(bench.text_without_ids(), text);
    }
    Ok(())
}

/// A Service and its endpoints as two documents.
fn manifest(name: &str, ip: &str, addresses: &[&str]) -> [String; 2] {
    let mut slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, \
         labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
         ports: [{{port: 8080}}]\nendpoints:\n"
    );
    for address in addresses {
        writeln!(slice, "- {{addresses: [{address}]}}").unwrap();
    }
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    );
    [service, slice]
}

fn documents(all: &[[String; 2]]) -> String {
    all.concat().join("---\n")
}

fn shop() -> String {
    documents(&[
        manifest("web", "10.0.0.10", &["10.244.0.1", "10.244.0.2"]),
        manifest("db", "10.0.0.11", &["10.244.0.3"]),
    ])
}

/// A node that follows a folder.
struct Node {
    bench: Bench,
    updates: UnboundedReceiver<Delivery>,
}

impl Node {
    /// Starts on the tables of `before`.
    fn start(folder: &Path, before: Option<&Bench>) -> Self {
        let content = before.map(|b| b.tables.content().clone());
        let (sender, updates) = unbounded_channel();
        watch(folder, sender).unwrap();
        let mut node = Self {
            bench: Bench::on(content.unwrap_or_default(), 1_000),
            updates,
        };
        node.take();
        node
    }

    /// Takes one update in; gives true when it says that everything can be read now.
    fn take(&mut self) -> bool {
        let update = self.updates.blocking_recv().unwrap().update;
        let complete = update == Update::Complete;
        let outcome = self.bench.take(update);
        assert_eq!(outcome.pending, 0, "an agent with broken files gets ready");
        complete
    }

    /// Takes updates in until everything can be read.
    fn take_all(&mut self) {
        while !self.take() {}
    }
}

/// The tables that `text` alone leads to.
fn fresh(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("shop.yaml"), text).unwrap();
    Node::start(dir.path(), None).bench.text_without_ids()
}

/// Starts on `shop()` with the file cut to `length` bytes, checks that nothing is written, then
/// saves the rest and checks again.
fn restart_on_a_cut(length: usize) {
    let whole = shop();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shop.yaml");
    fs::write(&file, &whole).unwrap();
    let before = Node::start(dir.path(), None);
    fs::write(&file, &whole[..length]).unwrap();
    let mut after = Node::start(dir.path(), Some(&before.bench));
    assert_eq!(after.bench.reconciler.unreadable(), ["shop.yaml"]);
    assert_eq!(after.bench.writes(), NONE, "cut at {length}");
    fs::write(&file, &whole).unwrap();
    after.take_all();
    assert!(after.bench.reconciler.unreadable().is_empty());
    assert_eq!(after.bench.writes(), NONE, "cut at {length}, then mended");
}

#[test]
fn a_restart_on_half_a_file_writes_nothing() {
    let whole = shop();
    restart_on_a_cut(0);
    for part in [
        "clusterIP: 10.0.0.11",
        "service-name: db",
        "10.244.0.2",
        "10.244.0.3",
    ] {
        restart_on_a_cut(whole.find(part).unwrap());
    }
}

#[test]
fn what_is_gone_is_removed_once_the_folder_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shop.yaml");
    fs::write(&file, shop()).unwrap();
    let before = Node::start(dir.path(), None);
    fs::write(&file, "kind: [").unwrap();
    let mut after = Node::start(dir.path(), Some(&before.bench));
    assert_eq!(after.bench.writes(), NONE);

    let mended = documents(&[manifest("web", "10.0.0.10", &["10.244.0.2"])]);
    fs::write(&file, &mended).unwrap();
    after.take_all();
    assert_eq!(after.bench.text_without_ids(), fresh(&mended));
    assert_eq!(after.bench.tables.content().len(), 3);
}

#[test]
fn a_broken_file_that_is_deleted_takes_what_it_held_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let [web, db] = [
        manifest("web", "10.0.0.10", &["10.244.0.1"]),
        manifest("db", "10.0.0.11", &["10.244.0.3"]),
    ];
    fs::write(
        dir.path().join("web.yaml"),
        documents(std::slice::from_ref(&web)),
    )
    .unwrap();
    fs::write(dir.path().join("db.yaml"), documents(&[db])).unwrap();
    let before = Node::start(dir.path(), None);
    fs::write(dir.path().join("db.yaml"), [0xff]).unwrap();
    let mut after = Node::start(dir.path(), Some(&before.bench));
    assert_eq!(after.bench.writes(), NONE);
    fs::remove_file(dir.path().join("db.yaml")).unwrap();
    after.take_all();
    assert_eq!(after.bench.text_without_ids(), fresh(&documents(&[web])));
}

#[test]
fn endpoints_that_can_be_read_come_and_go_while_another_file_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let save = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let [service, slice] = manifest("web", "10.0.0.10", &["10.244.0.1"]);
    let other = manifest("web", "", &["10.244.0.9"])[1].replace("web-1", "web-2");
    save("service.yaml", &service);
    save("slice.yaml", &slice);
    save("other.yaml", &other);
    let before = Node::start(dir.path(), None);
    save("other.yaml", "kind: [");
    let mut after = Node::start(dir.path(), Some(&before.bench));
    assert_eq!(after.bench.writes(), NONE);

    save("slice.yaml", &manifest("web", "", &["10.244.0.2"])[1]);
    after.take();
    let text = after.bench.text();
    assert!(
        text.contains("10.244.0.2") && text.contains("10.244.0.9"),
        "{text}"
    );
    assert!(!text.contains("10.244.0.1:"), "{text}");

    save("other.yaml", "");
    save("slice.yaml", "");
    fs::remove_file(dir.path().join("slice.yaml")).unwrap();
    after.take();
    let text = after.bench.text();
    assert!(
        text.contains("10.244.0.9") && !text.contains("10.244.0.2"),
        "{text}"
    );
    fs::remove_file(dir.path().join("other.yaml")).unwrap();
    after.take_all();
    assert_eq!(after.bench.text_without_ids(), fresh(&service));
}
