// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nodes, pods, an agent thread, and foreign programs that count packets.
//!
//! A node is the namespaces of one thread; whatever it makes vanishes with it, also after a
//! panic. A pod is a sleeping process in a network namespace.

use std::fs::File;
use std::io::Error;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use lb_agent::datapath::{Counts, Datapath, DatapathConfig, DatapathError, Learner, Managed};
use lb_lab::bound;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::{oneshot, watch};

/// Runs a test in namespaces of its own, with a BPF file system that only it sees.
pub(crate) fn on_a_node(test: impl FnOnce(&Path) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("LB_REQUIRE_BPF").is_none_or(|value| value != "1"),
            "these tests need root, and LB_REQUIRE_BPF=1 forbids to skip them"
        );
        eprintln!("skipped: needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let node = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), none).unwrap();
        ip("link set lo up");
        test(&path.join("lb"));
    });
    if let Err(panic) = node.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) {
    run("ip", words);
}

/// Runs a command in the node and expects it to succeed.
pub(crate) fn run(program: &str, words: &str) {
    let done = Command::new(program)
        .args(words.split_whitespace())
        .output()
        .unwrap_or_else(|error| panic!("start {program}: {error}"));
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {words}: {errors}");
}

/// Number of a device of the node.
pub(crate) fn index_of(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).unwrap()
}

/// Waits until something holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    let patience = bound(Duration::from_secs(15));
    while !holds() {
        assert!(begin.elapsed() < patience, "waited for: {what}");
        std::thread::park_timeout(Duration::from_micros(200));
    }
    begin.elapsed()
}

/// A network namespace that a sleeping process keeps.
pub(crate) struct Pod {
    process: Child,
}

impl Pod {
    /// An empty pod.
    pub(crate) fn new() -> Self {
        let process = Command::new("unshare")
            .args(["--net", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pod = Self { process };
        let ours = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        wait_until("the pod's namespace", || {
            std::fs::read_link(pod.namespace()).is_ok_and(|theirs| theirs != ours)
        });
        pod
    }

    /// A pod with `eth0` at `address`, linked to `device` of the node, which has `gateway`.
    pub(crate) fn routed(device: &str, address: &str, gateway: &str) -> Self {
        let pod = Self::new();
        ip(&format!(
            "link add {device} type veth peer name eth0 netns {}",
            pod.pid()
        ));
        pod.ip(&format!("addr add {address}/32 dev eth0"));
        pod.ip("link set lo up");
        pod.ip("link set eth0 up");
        pod.ip(&format!("route add {gateway} dev eth0 scope link"));
        pod.ip(&format!("route add default via {gateway}"));
        ip(&format!("addr add {gateway}/32 dev {device}"));
        ip(&format!("link set {device} up"));
        ip(&format!("route add {address} dev {device} scope link"));
        pod
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid()).into()
    }

    /// Runs `ip` inside.
    pub(crate) fn ip(&self, words: &str) {
        run(
            "nsenter",
            &format!("--net={} ip {words}", self.namespace().display()),
        );
    }

    /// Runs something inside, on a thread of its own.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = File::open(self.namespace()).unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            inside()
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// A socket that gives up waiting after a while.
pub(crate) fn socket(address: &str, patience: Duration) -> UdpSocket {
    let socket = UdpSocket::bind((address.parse::<IpAddr>().unwrap(), 7777)).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    socket
}

/// A socket of the node to a pod whose echo has answered once.
pub(crate) fn reach(node: &str, pod: &str) -> UdpSocket {
    let socket = socket(node, Duration::from_millis(50));
    socket.connect((pod, 7777)).unwrap();
    let mut buffer = [0; 16];
    wait_until("the first answer", || {
        socket.send(b"hello").is_ok() && socket.recv(&mut buffer).is_ok()
    });
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    socket
}

/// An agent on a thread of its own.
pub(crate) struct Agent {
    pub(crate) managed: watch::Receiver<Managed>,
    pub(crate) learner: Learner,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Counts>,
}

impl Agent {
    pub(crate) fn start(config: DatapathConfig) -> Self {
        Self::try_start(config).unwrap_or_else(|error| panic!("{error}: {error:?}"))
    }

    pub(crate) fn try_start(config: DatapathConfig) -> Result<Self, DatapathError> {
        let (stop, stopped) = oneshot::channel();
        let (started, result) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let datapath = match Datapath::start(&config).await {
                    Ok(datapath) => datapath,
                    Err(error) => {
                        started.send(Err(error)).unwrap();
                        return Counts {
                            repairs: 0,
                            swept: 0,
                        };
                    }
                };
                started
                    .send(Ok((datapath.managed(), datapath.learner())))
                    .unwrap();
                // A test that panics drops the other end, which ends the agent as well.
                drop(stopped.await);
                datapath.stop()
            })
        });
        let receive = |result: Receiver<Result<_, _>>| result.recv().expect("the agent panicked");
        let (managed, learner) = receive(result)?;
        Ok(Self {
            managed,
            learner,
            stop,
            thread,
        })
    }

    /// `NAME=role` of every managed device, sorted by name.
    pub(crate) fn roles(&self) -> Vec<String> {
        let managed = self.managed.borrow();
        let mut roles: Vec<_> = managed
            .devices
            .values()
            .map(|(name, role)| format!("{name}={}", role.name()))
            .collect();
        roles.sort();
        roles
    }

    pub(crate) fn stop(self) -> Counts {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap()
    }
}

/// Whether the kernel has TCX.
pub(crate) fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// Names of the TCX programs on a device, in the order in which they run.
pub(crate) fn tcx(device: &str, hook: TcAttachType) -> Vec<String> {
    SchedClassifier::query_tcx(device, hook).map_or_else(
        |_| Vec::new(),
        |(_, programs)| {
            programs
                .iter()
                .map(|info| info.name_as_str().unwrap_or_default().to_owned())
                .collect()
        },
    )
}

/// What `tc filter show` says of a device.
pub(crate) fn filters(device: &str, hook: &str) -> String {
    let shown = Command::new("tc")
        .args(["filter", "show", "dev", device, hook])
        .output()
        .unwrap();
    String::from_utf8_lossy(&shown.stdout).into_owned()
}

/// A program of someone else that counts packets and passes them on.
pub(crate) struct Counter {
    pub(crate) program: SchedClassifier,
    count: Array<MapData, u64>,
}

impl Counter {
    /// Loads it, pinned as `name` beside `bpffs`.
    pub(crate) fn load(bpffs: &Path, name: &str) -> Self {
        let map = create_array();
        let program = load_counter(map.as_raw_fd());
        let path = bpffs.with_file_name(name);
        pin(program.as_raw_fd(), &path);
        let map = Map::Array(MapData::from_fd(map).unwrap());
        Self {
            program: SchedClassifier::from_pin(&path).unwrap(),
            count: Array::try_from(map).unwrap(),
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.get(&0, 0).unwrap()
    }
}

const BPF_MAP_CREATE: i32 = 0;
const BPF_PROG_LOAD: i32 = 5;
const BPF_OBJ_PIN: i32 = 6;

/// One bpf(2) call with `union bpf_attr` as 32-bit words; returns a descriptor or 0.
fn bpf(command: i32, attr: &[u32]) -> RawFd {
    // SAFETY: the kernel reads `attr` only as far as its length says, and the buffers that it
    // points to live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
    assert!(
        result >= 0,
        "bpf command {command}: {}",
        Error::last_os_error()
    );
    RawFd::try_from(result).unwrap()
}

/// Takes a descriptor that the kernel has just made.
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: it was returned by the kernel a moment ago and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// An array map with one 64-bit value.
fn create_array() -> OwnedFd {
    const ARRAY: u32 = 2;
    own(bpf(BPF_MAP_CREATE, &[ARRAY, 4, 8, 1, 0, 0]))
}

/// `count[0] += 1; return TC_ACT_UNSPEC`, in machine code.
fn load_counter(map: RawFd) -> OwnedFd {
    const SCHED_CLS: u32 = 3;
    let map = u64::from(map.cast_unsigned());
    let instruction = |code: u64, registers: u64, offset: i16, imm: i32| {
        code | registers << 8
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(imm.cast_unsigned()) << 32
    };
    let program = [
        instruction(0x62, 0x0a, -4, 0),            // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 0xa2, 0, 0),             // r2 = r10
        instruction(0x07, 0x02, 0, -4),            // r2 += -4
        instruction(0x18, 0x11, 0, 0) | map << 32, // r1 = map
        instruction(0, 0, 0, 0),
        instruction(0x85, 0, 0, 1),     // r0 = bpf_map_lookup_elem(r1, r2)
        instruction(0x15, 0x00, 2, 0),  // if r0 == 0 skip 2
        instruction(0xb7, 0x01, 0, 1),  // r1 = 1
        instruction(0xdb, 0x10, 0, 0),  // lock *(u64 *)r0 += r1
        instruction(0xb7, 0x00, 0, -1), // r0 = TC_ACT_UNSPEC
        instruction(0x95, 0, 0, 0),     // return r0
    ];
    let license = c"GPL";
    let [code_low, code_high] = words(program.as_ptr().addr());
    let [license_low, license_high] = words(license.as_ptr().addr());
    let length = u32::try_from(program.len()).unwrap();
    let attr = [
        SCHED_CLS,
        length,
        code_low,
        code_high,
        license_low,
        license_high,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    own(bpf(BPF_PROG_LOAD, &attr))
}

fn pin(descriptor: RawFd, path: &Path) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let [low, high] = words(path.as_ptr().addr());
    bpf(BPF_OBJ_PIN, &[low, high, descriptor.cast_unsigned(), 0]);
}

/// A 64-bit pointer as two words in the machine's order.
fn words(address: usize) -> [u32; 2] {
    let bytes = u64::try_from(address).unwrap().to_ne_bytes();
    [
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    ]
}
