// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent is ready only when every device that is to be managed has its programs, and says what is
//! not served all the same.
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
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
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
    let mut buffer = [0; 1024];
    match listener.recv(&mut buffer) {
        Ok(length) => Some(String::from_utf8(buffer[..length].to_vec()).unwrap()),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            None
        }
    }
}

/// Makes this thread a node with a BPF file system that only it sees; gives the place for pins.
fn make_node(directory: &Path) -> PathBuf {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let bpf = directory.join("bpf");
    fs::create_dir(&bpf).unwrap();
    mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), none).unwrap();
    bpf.join("lb")
}

/// A running agent, what it says, and where it writes its log.
struct Started {
    _agent: Agent,
    listener: UnixDatagram,
    log: PathBuf,
}

impl Started {
    /// Starts it on an empty folder of manifests, with these flags.
    fn new(directory: &Path, pins: &Path, words: &[&str]) -> Self {
        let manifests = directory.join("manifests");
        fs::create_dir(&manifests).unwrap();
        let socket = directory.join("notify");
        let listener = UnixDatagram::bind(&socket).unwrap();
        let log = directory.join("log");
        let agent = Command::new(env!("CARGO_BIN_EXE_lb-agent"))
            .args(["run", "--node", "node-a"])
            .args(words)
            .arg("--manifests")
            .arg(&manifests)
            .arg("--bpffs")
            .arg(pins)
            .env("NOTIFY_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log).unwrap())
            .stderr(fs::File::options().append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        Self {
            _agent: Agent(agent),
            listener,
            log,
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// What it says within `patience`.
    fn heard(&self, patience: Duration) -> Option<String> {
        heard(&self.listener, patience)
    }
}

fn a_device_lacks_a_program(directory: &Path) {
    let pins = make_node(directory);
    run(
        "ip",
        "link add lbt0 index 77 type veth peer name lbt1 index 78",
    );
    let in_the_way = pins.join("links/77-ingress");
    fs::create_dir_all(&in_the_way).unwrap();
    let flags = ["--include-interfaces", "lbt0,lbt1", "--socket-lb", "off"];
    let agent = Started::new(directory, &pins, &flags);
    let started = Instant::now();
    while !agent.log().contains("not ready: no programs on lbt0 yet") {
        assert!(started.elapsed() < START_MAX, "{}", agent.log());
        let early = agent.heard(Duration::from_millis(50));
        assert_eq!(early, None, "one device lacks a program\n{}", agent.log());
    }
    let early = agent.heard(Duration::from_secs(1));
    assert_eq!(early, None, "one device lacks a program\n{}", agent.log());
    fs::remove_dir(&in_the_way).unwrap();
    // Longer than the longest wait between two tries, shorter than the time between two audits.
    let ready = agent.heard(Duration::from_secs(15));
    assert_eq!(ready.as_deref(), Some("READY=1"), "{}", agent.log());
    assert!(in_the_way.is_file(), "the link is pinned");
}

/// Takes every cgroup v2 hierarchy away from this thread's mounts.
fn unmount_hierarchies() {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    for line in mounts.lines().rev() {
        let fields: Vec<_> = line.split(' ').collect();
        if fields.get(2) == Some(&"cgroup2") {
            umount2(fields[1], MntFlags::MNT_DETACH).unwrap();
        }
    }
}

fn the_hierarchy_is_missing(directory: &Path) {
    let pins = make_node(directory);
    unmount_hierarchies();
    let agent = Started::new(directory, &pins, &[]);
    let ready = agent.heard(START_MAX).unwrap_or_default();
    let (ready, detail) = ready.split_once('\n').unwrap_or((&ready, ""));
    assert_eq!(ready, "READY=1", "packets are served\n{}", agent.log());
    for text in [detail, &agent.log()] {
        assert!(
            text.contains("NOT served: no cgroup v2 hierarchy"),
            "{text}"
        );
        assert!(text.contains("mount -t cgroup2"), "{text}");
    }
    let doctor = Command::new(env!("CARGO_BIN_EXE_lb-agent"))
        .arg("doctor")
        .arg("--bpffs")
        .arg(&pins)
        .output()
        .unwrap();
    let told = String::from_utf8(doctor.stdout).unwrap();
    assert_eq!(doctor.status.code(), Some(1), "{told}");
    let line = told.lines().find(|line| line.contains("cgroup v2"));
    let line = line.unwrap_or_default();
    assert!(
        line.contains("LACKING") && line.contains("not served"),
        "{told}"
    );
    let pins = told.lines().find(|line| line.contains("pins"));
    assert!(pins.unwrap_or_default().contains("ok"), "{told}");
}

fn on_a_thread(node: fn(&Path)) {
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

#[test]
fn the_agent_gets_ready_when_the_last_device_has_its_programs() {
    on_a_thread(a_device_lacks_a_program);
}

#[test]
fn the_agent_gets_ready_without_a_hierarchy_and_says_who_is_not_served() {
    on_a_thread(the_hierarchy_is_missing);
}
