// SPDX-License-Identifier: MIT OR Apache-2.0
//! A node with small maps that Services fill, and traffic through them meanwhile.
//!
//! Every Service has one port, one slot and one backend, which is the same pod for all of them.
//! **Invariant:** what was written is remembered apart from the maps and compared with them.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::maps::MapInfo;
use aya::programs::{SchedClassifier, TcAttachType};
use lb_agent::datapath::{Datapath, DatapathConfig, KernelTables, Size, Sizes};
use lb_agent::model::tables::{Op, TableContent, TableOp};
use lb_agent::tables::{ApplyError, Tables as _};
use lb_common::abi::{
    Backend, BackendState, Frontend, FrontendKey, List, SlotKey, SourceRange, SourceRangeKey, proto,
};
use lb_lab::bound;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{Pod, socket, wait_until};

pub(crate) const CLIENT: &str = "10.244.0.5";
pub(crate) const GATEWAY: &str = "10.244.0.1";
const BACKEND: &str = "10.244.0.6";
const BACKEND_PORT: u16 = 7777;
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two new flows.
const FLOW_EVERY: Duration = Duration::from_millis(4);

/// Maps of 64 entries that may have 1024.
pub(crate) fn small(bpffs: &Path) -> DatapathConfig {
    let size = Size {
        first: 64,
        most: 1024,
    };
    let mut config = DatapathConfig::new(bpffs);
    config.sizes = Sizes {
        frontends: size,
        slots: size,
        backends: size,
        source_ranges: size,
    };
    config
}

/// The address of the Service `n`.
fn address(n: u32) -> [u8; 4] {
    (u32::from(Ipv4Addr::new(10, 96, 0, 0)) + n).to_be_bytes()
}

/// Everything of the Service `n`, in the order of a plan; all but IPv6 is used by the traffic.
pub(crate) fn writes(n: u32) -> Vec<Op> {
    let v4 = [10, 244, 0, 6];
    let mut v6 = [0; 16];
    v6[12..].copy_from_slice(&n.to_be_bytes());
    let frontend = Frontend {
        service: n,
        cluster_count: 1,
        ..Frontend::default()
    };
    let range = |address| SourceRange {
        service: n,
        address,
    };
    vec![
        Op::V4(TableOp::PutBackend(
            n,
            Backend::new(n, 1, v4, BACKEND_PORT, BackendState::Active),
        )),
        Op::V6(TableOp::PutBackend(
            n,
            Backend::new(n, 1, v6, BACKEND_PORT, BackendState::Active),
        )),
        Op::PutSlot(SlotKey::new(n, List::Cluster, 0), n),
        Op::V4(TableOp::PutSourceRange(SourceRangeKey {
            prefix_len: 48,
            range: range([10, 244, 0, 0]),
        })),
        Op::V4(TableOp::PutFrontend(
            FrontendKey::new(address(n), 80, proto::UDP),
            frontend,
        )),
        Op::V6(TableOp::PutFrontend(
            FrontendKey::new(v6, 80, proto::UDP),
            frontend,
        )),
    ]
}

/// An agent whose runtime runs while something is waited for.
pub(crate) struct Node {
    runtime: Runtime,
    pub(crate) datapath: Datapath,
    grown: watch::Receiver<u64>,
    bpffs: PathBuf,
    /// What the maps must hold.
    pub(crate) wanted: TableContent,
}

impl Node {
    /// Starts on maps that hold `wanted` already.
    pub(crate) fn start(config: &DatapathConfig, wanted: TableContent) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let datapath = runtime.block_on(Datapath::start(config)).unwrap();
        let node = Self {
            runtime,
            grown: datapath.grown(),
            datapath,
            bpffs: config.bpffs.clone(),
            wanted,
        };
        node.check();
        node
    }

    /// One write, remembered if it succeeds.
    pub(crate) fn write(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.datapath.tables().apply(op)?;
        self.wanted.apply(op);
        Ok(())
    }

    /// Writes the Service `n`; all that is full grows.
    pub(crate) fn publish(&mut self, n: u32) {
        loop {
            let tries = writes(n).into_iter().map(|op| self.write(&op));
            let errors: Vec<_> = tries.filter_map(Result::err).collect();
            if errors.is_empty() {
                return;
            }
            for error in errors {
                self.relieve(&error);
            }
            self.wait_for_growth();
        }
    }

    /// Writes Services from `first` on until a map is full; returns that one and why.
    pub(crate) fn fill(&mut self, first: u32) -> (u32, ApplyError) {
        for n in first.. {
            for op in writes(n) {
                if let Err(error) = self.write(&op) {
                    return (n, error);
                }
            }
        }
        unreachable!("the maps are small");
    }

    /// Asks for room, as a pass that met `error` does.
    pub(crate) fn relieve(&mut self, error: &ApplyError) {
        let map = error.full_map().unwrap_or_else(|| panic!("{error}"));
        self.datapath.tables().relieve(map);
    }

    pub(crate) fn wait_for_growth(&mut self) {
        let grown = self.grown.changed();
        let waited = async { timeout(bound(Duration::from_secs(30)), grown).await };
        self.runtime.block_on(waited).unwrap().unwrap();
    }

    /// Lets the agent work for a while.
    pub(crate) fn run_for(&self, time: Duration) {
        self.runtime
            .block_on(async { tokio::time::sleep(time).await });
    }

    /// Lets the agent work until something holds.
    pub(crate) fn run_until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        wait_until(what, || {
            self.run_for(Duration::from_millis(1));
            holds()
        });
    }

    pub(crate) fn has_grown(&mut self) -> bool {
        self.grown.has_changed().unwrap()
    }

    /// What was written is what the agent and everyone else reads.
    pub(crate) fn check(&self) {
        let pinned = KernelTables::open(&self.bpffs).unwrap().dump().unwrap();
        assert_eq!(pinned, self.wanted);
    }

    /// Ends the agent wherever it stands.
    pub(crate) fn end(self) -> TableContent {
        drop(self.datapath);
        drop(self.runtime);
        self.wanted
    }
}

/// Id and entries of a pinned map.
pub(crate) fn pinned(bpffs: &Path, name: &str) -> (u32, u32) {
    let info = MapInfo::from_pin(bpffs.join(name)).unwrap();
    (info.id(), info.max_entries())
}

/// True when the program on the device uses the map with this id.
pub(crate) fn uses(device: &str, map: u32) -> bool {
    let used = |hook| {
        let (_, programs) = SchedClassifier::query_tcx(device, hook).unwrap();
        let ours = programs.into_iter().next().unwrap();
        ours.map_ids().unwrap().unwrap().contains(&map)
    };
    let ingress = used(TcAttachType::Ingress);
    // The program at egress uses the tables of flows alone.
    assert_eq!(programs_of(device).len(), 2);
    ingress
}

/// Ids of the programs on a device.
pub(crate) fn programs_of(device: &str) -> Vec<u32> {
    [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .flat_map(|hook| SchedClassifier::query_tcx(device, hook).unwrap().1)
        .map(|program| program.id())
        .collect()
}

/// Client pods, a backend pod, and flows between them through the Services.
pub(crate) struct Traffic {
    /// Services from 1 to this number are used.
    pub(crate) services: Arc<AtomicU32>,
    done: Arc<AtomicBool>,
    unheard: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(u32, u32)>>,
    echo: JoinHandle<()>,
}

impl Traffic {
    /// Begins when the first Service can be reached.
    pub(crate) fn start(clients: &[&Pod], backend: &Pod) -> Self {
        let services = Arc::new(AtomicU32::new(1));
        let done = Arc::new(AtomicBool::new(false));
        let unheard = Arc::new(AtomicBool::new(false));
        let echo = {
            let unheard = Arc::clone(&unheard);
            backend.run(move || echo(&unheard))
        };
        let client = |pod: &&Pod| {
            let (services, done) = (Arc::clone(&services), Arc::clone(&done));
            pod.run(move || ask(&services, &done))
        };
        Self {
            clients: clients.iter().map(client).collect(),
            services,
            done,
            unheard,
            echo,
        }
    }

    /// Ends it; every client must have had an answer to each of its questions.
    pub(crate) fn end(self) {
        self.done.store(true, Ordering::Relaxed);
        for client in self.clients {
            let (asked, lost) = client.join().unwrap();
            assert!(asked > 100, "asked only {asked}");
            assert_eq!(lost, 0, "of {asked}");
        }
        self.unheard.store(true, Ordering::Relaxed);
        self.echo.join().unwrap();
    }
}

fn echo(unheard: &AtomicBool) {
    let echo = socket(BACKEND, Duration::from_millis(100));
    let mut buffer = [0; 16];
    while !unheard.load(Ordering::Relaxed) {
        if let Ok((length, from)) = echo.recv_from(&mut buffer) {
            echo.send_to(&buffer[..length], from).unwrap();
        }
    }
}

/// A socket that takes answers of the Service `n` only.
fn dial(n: u32) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let address = Ipv4Addr::from(address(n));
    socket.connect((address, 80)).unwrap();
    socket
}

/// Asks the first Service by an old flow, and now and then each one in turn by a new flow: all of
/// them lead to one backend, where a client has no more flows than ports.
fn ask(services: &AtomicU32, done: &AtomicBool) -> (u32, u32) {
    let old = dial(1);
    let mut buffer = [0; 16];
    old.set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    wait_until("the first answer", || {
        old.send(b"hello").is_ok() && old.recv(&mut buffer).is_ok()
    });
    let (mut asked, mut lost) = (0, 0);
    let (mut last, mut round) = (Instant::now(), 0);
    while !done.load(Ordering::Relaxed) {
        let new = (last.elapsed() > FLOW_EVERY).then(|| {
            (last, round) = (Instant::now(), round + 1);
            dial(1 + round % services.load(Ordering::Relaxed))
        });
        for socket in [Some(&old), new.as_ref()].into_iter().flatten() {
            socket.set_read_timeout(Some(bound(PATIENCE))).unwrap();
            socket.send(b"hello").unwrap();
            asked += 1;
            lost += u32::from(socket.recv(&mut buffer).is_err());
        }
    }
    (asked, lost)
}

/// A client pod behind `device`.
pub(crate) fn client(device: &str, address: &str) -> Pod {
    Pod::routed(device, address, GATEWAY)
}

/// The client `pod0` and the backend `pod1`.
pub(crate) fn pods() -> (Pod, Pod) {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    (
        client("pod0", CLIENT),
        Pod::routed("pod1", BACKEND, GATEWAY),
    )
}
