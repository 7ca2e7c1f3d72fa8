// SPDX-License-Identifier: MIT OR Apache-2.0
//! A folder of manifests while its files are being changed, and the watch on it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use lb_agent::model::snapshot::{Change, Object, Update};
use lb_agent::source::Delivery;
use lb_agent::source::manifests::folder::{Folder, Scan};
use lb_agent::source::manifests::watch;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A Service as YAML.
fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}

/// Changes as words, such as `+Service default/a 10.0.0.1`.
fn words(changes: &[Change]) -> Vec<String> {
    let word = |change: &Change| match change {
        Change::Apply(Object::Service(s)) => format!("+{} {}", s.key.name, s.cluster_ips[0]),
        Change::Apply(other) => format!("+{}", other.reference()),
        Change::Delete(reference) => format!("-{reference}"),
        Change::Invalid(invalid) => format!("!{}", invalid.object),
    };
    changes.iter().map(word).collect()
}

fn changes(scan: &Scan) -> Vec<String> {
    words(&scan.changes)
}

fn problems(scan: &Scan) -> Vec<String> {
    scan.problems.iter().map(ToString::to_string).collect()
}

const NONE: [String; 0] = [];

#[test]
fn a_half_saved_file_takes_no_service_down() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(dir.path());
    let good = format!(
        "{}---\n{}",
        service("a", "10.0.0.1"),
        service("b", "10.0.0.2")
    );
    write(dir.path(), "web.yaml", &good);
    assert_eq!(
        changes(&folder.scan().unwrap()),
        ["+a 10.0.0.1", "+b 10.0.0.2"]
    );

    let half = format!(
        "{}---\napiVersion: v1\nkind: Serv",
        service("a", "10.0.0.9")
    );
    write(dir.path(), "web.yaml", &half[..half.len() - 8]);
    let scan = folder.scan().unwrap();
    assert_eq!(
        changes(&scan),
        ["+a 10.0.0.9"],
        "what can be read is in force"
    );
    let told = problems(&scan).join("\n");
    assert!(
        told.contains("web.yaml: document 2 (line 8): malformed YAML"),
        "{told}"
    );
    assert!(
        told.contains("web.yaml: Service default/b: kept as it was"),
        "{told}"
    );

    write(dir.path(), "web.yaml", "");
    let scan = folder.scan().unwrap();
    assert_eq!(changes(&scan), NONE);
    assert!(problems(&scan)[0].contains("web.yaml: the file is empty; its 2 objects are kept"));

    write(dir.path(), "web.yaml", &service("a", "10.0.0.9"));
    let scan = folder.scan().unwrap();
    assert_eq!(changes(&scan), ["-Service default/b"], "now it is meant");
    assert_eq!(scan.healed, ["web.yaml"]);
}

#[test]
fn only_a_cut_between_documents_passes_for_an_edit() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(dir.path());
    let first = service("a", "10.0.0.1");
    let both = format!("{first}---\n{}", service("b", "10.0.0.2"));
    write(dir.path(), "web.yaml", &both);
    folder.scan().unwrap();
    let boundary = first.len() + "---".len()..=first.len() + "---\n".len();
    for cut in (first.len() + 1..both.len() - 2).filter(|cut| !boundary.contains(cut)) {
        write(dir.path(), "web.yaml", &both[..cut]);
        assert_eq!(changes(&folder.scan().unwrap()), NONE, "cut at {cut}");
        assert_eq!(folder.unreadable(), ["web.yaml"], "cut at {cut}");
    }
    for cut in boundary.chain([first.len()]) {
        write(dir.path(), "web.yaml", &both[..cut]);
        // To keep both would be better; nothing in the text says that there was more.
        assert_eq!(changes(&folder.scan().unwrap()), ["-Service default/b"]);
        write(dir.path(), "web.yaml", &both);
        assert_eq!(changes(&folder.scan().unwrap()), ["+b 10.0.0.2"]);
    }
}

#[test]
fn a_list_without_items_is_one_that_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(dir.path());
    let list = "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n  \
                spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n";
    write(dir.path(), "web.yaml", list);
    assert_eq!(changes(&folder.scan().unwrap()), ["+a 10.0.0.1"]);
    for cut in [
        "kind: Serv",
        "kind: ServiceL",
        "kind: ServiceList",
        "items:",
        "- metadata: {name: a}",
    ] {
        let end = list.find(cut).unwrap() + cut.len();
        write(dir.path(), "web.yaml", &list[..end]);
        assert_eq!(changes(&folder.scan().unwrap()), NONE, "cut after {cut}");
    }
    write(
        dir.path(),
        "web.yaml",
        "apiVersion: v1\nkind: ServiceList\nitems: []\n",
    );
    assert_eq!(changes(&folder.scan().unwrap()), ["-Service default/a"]);
}

#[test]
fn a_file_that_is_deleted_takes_its_objects_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(dir.path());
    write(dir.path(), "a.yaml", &service("a", "10.0.0.1"));
    write(dir.path(), "b.yml", &service("b", "10.0.0.2"));
    write(dir.path(), "notes.txt", "no manifest");
    write(dir.path(), ".a.yaml.swp", "an editor's own file");
    assert_eq!(
        changes(&folder.scan().unwrap()),
        ["+a 10.0.0.1", "+b 10.0.0.2"]
    );
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(changes(&folder.scan().unwrap()), ["-Service default/a"]);
}

#[test]
fn of_two_definitions_the_first_by_file_name_is_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(dir.path());
    write(dir.path(), "b.yaml", &service("web", "10.0.0.2"));
    assert_eq!(changes(&folder.scan().unwrap()), ["+web 10.0.0.2"]);
    write(dir.path(), "a.yaml", &service("web", "10.0.0.1"));
    let scan = folder.scan().unwrap();
    assert_eq!(changes(&scan), ["+web 10.0.0.1"]);
    let expected =
        "a.yaml: Service default/web: is defined in several files; the one in a.yaml is in force";
    assert_eq!(problems(&scan), [expected]);
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(changes(&folder.scan().unwrap()), ["+web 10.0.0.2"]);
}

#[test]
fn json_is_read_and_its_errors_name_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(dir.path());
    let json = r#"{"apiVersion": "v1", "kind": "List", "items": [
      {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
       "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}]}"#;
    write(dir.path(), "a.json", json);
    assert_eq!(changes(&folder.scan().unwrap()), ["+a 10.0.0.1"]);
    write(dir.path(), "a.json", &json[..json.len() - 2]);
    let told = problems(&folder.scan().unwrap()).join("\n");
    assert!(
        told.contains("a.json: document 1 (line 3): malformed JSON"),
        "{told}"
    );
}

#[test]
fn a_file_that_is_no_text_is_reported_and_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(dir.path());
    write(dir.path(), "a.yaml", &service("a", "10.0.0.1"));
    folder.scan().unwrap();
    fs::write(dir.path().join("a.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let scan = folder.scan().unwrap();
    assert_eq!(changes(&scan), NONE);
    assert_eq!(
        problems(&scan),
        ["a.yaml: not a text in UTF-8; its 1 objects are kept as they were"]
    );
}

#[test]
fn a_folder_that_cannot_be_read_is_no_empty_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifests");
    fs::create_dir(&path).unwrap();
    let mut folder = Folder::new(&path);
    write(&path, "a.yaml", &service("a", "10.0.0.1"));
    folder.scan().unwrap();
    fs::remove_dir_all(&path).unwrap();
    assert!(folder.scan().is_err());
    assert_eq!(folder.objects().len(), 1);
}

/// What the watch sends until it has sent `wanted`; the time limit is for a test that fails.
fn wait_for(updates: &mut UnboundedReceiver<Delivery>, wanted: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut seen: Vec<String> = Vec::new();
    let wait = async {
        while !seen.iter().any(|word| word == wanted) {
            match updates.recv().await.unwrap().update {
                Update::Reset { objects, .. } => {
                    let all: Vec<Change> = objects.into_iter().map(Change::Apply).collect();
                    seen.extend(words(&all));
                }
                Update::Partial { unreadable, .. } => {
                    seen.push(format!("unreadable {}", unreadable.join(" ")));
                }
                Update::Changes(changes) => seen.extend(words(&changes)),
                Update::Complete => seen.push("complete".to_owned()),
                Update::Relist { kind, .. } => seen.push(format!("relist {kind:?}")),
            }
        }
    };
    // Shorter than the look without an event, so that only events can be what helped.
    let limit = Duration::from_secs(5);
    let ended = runtime.block_on(async { tokio::time::timeout(limit, wait).await });
    assert!(ended.is_ok(), "waited for {wanted}, saw {seen:?}");
    seen
}

#[test]
fn the_watch_sees_files_written_renamed_over_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &service("a", "10.0.0.1"));
    let (sender, mut updates) = unbounded_channel();
    watch(dir.path(), sender).unwrap();
    wait_for(&mut updates, "+a 10.0.0.1");

    write(dir.path(), "a.yaml", &service("a", "10.0.0.2"));
    wait_for(&mut updates, "+a 10.0.0.2");

    write(dir.path(), ".a.yaml.tmp", &service("a", "10.0.0.3"));
    fs::rename(dir.path().join(".a.yaml.tmp"), dir.path().join("a.yaml")).unwrap();
    wait_for(&mut updates, "+a 10.0.0.3");

    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    wait_for(&mut updates, "-Service default/a");
}

#[test]
fn many_writes_in_a_row_end_in_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, mut updates) = unbounded_channel();
    watch(dir.path(), sender).unwrap();
    for n in 1..=200 {
        write(dir.path(), "a.yaml", &service("a", &format!("10.0.0.{n}")));
    }
    wait_for(&mut updates, "+a 10.0.0.200");
}

#[test]
fn the_watch_follows_the_link_swap_of_a_configmap_mount() {
    let dir = tempfile::tempdir().unwrap();
    for (version, ip) in [("..v1", "10.0.0.1"), ("..v2", "10.0.0.2")] {
        fs::create_dir(dir.path().join(version)).unwrap();
        write(&dir.path().join(version), "a.yaml", &service("a", ip));
    }
    symlink("..v1", dir.path().join("..data")).unwrap();
    symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
    let (sender, mut updates) = unbounded_channel();
    watch(dir.path(), sender).unwrap();
    wait_for(&mut updates, "+a 10.0.0.1");

    symlink("..v2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    wait_for(&mut updates, "+a 10.0.0.2");
}

#[test]
fn the_watch_survives_a_folder_that_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifests");
    fs::create_dir(&path).unwrap();
    write(&path, "a.yaml", &service("a", "10.0.0.1"));
    let (sender, mut updates) = unbounded_channel();
    watch(&path, sender).unwrap();
    wait_for(&mut updates, "+a 10.0.0.1");

    // Moved away whole: what it held stays in force until there is a folder again.
    fs::rename(&path, dir.path().join("old")).unwrap();
    fs::create_dir(dir.path().join("new")).unwrap();
    write(&dir.path().join("new"), "a.yaml", &service("a", "10.0.0.2"));
    fs::rename(dir.path().join("new"), &path).unwrap();
    let seen = wait_for(&mut updates, "+a 10.0.0.2");
    assert_eq!(seen, ["+a 10.0.0.2"], "no gap between the two");

    write(&path, "b.yaml", &service("b", "10.0.0.3"));
    wait_for(&mut updates, "+b 10.0.0.3");
}
