// SPDX-License-Identifier: MIT OR Apache-2.0
//! The demo holds what it says, says when something is not so, and leaves nothing behind.
//!
//! **Invariant:** it is run as a person runs it, as a program with the real agent (`LB_AGENT`,
//! else where cargo puts it). Read next: the library's `demo`.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helper ends at the first failure"
)]

#[expect(dead_code, reason = "only the privilege check is needed here")]
mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::can_run;
use lb_lab::agent::find_binary;
use lb_lab::stale;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn demo(agent: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-lab"));
    command.arg("demo").env("LB_AGENT", agent);
    command
}

/// The id of the lab of a told demo, from the first path below the labs' directory.
fn lab_of(told: &str) -> &str {
    let start = format!("{}/", stale::RUN_DIR);
    let (_, rest) = told.split_once(&start).unwrap();
    rest.split('/').next().unwrap()
}

fn assert_gone(id: &str) {
    assert!(
        !Path::new(stale::RUN_DIR).join(id).exists(),
        "files of {id}"
    );
    let prefix = format!("lb-{id}-");
    let mut names = fs::read_dir("/run/netns").unwrap().flatten();
    assert!(
        !names.any(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)),
        "namespaces of {id}"
    );
}

#[test]
fn the_demo_tells_all_its_steps_and_ends_well() {
    if !can_run() {
        return;
    }
    let start = Instant::now();
    let output = demo(&find_binary().unwrap()).output().unwrap();
    let time = start.elapsed();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    // Seconds on an idle machine; what is promised holds on a busy one too.
    assert!(time < Duration::from_mins(2), "took {time:?}:\n{told}");
    for part in [
        "client $ curl",
        "hostnames-0uton\n",
        "hostnames-yp2kp\n",
        "hostnames-bvc05\n",
        "✓ three requests, three different pods",
        "✓ 300 more requests: 100 from each pod, no error",
        "bpftool map dump pinned",
        "\"address\": [10,0,1,175",
        "- hostnames-yp2kp   10.244.0.6 ",
        "✓ 300 more requests: 150 from each of the two, no error",
        "+ hostnames-k3x9q   10.244.1.5 ",
        "✓ 300 more requests: 100 from each of the three, no error",
        "nothing is left",
        "✓ Everything was as told.",
        "cargo xtask demo --keep",
    ] {
        assert!(told.contains(part), "{part:?} is missing in\n{told}");
    }
    assert!(!told.contains('\x1b'), "colour in a pipe:\n{told}");
    assert_gone(lab_of(&told));
}

#[test]
fn an_agent_that_balances_otherwise_is_found_out() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let agent = dir.path().join("lb-agent");
    let real = find_binary().unwrap();
    let script = format!(
        "#!/bin/sh\nexec {} \"$@\" --algorithm random\n",
        real.display()
    );
    fs::write(&agent, script).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let output = demo(&agent).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("✗ not as told: ") && told.contains("seen instead: "),
        "{told}"
    );
    assert!(!told.contains("Everything was as told"), "{told}");
    assert_gone(lab_of(&told));
}

#[test]
fn an_agent_that_does_not_start_ends_the_demo_with_its_words() {
    if !can_run() {
        return;
    }
    let output = demo("/bin/ls".as_ref()).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("unrecognized option"), "{told}");
    assert_gone(lab_of(&told));
}

#[test]
fn a_kept_lab_obeys_the_printed_commands_and_goes_with_ctrl_c() {
    if !can_run() {
        return;
    }
    let mut command = demo(&find_binary().unwrap());
    let mut child = command
        .arg("--keep")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut told = String::new();
    while !told.contains("Ctrl-C here removes everything") {
        assert_ne!(out.read_line(&mut told).unwrap(), 0, "{told}");
    }
    let after = |what: &str| {
        let (_, rest) = told.split_once(what).unwrap();
        rest.lines().nth(1).unwrap().trim().to_owned()
    };
    let answer = |line: &str| {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let ask = after("# ask once");
    let pods = [
        "hostnames-0uton\n",
        "hostnames-bvc05\n",
        "hostnames-k3x9q\n",
    ];
    assert!(pods.contains(&answer(&ask).as_str()));
    answer(&after("# take hostnames-0uton out"));
    let dump = after("# the Service, its backends");
    let until = Instant::now() + Duration::from_secs(5);
    while !answer(&dump).contains("\"cluster_count\": 2") {
        assert!(Instant::now() < until, "{}", answer(&dump));
    }
    for _ in 0..4 {
        assert!(pods[1..].contains(&answer(&ask).as_str()));
    }
    for _ in 0..2 {
        // An impatient person does not stop the removal half-way.
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    }
    out.read_to_string(&mut told).unwrap();
    assert!(child.wait().unwrap().success(), "{told}");
    assert!(told.contains("nothing is left"), "{told}");
    assert_gone(lab_of(&told));
}
