// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bench measures what it says, in the shape that it says, and leaves nothing behind.
//!
//! **Invariant:** it is run as a person runs it, with the real agent; how good the numbers are is not
//! judged here, since the programs may be unoptimised and the machine busy.
//! Read next: the library's `bench`.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helper ends at the first failure"
)]

#[expect(dead_code, reason = "only the privilege check is needed here")]
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::can_run;
use lb_lab::agent::find_binary;
use lb_lab::stale;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn bench(agent: &Path, what: &str, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-lab"));
    command
        .args(["bench", what])
        .args(words.split_whitespace())
        .env("LB_AGENT", agent)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The id of the lab of which the bench told first.
fn lab_of(told: &str) -> &str {
    let (_, rest) = told.split_once("lab ").unwrap();
    rest.split(',').next().unwrap()
}

fn is_there(lab: &str) -> bool {
    stale::list().unwrap().iter().any(|found| found.id == lab)
}

fn number(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap_or(f64::NAN)
}

fn assert_plausible(cluster: &Value) {
    assert_eq!(cluster["services"], 100);
    assert_eq!(cluster["endpointsPerService"], 5);
    assert_eq!(cluster["bigService"], 300);
    let positive = [
        "cpuPerChangeMicros",
        "rssMiB",
        "peakRssMiB",
        "restartToProgrammedMs",
        "auditCpuMs",
    ];
    for name in positive {
        assert!(number(cluster, name) > 0.0, "{name} in {cluster}");
    }
    assert!(number(cluster, "idleCpuPercent") < 50.0, "{cluster}");
    assert!(number(cluster, "serverCpuSeconds") > 0.0, "{cluster}");
    let list = &cluster["listToProgrammedMs"];
    let [least, middle, most] = ["min", "median", "max"].map(|name| number(list, name));
    assert!(0.0 < least && least <= middle && middle <= most, "{list}");
    for name in ["changeMicros", "bigChangeMicros"] {
        let change = &cluster[name];
        let (half, nearly_all) = (number(change, "p50"), number(change, "p99"));
        assert!(0.0 < half && half <= nearly_all, "{name}: {change}");
        assert!(number(change, "changes") > 0.0, "{name}: {change}");
    }
}

#[test]
fn a_small_cluster_gives_every_number_and_a_table() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("control.json");
    let words =
        "--services 100 --big-service 300 --runs 1 --changes 60 --interval-ms 10 --idle-secs 1";
    let mut command = bench(&find_binary().unwrap(), "control", words);
    let output = command.arg("--json").arg(&file).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert!(number(&report["machine"], "cpus") > 0.0, "{report}");
    assert!(report["machine"]["kernel"].is_string(), "{report}");
    assert_eq!(report["runs"], 1);
    assert_eq!(report["clusters"].as_array().unwrap().len(), 1);
    assert_plausible(&report["clusters"][0]);
    // No cluster has the size that a target speaks of.
    assert_eq!(report["targets"], Value::Array(Vec::new()));
    for row in ["list to programmed, ms", "change p50 / p99, us", "idle, %"] {
        assert!(shown.contains(row), "{row} in\n{shown}");
    }
}

/// The bench as far as a lab of its own.
fn begun(agent: &Path) -> (Child, String) {
    let mut child = bench(agent, "control", "--services 100 --idle-secs 600")
        .spawn()
        .unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert!(line.contains("listing"), "{line}");
    // Whatever else it says must not stop it.
    thread::spawn(move || told.lines().for_each(drop));
    (child, lab_of(&line).to_owned())
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let (mut child, lab) = begun(&find_binary().unwrap());
    assert!(is_there(&lab), "{lab}");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "it goes on");
        thread::park_timeout(Duration::from_millis(10));
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!is_there(&lab), "{lab}");
}

#[test]
fn an_agent_that_ends_is_an_error_and_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let output = bench("/bin/false".as_ref(), "control", "--services 100")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("the agent ended early"), "{told}");
    assert!(!is_there(lab_of(&told)), "{told}");
}

/// A case of the bench of connections that was measured in both rounds, without a failure.
fn assert_connections(case: &Value) {
    let name = case["name"].as_str().unwrap();
    assert_eq!(case["failed"], 0, "{case}");
    assert!(case["error"].is_null(), "{case}");
    let (least, middle) = (number(case, "minNs"), number(case, "medianNs"));
    assert!(0.0 < least && least <= middle, "{case}");
    assert!(number(case, "ratioToFloor") > 0.0, "{case}");
    assert!(number(case, "perSecond") > 0.0, "{case}");
    assert_eq!(case["roundsNs"].as_array().unwrap().len(), 2);
    if name.contains("/clean/") {
        assert_eq!(case["ratioToSameWay"], 1.0, "{case}");
    }
}

#[test]
fn connections_lead_through_every_contestant_and_none_fails() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("connections.json");
    let words = "--services 12 --rounds 2 --turn-ms 40";
    let mut command = bench(&find_binary().unwrap(), "connections", words);
    let output = command.arg("--json").arg(&file).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(!is_there(lab_of(&String::from_utf8_lossy(&output.stderr))));
    let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert!(number(&report, "floorNs") > 0.0, "{report}");
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2 + 6 * 5);
    cases.iter().for_each(assert_connections);
    let names: BTreeSet<_> = cases.iter().map(|case| case["name"].as_str()).collect();
    assert_eq!(names.len(), cases.len());
    for setup in report["setups"].as_array().unwrap() {
        assert!(setup["error"].is_null(), "{setup}");
        // Who needs conntrack has it, and who should be without it is.
        let is_without = ["clean", "ours"].contains(&setup["contestant"].as_str().unwrap());
        assert_eq!(setup["conntrackEntries"] == 0, is_without, "{setup}");
    }
    let failed = &report["targets"][0];
    assert_eq!(
        (&failed["measured"], &failed["met"]),
        (&0.0.into(), &true.into())
    );
    for row in [
        "12 Services",
        "ours-cni",
        "iptables-legacy",
        "service-last of 12",
    ] {
        assert!(shown.contains(row), "{row} in\n{shown}");
    }
}
