// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent is ready only when every device that is to be managed has its programs.
//!
//! A directory where a link is to be pinned makes attaching to one device fail, until it is
//! removed. The node is the namespaces of one thread, and vanishes with it.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests; a skipped test says why"
)]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// How long the agent may take until it says what it lacks.
const START_MAX: Duration = Duration::from_secs(15);

/// The agent, ended with the test.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn run(program: &str, words: &str) {
    let words = words.split_whitespace();
    let status = Command::new(program).args(words).status().unwrap();
    assert!(status.success(), "{program}");
}

/// What the agent says within `patience`.
fn heard(listener: &UnixDatagram, patience: Duration) -> Option<String> {
    listener.set_read_timeout(Some(patience)).unwrap();
    let mut buffer = [0; 64];
    match listener.recv(&mut buffer) {
        Ok(length) => Some(String::from_utf8(buffer[..length].to_vec()).unwrap()),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            None
        }
    }
}

fn node(directory: &Path) {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let bpf = directory.join("bpf");
    fs::create_dir(&bpf).unwrap();
    mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), none).unwrap();
    run(
        "ip",
        "link add lbt0 index 77 type veth peer name lbt1 index 78",
    );
    let in_the_way = bpf.join("lb/links/77-ingress");
    fs::create_dir_all(&in_the_way).unwrap();

    let manifests = directory.join("manifests");
    fs::create_dir(&manifests).unwrap();
    let socket = directory.join("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    let log = directory.join("log");
    let agent = Command::new(env!("CARGO_BIN_EXE_lb-agent"))
        .args([
            "run",
            "--node",
            "node-a",
            "--include-interfaces",
            "lbt0,lbt1",
            "--socket-lb",
            "off",
        ])
        .arg("--manifests")
        .arg(&manifests)
        .arg("--bpffs")
        .arg(bpf.join("lb"))
        .env("NOTIFY_SOCKET", &socket)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&log).unwrap())
        .stderr(fs::File::options().append(true).open(&log).unwrap())
        .spawn()
        .unwrap();
    let _agent = Agent(agent);
    let log = || fs::read_to_string(&log).unwrap();

    let started = Instant::now();
    while !log().contains("not ready: no programs on lbt0 yet") {
        assert!(started.elapsed() < START_MAX, "{}", log());
        let early = heard(&listener, Duration::from_millis(50));
        assert_eq!(early, None, "one device lacks a program\n{}", log());
    }
    let early = heard(&listener, Duration::from_secs(1));
    assert_eq!(early, None, "one device lacks a program\n{}", log());
    fs::remove_dir(&in_the_way).unwrap();
    // Longer than the longest wait between two tries, shorter than the time between two audits.
    let ready = heard(&listener, Duration::from_secs(15));
    assert_eq!(ready.as_deref(), Some("READY=1"), "{}", log());
    assert!(in_the_way.is_file(), "the link is pinned");
}

#[test]
fn the_agent_gets_ready_when_the_last_device_has_its_programs() {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("LB_REQUIRE_BPF").is_none_or(|value| value != "1"),
            "this test needs root, and LB_REQUIRE_BPF=1 forbids to skip it"
        );
        eprintln!("skipped: needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let node = std::thread::spawn(move || node(&path));
    if let Err(panic) = node.join() {
        std::panic::resume_unwind(panic);
    }
}
