// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lab leaves nothing behind: after drop, panic, signals, and a killed run.
//!
//! **Invariant:** what is looked for is found while the lab lives, so that the absence later
//! means something. Read next: the library's `stale`.

#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{assert_direct, can_run};
use lb_lab::{Lab, stale};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Everything on this machine that carries a lab's id, by kind.
fn traces(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("lb-{id}-"))
        {
            found.push(format!("namespace {}", entry.path().display()));
        }
    }
    for file in ["/proc/self/mounts", "/proc/self/cgroup"] {
        let text = fs::read_to_string(file).unwrap();
        let lines = text.lines().filter(|line| line.contains(id));
        found.extend(lines.map(|line| format!("mount {line}")));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    for line in mounts.lines().filter(|line| line.contains(" cgroup2 ")) {
        let cgroup = Path::new(line.split(' ').nth(1).unwrap()).join(format!("lb-lab.{id}"));
        if cgroup.exists() {
            found.push(format!("cgroup {}", cgroup.display()));
        }
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        // A process that ended and waits for its parent holds nothing.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let zombie = stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'));
        if !zombie && cgroup.contains(&format!("lb-lab.{id}")) {
            found.push(format!("process {}", entry.path().display()));
        }
    }
    let dir = Path::new(stale::RUN_DIR).join(id);
    if dir.exists() {
        found.push(format!("directory {}", dir.display()));
    }
    found
}

fn kinds(traces: &[String]) -> Vec<&str> {
    let mut kinds: Vec<_> = traces
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    kinds.dedup();
    kinds
}

const EVERY_KIND: [&str; 5] = ["namespace", "mount", "cgroup", "process", "directory"];

/// A process with a lab; whatever happens to the test, it ends.
struct Other {
    child: Child,
    id: String,
}

impl Other {
    fn end(&mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.end(Signal::SIGTERM);
        }
    }
}

/// Starts `lb-lab up` and returns once the lab is there.
fn lab_in_another_process() -> Other {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lb-lab"))
        .args(["up", "--nodes", "1", "--pods", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let id = first
        .strip_prefix("lab ")
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    lines
        .find(|line| line.as_ref().unwrap().starts_with("Ctrl-C"))
        .unwrap()
        .unwrap();
    Other { child, id }
}

fn in_lab(id: &str, host: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-lab"));
    command.args(["exec", "--lab", id, host, "--"]).args(words);
    command
}

#[test]
fn drop_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let lab = Lab::builder().nodes(2).build().unwrap();
    let id = lab.id().to_owned();
    let (a, b) = (
        lab.node(0).pod("a", 5).unwrap(),
        lab.node(1).pod("b", 5).unwrap(),
    );
    let server = b.serve(80).unwrap();
    let capture = b.capture("any").unwrap();
    let mut sleeper = a.command("sleep").unwrap().arg("1000").spawn().unwrap();
    assert_direct(&a, &b, 80);
    assert_eq!(kinds(&traces(&id)), EVERY_KIND);
    drop(lab);
    assert_eq!(traces(&id), Vec::<String>::new());
    assert!(!sleeper.wait().unwrap().success());
    assert!(
        a.run(|| ()).is_err(),
        "a pod of a removed lab cannot be used"
    );
    assert!(b.serve(81).is_err());
    drop((server, capture));
}

#[test]
fn a_panic_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let mut id = String::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::builder().build().unwrap();
        lab.id().clone_into(&mut id);
        let pod = lab.node(0).pod("a", 5).unwrap();
        pod.run(|| panic!("this is meant to happen")).unwrap();
    }));
    assert!(result.is_err() && !id.is_empty());
    assert_eq!(traces(&id), Vec::<String>::new());
}

#[test]
fn a_lab_that_cannot_be_finished_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let others: Vec<_> = stale::list()
        .unwrap()
        .into_iter()
        .map(|lab| lab.id)
        .collect();
    assert!(
        Lab::builder()
            .node("good")
            .node("NOT GOOD")
            .build()
            .is_err()
    );
    for lab in stale::list().unwrap() {
        // Labs of other tests come and go; ours would have a host with this name.
        let ours = lab.hosts.iter().any(|host| host.name == "good");
        assert!(others.contains(&lab.id) || !ours, "{lab:?}");
    }
}

#[test]
fn ctrl_c_and_sigterm_remove_the_lab() {
    if !can_run() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut other = lab_in_another_process();
        let id = other.id.clone();
        let mut sleeper = in_lab(&id, "client", &["sleep", "1000"]).spawn().unwrap();
        let answer = in_lab(&id, "client", &["curl", "-s", "http://10.244.0.5:9376"]).output();
        assert_eq!(
            String::from_utf8(answer.unwrap().stdout).unwrap(),
            "web-0-0\n"
        );
        assert_eq!(kinds(&traces(&id)), EVERY_KIND);
        assert_eq!(other.end(signal), Some(130));
        assert!(!sleeper.wait().unwrap().success());
        assert_eq!(traces(&id), Vec::<String>::new());
    }
}

#[test]
fn a_lab_of_a_killed_process_is_removed_by_the_next_start_and_a_live_one_is_not() {
    if !can_run() {
        return;
    }
    let (mut killed, mut live) = (lab_in_another_process(), lab_in_another_process());
    let (killed_id, live_id) = (killed.id.clone(), live.id.clone());
    let mut sleeper = in_lab(&killed_id, "client", &["sleep", "1000"])
        .spawn()
        .unwrap();
    in_lab(&killed_id, "client", &["true"]).status().unwrap();
    assert_eq!(killed.end(Signal::SIGKILL), None);
    // Tests that run at the same time may have removed it already: they start labs, too.
    let lab = Lab::builder().build().unwrap();
    assert_eq!(traces(&killed_id), Vec::<String>::new());
    assert!(!sleeper.wait().unwrap().success());
    assert!(!traces(&live_id).is_empty());
    let answer = in_lab(
        &live_id,
        "client",
        &["curl", "-s", "http://[fd00:10:244::5]:9376"],
    );
    let answer = { answer }.output().unwrap();
    assert_eq!(String::from_utf8(answer.stdout).unwrap(), "web-0-0\n");
    drop(lab);
    live.end(Signal::SIGTERM);
    assert_eq!(traces(&live_id), Vec::<String>::new());
}

#[test]
fn labs_made_at_once_do_not_disturb_each_other() {
    if !can_run() {
        return;
    }
    let work = || {
        for _ in 0..3 {
            let lab = Lab::builder().build().unwrap();
            let (a, b) = (
                lab.node(0).pod("a", 5).unwrap(),
                lab.node(0).pod("b", 6).unwrap(),
            );
            let _server = b.serve(80).unwrap();
            assert_direct(&a, &b, 80);
            lab.remove().unwrap();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
}
