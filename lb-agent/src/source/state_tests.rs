// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is recorded is there after a restart; what cannot be read is not guessed.

use std::fs;

use super::*;
use crate::model::endpoint::{EndpointSlice, SliceKey};
use crate::model::service::IpFamily;
use crate::model::service::{Node, ServiceKey};

fn node(name: &str, zone: &str) -> Object {
    Object::Node(Node {
        leaving: false,
        name: name.to_owned(),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        zone: Some(zone.to_owned()),
    })
}

fn slice(name: &str) -> Object {
    Object::EndpointSlice(EndpointSlice {
        triggered_micros: None,
        key: SliceKey {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        },
        service: Some(ServiceKey::new("default", name)),
        family: IpFamily::V4,
        skipped: false,
        names: false,
        ports: Vec::new(),
        endpoints: Vec::new(),
        rejected: Vec::new(),
        ignored: Vec::new(),
    })
}

fn apply(object: Object) -> Update {
    Update::Changes(vec![Change::Apply(object)])
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

/// Records updates and ends.
fn session(folder: &Path, updates: &[Update]) -> Vec<Object> {
    let (state, before) = State::open(folder).unwrap();
    for update in updates {
        drop(state.record(update));
    }
    state.wait();
    before
}

fn file(folder: &Path) -> PathBuf {
    folder.join("objects.jsonl")
}

#[test]
fn what_was_known_last_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/on/demand");
    let updates = [
        Update::reset(vec![node("a", "1"), node("b", "1"), slice("x")]),
        apply(node("a", "2")),
        Update::Changes(vec![Change::Delete(node("b", "").reference())]),
        apply(node("c", "1")),
    ];
    assert_eq!(session(&path, &updates), []);
    let expected = vec![slice("x"), node("a", "2"), node("c", "1")];
    assert_eq!(session(&path, &[]), expected);
    assert_eq!(session(&path, &[]), expected, "reading changes nothing");
}

#[test]
fn a_list_replaces_its_kind_but_for_what_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let updates = [
        Update::reset(vec![node("a", "1"), node("b", "1"), slice("x")]),
        relist(
            Kind::Nodes,
            vec![node("c", "1")],
            vec![invalid(node("b", "").reference())],
        ),
    ];
    session(folder.path(), &updates);
    let expected = vec![slice("x"), node("b", "1"), node("c", "1")];
    assert_eq!(session(folder.path(), &[]), expected);
    let everything = Update::Reset {
        objects: vec![slice("y")],
        invalid: vec![invalid(node("b", "").reference())],
    };
    session(folder.path(), &[everything]);
    assert_eq!(session(folder.path(), &[]), [slice("y"), node("b", "1")]);
    session(folder.path(), &[Update::reset(vec![slice("y")])]);
    assert_eq!(session(folder.path(), &[]), [slice("y")]);
}

#[test]
fn a_torn_last_line_costs_that_line_only() {
    let folder = tempfile::tempdir().unwrap();
    session(
        folder.path(),
        &[Update::reset(vec![node("a", "1")]), apply(node("b", "1"))],
    );
    let whole = fs::read(file(folder.path())).unwrap();
    let last = whole[..whole.len() - 1]
        .iter()
        .rposition(|b| *b == b'\n')
        .unwrap()
        + 1;
    for cut in last..whole.len() {
        fs::write(file(folder.path()), &whole[..cut]).unwrap();
        let before = session(folder.path(), &[apply(node("c", "1"))]);
        assert_eq!(before, [node("a", "1")], "cut to {cut} bytes");
        let after = session(folder.path(), &[]);
        assert_eq!(
            after,
            [node("a", "1"), node("c", "1")],
            "cut to {cut} bytes"
        );
    }
}

#[test]
fn a_file_cut_anywhere_gives_what_was_known_at_some_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = vec![node("a", "1"), node("b", "1"), slice("x")];
    session(folder.path(), &[Update::reset(first.clone())]);
    session(folder.path(), &[Update::reset(vec![node("c", "1")])]);
    let whole = fs::read(file(folder.path())).unwrap();
    let first = vec![slice("x"), node("a", "1"), node("b", "1")];
    for cut in 0..=whole.len() {
        fs::write(file(folder.path()), &whole[..cut]).unwrap();
        let found = session(folder.path(), &[]);
        let known = [vec![], first.clone(), vec![node("c", "1")]];
        assert!(known.contains(&found), "cut to {cut} bytes: {found:?}");
    }
}

#[test]
fn garbage_and_other_versions_are_survived() {
    let folder = tempfile::tempdir().unwrap();
    let other = "{\"lbAgentState\":999}\n{\"apply\":{}}\n";
    for text in ["", "\n", "garbage", "\0\0\0\0\n\0", "{}\n", other] {
        fs::write(file(folder.path()), text).unwrap();
        assert_eq!(session(folder.path(), &[apply(slice("x"))]), [], "{text:?}");
        assert_eq!(session(folder.path(), &[]), [slice("x")], "{text:?}");
    }
    let mut text = fs::read(file(folder.path())).unwrap();
    text.extend_from_slice(b"\xff\xfe garbage in the middle\n{\"delete\":{\"Node\":\"a\"}}\n");
    fs::write(file(folder.path()), text).unwrap();
    assert_eq!(session(folder.path(), &[]), [slice("x")]);
}

#[test]
fn the_file_is_written_anew_when_most_of_it_is_dead() {
    let folder = tempfile::tempdir().unwrap();
    let (state, _) = State::open(folder.path()).unwrap();
    drop(state.record(&Update::reset(vec![slice("x")])));
    for zone in 0..10_000 {
        drop(state.record(&apply(node("a", &zone.to_string()))));
    }
    state.wait();
    let length = fs::metadata(file(folder.path())).unwrap().len();
    assert!(length < 128 * 1024, "{length} bytes for two objects");
    drop(state);
    let expected = [slice("x"), node("a", "9999")];
    assert_eq!(session(folder.path(), &[]), expected);
}

/// What the tests of a disk in trouble wait for at most.
const LIMIT: Duration = Duration::from_secs(20);

fn bounded(folder: &Path, changes: usize) -> State {
    let retry_after = Duration::from_millis(50);
    let bounds = Bounds {
        changes,
        retry_after,
    };
    State::open_within(folder, bounds).unwrap().0
}

/// Stops the disk until what this gives is dropped.
fn hang(state: &State) -> mpsc::Sender<()> {
    let (go_on, until) = mpsc::channel();
    state.order(Order::Hang(until));
    go_on
}

fn asks(state: &State) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let asked = async { tokio::time::timeout(LIMIT, state.is_behind()).await };
    runtime.block_on(asked).is_ok()
}

fn help(state: &State, objects: &[Object]) {
    assert!(asks(state));
    assert!(state.catch_up(|| true, objects.iter().cloned(), Vec::new()));
    state.wait();
}

#[test]
fn a_disk_that_hangs_costs_bounded_memory_and_leaves_a_state_that_was() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 64 * 1024;
    let state = bounded(folder.path(), limit);
    drop(state.record(&Update::reset(vec![node("a", "0"), slice("x")])));
    state.wait();
    let go_on = hang(&state);
    let mut recorded = 0;
    for zone in 1..10_000 {
        let zone = zone.to_string();
        drop(state.record(&apply(node("a", &zone))));
        let backlog = state.shared.backlog();
        assert!(backlog.changes <= limit);
        if !backlog.behind {
            recorded = zone.parse().unwrap();
        }
    }
    assert!((50..9_000).contains(&recorded), "{recorded} were recorded");
    // It would fit, but would be a change of what is not there.
    drop(state.record(&Update::Changes(vec![Change::Delete(
        slice("x").reference(),
    )])));
    assert!(state.catch_up(|| true, std::iter::empty(), Vec::new()));
    drop(go_on);
    assert!(asks(&state));
    let was = [slice("x"), node("a", &recorded.to_string())];
    assert_eq!(session(folder.path(), &[]), was, "true at that time");

    assert!(!state.catch_up(|| false, std::iter::empty(), Vec::new()));
    let now = [node("a", "9999"), node("b", "1")];
    assert!(state.catch_up(|| true, now.iter().cloned(), vec![slice("x").reference()]));
    drop(state.record(&apply(node("c", "1"))));
    state.wait();
    let all = [
        slice("x"),
        node("a", "9999"),
        node("b", "1"),
        node("c", "1"),
    ];
    assert_eq!(session(folder.path(), &[]), all, "and goes on from there");
}

#[test]
fn a_fourth_list_does_not_wait_beside_three() {
    let folder = tempfile::tempdir().unwrap();
    let state = bounded(folder.path(), 1 << 20);
    let go_on = hang(&state);
    drop(state.record(&Update::reset(vec![node("a", "1")])));
    drop(state.record(&relist(Kind::EndpointSlices, vec![slice("x")], Vec::new())));
    drop(state.record(&relist(Kind::Services, Vec::new(), Vec::new())));
    drop(state.record(&apply(node("b", "1"))));
    assert!(!state.shared.backlog().behind);
    drop(state.record(&relist(Kind::Nodes, vec![node("c", "1")], Vec::new())));
    drop(state.record(&apply(node("d", "1"))));
    drop(go_on);
    assert!(asks(&state));
    let before = [slice("x"), node("a", "1"), node("b", "1")];
    assert_eq!(session(folder.path(), &[]), before);
    let now = [node("c", "1"), node("d", "1")];
    assert!(state.catch_up(|| true, now.iter().cloned(), Vec::new()));
    state.wait();
    assert_eq!(session(folder.path(), &[]), now);
}

#[test]
fn after_a_write_that_failed_nothing_is_written_until_everything_is() {
    let folder = tempfile::tempdir().unwrap();
    let state = bounded(folder.path(), 1 << 20);
    drop(state.record(&Update::reset(vec![node("a", "1"), slice("x")])));
    state.order(Order::Break);
    drop(state.record(&apply(node("b", "1"))));
    drop(state.record(&relist(Kind::Nodes, vec![node("c", "1")], Vec::new())));
    state.wait();
    let before = [slice("x"), node("a", "1")];
    assert_eq!(session(folder.path(), &[]), before);
    let now = [slice("x"), node("c", "1")];
    help(&state, &now);
    drop(state.record(&apply(node("d", "1"))));
    state.wait();
    let all = [slice("x"), node("c", "1"), node("d", "1")];
    assert_eq!(session(folder.path(), &[]), all);
}

#[test]
fn what_a_partial_list_left_in_doubt_is_settled_once_it_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    session(
        folder.path(),
        &[Update::reset(vec![node("a", "1"), node("b", "1")])],
    );
    let state = bounded(folder.path(), 1 << 20);
    drop(state.record(&Update::Partial {
        objects: vec![node("c", "1")],
        unreadable: vec!["Node a".to_owned()],
    }));
    state.wait();
    let in_doubt = [node("a", "1"), node("b", "1"), node("c", "1")];
    assert_eq!(session(folder.path(), &[]), in_doubt);
    drop(state.record(&apply(node("a", "2"))));
    drop(state.record(&Update::Complete));
    help(&state, &[node("a", "2"), node("c", "1")]);
    assert_eq!(
        session(folder.path(), &[]),
        [node("a", "2"), node("c", "1")]
    );
}
