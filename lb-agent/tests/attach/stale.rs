// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connected sockets of UDP whose backend goes: they are ended, and no others.
//!
//! No program translates here: the test writes what programs at the socket would have written.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData};
use lb_agent::datapath::{Datapath, DatapathConfig, KernelTables, SocketLb};
use lb_agent::model::tables::{Op, TableOp};
use lb_agent::tables::Tables as _;
use lb_common::abi::{
    Backend, BackendState, Frontend, FrontendKey, Prefix, PrefixKey, PrefixTable, SocketKey,
    SocketPeer, Way, names, proto,
};

use crate::idle::ticks_of;
use crate::support::{ip, on_a_node, wait_until};

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: only used with the types of the ABI, which have no padding.
unsafe impl<T: Copy + 'static> aya::Pod for Raw<T> {}

type Sockets<A> = HashMap<MapData, Raw<SocketKey<A>>, Raw<SocketPeer<A>>>;

const SERVICE_V4: u32 = 1;
const SERVICE_V6: u32 = 2;
const SERVICE_TCP: u32 = 3;
const GENERATION: u32 = 7;
const EPOCH: u32 = 3;
pub(crate) const FRONTEND: &str = "10.96.0.10";
/// Of each family the addresses of two backends of UDP; their ids are 1, 2 and 11, 12.
pub(crate) const BACKENDS: [&str; 2] = ["10.244.0.5", "10.244.0.6"];
const BACKENDS_V6: [&str; 2] = ["fd00:244::5", "fd00:244::6"];
/// Longer than from a change to the end of the scan for it.
pub(crate) const LONG: Duration = Duration::from_millis(600);

/// A node with the kernel side running, where nothing happens beside what a test does.
pub(crate) struct Node {
    datapath: Datapath,
    runtime: tokio::runtime::Runtime,
    v4: Sockets<[u8; 4]>,
    v6: Sockets<[u8; 16]>,
    destroyed: Arc<AtomicU64>,
}

impl Node {
    /// With frontends and backends in the tables, and the addresses of backends on this node.
    fn start(bpffs: &Path) -> Self {
        Self::fill(&DatapathConfig::new(bpffs))
    }

    /// The same as chosen.
    pub(crate) fn fill(config: &DatapathConfig) -> Self {
        for address in BACKENDS {
            ip(&format!("addr add {address}/32 dev lo"));
        }
        for address in BACKENDS_V6 {
            ip(&format!("addr add {address}/128 dev lo nodad"));
        }
        let mut node = Self::restart(config);
        let v6 = "fd00:96::10"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets();
        node.apply(Op::V4(put_frontend(
            [10, 96, 0, 10],
            proto::UDP,
            (SERVICE_V4, GENERATION),
        )));
        node.apply(Op::V6(put_frontend(
            v6,
            proto::UDP,
            (SERVICE_V6, GENERATION),
        )));
        node.apply(Op::V4(put_frontend(
            [10, 96, 0, 10],
            proto::TCP,
            (SERVICE_TCP, GENERATION),
        )));
        for (id, address) in (1..).zip(BACKENDS) {
            node.apply(Op::V4(put_backend(id, v4(address), (SERVICE_V4, EPOCH))));
        }
        for (id, address) in (11..).zip(BACKENDS_V6) {
            let address: std::net::Ipv6Addr = address.parse().unwrap();
            node.apply(Op::V6(put_backend(
                id,
                address.octets(),
                (SERVICE_V6, EPOCH),
            )));
        }
        node.apply(Op::V4(put_backend(
            3,
            v4(BACKENDS[0]),
            (SERVICE_TCP, EPOCH),
        )));
        node
    }

    /// With the tables that are there.
    fn restart(config: &DatapathConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let datapath = runtime.block_on(Datapath::start(config)).unwrap();
        let open = |name| Map::LruHashMap(MapData::from_pin(config.bpffs.join(name)).unwrap());
        Self {
            destroyed: datapath.destroyed_counter(),
            datapath,
            runtime,
            v4: HashMap::try_from(open(names::SOCKETS_V4)).unwrap(),
            v6: HashMap::try_from(open(names::SOCKETS_V6)).unwrap(),
        }
    }

    pub(crate) fn stop(self) {
        let _entered = self.runtime.enter();
        self.datapath.stop();
    }

    pub(crate) fn apply(&mut self, op: Op) {
        self.datapath.tables().apply(&op).unwrap();
    }

    /// A socket that asked for the frontend of its family and was led to a backend.
    fn led(&mut self, to: &str, backend: u32) -> UdpSocket {
        let socket = connect(to);
        self.remember(&socket, to, backend, FRONTEND);
        socket
    }

    /// Writes the entry that leads from a backend back to `frontend`, or that of IPv6.
    pub(crate) fn remember(&mut self, socket: &UdpSocket, to: &str, backend: u32, frontend: &str) {
        let cookie = cookie(socket);
        match to.parse::<IpAddr>().unwrap().to_canonical() {
            IpAddr::V4(to) => {
                let key = SocketKey::new(cookie, (to.octets(), 53), proto::UDP, Way::Back);
                let peer = peer(SocketPeer::new((v4(frontend), 53)), SERVICE_V4, backend);
                self.v4.insert(Raw(key), Raw(peer), 0).unwrap();
            }
            IpAddr::V6(to) => {
                let key = SocketKey::new(cookie, (to.octets(), 53), proto::UDP, Way::Back);
                let frontend: std::net::Ipv6Addr = "fd00:96::10".parse().unwrap();
                let peer = peer(
                    SocketPeer::new((frontend.octets(), 53)),
                    SERVICE_V6,
                    backend,
                );
                self.v6.insert(Raw(key), Raw(peer), 0).unwrap();
            }
        }
    }

    pub(crate) fn destroyed(&self) -> u64 {
        self.destroyed.load(Ordering::Relaxed)
    }

    /// Cookies of the sockets that have an entry of IPv4, in order.
    fn remembered(&self) -> Vec<u64> {
        let keys = self.v4.keys().map(|key| key.unwrap().0.cookie);
        let mut cookies: Vec<_> = keys
            .map(|[low, high]| u64::from(high) << 32 | u64::from(low))
            .collect();
        cookies.sort_unstable();
        cookies
    }
}

fn put_frontend<A>(address: A, protocol: u8, (service, generation): (u32, u32)) -> TableOp<A> {
    let frontend = Frontend {
        service,
        generation,
        ..Frontend::default()
    };
    TableOp::PutFrontend(FrontendKey::new(address, 53, protocol), frontend)
}

fn put_backend<A>(id: u32, address: A, (service, epoch): (u32, u32)) -> TableOp<A> {
    TableOp::PutBackend(
        id,
        Backend::new(service, epoch, address, 53, BackendState::Active),
    )
}

fn peer<A>(mut peer: SocketPeer<A>, service: u32, backend: u32) -> SocketPeer<A> {
    (peer.service, peer.generation) = (service, GENERATION);
    (peer.backend, peer.epoch) = (backend, EPOCH);
    peer
}

fn v4(address: &str) -> [u8; 4] {
    address.parse::<std::net::Ipv4Addr>().unwrap().octets()
}

/// A socket that talks to port 53 of an address.
pub(crate) fn connect(to: &str) -> UdpSocket {
    let to: IpAddr = to.parse().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(SocketAddr::new(to, 53)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn cookie(socket: &UdpSocket) -> u64 {
    let (mut cookie, mut length) = (0_u64, 8);
    // SAFETY: the kernel writes at most `length` bytes, the size of the cookie.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0);
    cookie
}

pub(crate) fn wait_for_end(what: &str, socket: &UdpSocket) {
    wait_until(what, || socket.peer_addr().is_err());
    // Who waits for an answer is woken with an error, who sends is told that nobody is there.
    let error = socket.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{what}");
    let error = socket.send(b"anybody?").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EDESTADDRREQ), "{what}");
}

fn assert_lives(what: &str, socket: &UdpSocket, at: &UdpSocket) {
    assert!(socket.peer_addr().is_ok(), "{what}");
    assert!(socket.take_error().unwrap().is_none(), "{what}");
    socket.send(b"still there").unwrap();
    assert_eq!(at.recv(&mut [0; 16]).unwrap(), 11, "{what}");
}

/// Where a backend would listen.
fn listen(at: &str) -> UdpSocket {
    let at: IpAddr = at.parse().unwrap();
    let socket = UdpSocket::bind(SocketAddr::new(at, 53)).unwrap();
    let patience = Some(Duration::from_secs(2));
    socket.set_read_timeout(patience).unwrap();
    socket
}

pub(crate) fn pause(time: Duration) {
    let end = Instant::now() + time;
    wait_until("the end of a pause", || Instant::now() >= end);
}

#[test]
fn sockets_of_backends_that_go_are_ended_in_both_families_and_no_others() {
    on_a_node(|bpffs| {
        let mut node = Node::start(bpffs);
        let [gone, stays] = BACKENDS;
        let [gone_v6, stays_v6] = BACKENDS_V6;
        let (at_gone, at_stays, at_stays_v6) = (listen(gone), listen(stays), listen(stays_v6));
        let mapped = |address: &str| format!("::ffff:{address}");
        let stale = [
            ("IPv4", node.led(gone, 1)),
            ("IPv6", node.led(gone_v6, 11)),
            ("IPv4 within IPv6", node.led(&mapped(gone), 1)),
        ];
        let live = [
            ("IPv4", node.led(stays, 2), &at_stays),
            ("IPv6", node.led(stays_v6, 12), &at_stays_v6),
            ("IPv4 within IPv6", node.led(&mapped(stays), 2), &at_stays),
            ("it dialled the pod itself", connect(gone), &at_gone),
            ("it was led there earlier", node.led(stays, 2), &at_stays),
        ];
        let (_, earlier, _) = &live[4];
        node.remember(earlier, gone, 1, FRONTEND);
        node.apply(Op::V4(TableOp::DeleteBackend(1)));
        node.apply(Op::V6(TableOp::DeleteBackend(11)));
        for (what, socket) in &stale {
            wait_for_end(what, socket);
        }
        pause(LONG);
        for (what, socket, at) in &live {
            assert_lives(what, socket, at);
        }
        assert_eq!(node.destroyed(), 3);
        // What is left is of the others: one of them has two entries, one has none.
        let mut left: Vec<_> = [0, 2, 4, 4].map(|n: usize| cookie(&live[n].1)).into();
        left.sort_unstable();
        assert_eq!(node.remembered(), left);
        assert_eq!(node.v6.keys().count(), 1);
        node.stop();
    });
}

#[test]
fn a_backend_or_frontend_that_is_another_one_now_ends_sockets_too() {
    on_a_node(|bpffs| {
        let mut node = Node::start(bpffs);
        let frontend = [10, 96, 0, 10];
        let [one, other] = BACKENDS;
        let (first, second) = (node.led(one, 1), node.led(other, 2));
        // The id is used again.
        node.apply(Op::V4(put_backend(1, v4(one), (SERVICE_V4, EPOCH + 1))));
        wait_for_end("another epoch", &first);
        // No change of what sockets depend on: the backend ends, and the frontend has other slots.
        let terminating = Backend::new(SERVICE_V4, EPOCH, v4(other), 53, BackendState::Terminating);
        node.apply(Op::V4(TableOp::PutBackend(2, terminating)));
        let mut shorter = Frontend::default();
        (shorter.service, shorter.generation, shorter.cluster_count) = (SERVICE_V4, GENERATION, 1);
        let key = FrontendKey::new(frontend, 53, proto::UDP);
        node.apply(Op::V4(TableOp::PutFrontend(key, shorter)));
        pause(LONG);
        assert!(second.peer_addr().is_ok());
        // The Service was made anew.
        node.apply(Op::V4(put_frontend(
            frontend,
            proto::UDP,
            (SERVICE_V4, GENERATION + 1),
        )));
        wait_for_end("another generation", &second);
        node.apply(Op::V4(put_frontend(
            frontend,
            proto::UDP,
            (SERVICE_V4, GENERATION),
        )));
        let third = node.led(other, 2);
        node.apply(Op::V4(TableOp::DeleteFrontend(key)));
        wait_for_end("no frontend", &third);
        // A socket has ended a moment before that is counted.
        wait_until("the count", || node.destroyed() == 3);
        node.stop();
    });
}

#[test]
fn a_node_port_dialled_at_loopback_is_looked_for_where_it_is() {
    on_a_node(|bpffs| {
        let mut node = Node::start(bpffs);
        let map = Map::LpmTrie(MapData::from_pin(bpffs.join(names::PREFIXES_V4)).unwrap());
        let mut prefixes = LpmTrie::<_, Raw<Prefix<[u8; 4]>>, [u8; 4]>::try_from(map).unwrap();
        let key = PrefixKey::new(PrefixTable::LOOPBACK, [0; 4], 0);
        let key = Key::new(key.prefix_len, Raw(key.prefix));
        prefixes.insert(&key, [10, 96, 0, 10], 0).unwrap();
        let socket = connect(BACKENDS[1]);
        node.remember(&socket, BACKENDS[1], 2, "127.0.0.1");
        // Another frontend goes, so there is a scan.
        node.apply(Op::V4(put_frontend(
            [10, 96, 0, 11],
            proto::UDP,
            (SERVICE_V4, 1),
        )));
        let other = FrontendKey::new([10, 96, 0, 11], 53, proto::UDP);
        node.apply(Op::V4(TableOp::DeleteFrontend(other)));
        pause(LONG);
        assert!(socket.peer_addr().is_ok());
        let key = FrontendKey::new([10, 96, 0, 10], 53, proto::UDP);
        node.apply(Op::V4(TableOp::DeleteFrontend(key)));
        wait_for_end("no frontend at loopback", &socket);
        node.stop();
    });
}

#[test]
fn what_changed_while_the_agent_was_down_is_found_at_its_start_unless_sockets_are_not_served() {
    on_a_node(|bpffs| {
        let mut node = Node::start(bpffs);
        let socket = node.led(BACKENDS[0], 1);
        node.stop();
        // Nobody looks after this write.
        let mut tables = KernelTables::open(bpffs).unwrap();
        let delete = Op::V4(TableOp::DeleteBackend(1));
        tables.apply(&delete).unwrap();
        let mut config = DatapathConfig::new(bpffs);
        config.sockets.mode = SocketLb::Off;
        let mut off = Node::restart(&config);
        off.apply(Op::V4(TableOp::DeleteBackend(2)));
        pause(LONG);
        assert!(socket.peer_addr().is_ok());
        off.stop();
        config.sockets.mode = SocketLb::Host;
        let node = Node::restart(&config);
        wait_for_end("at start", &socket);
        assert_eq!(node.destroyed(), 1);
        node.stop();
    });
}

#[test]
fn writes_for_tcp_ask_for_no_scan_also_after_a_restart_and_audits_find_what_nobody_told() {
    on_a_node(|bpffs| {
        Node::start(bpffs).stop();
        let mut config = DatapathConfig::new(bpffs);
        config.audit = Duration::from_secs(4);
        let mut node = Node::restart(&config);
        let begun = Instant::now();
        let socket = node.led(BACKENDS[0], 1);
        // The scan at the start is over.
        pause(LONG);
        let mut unnoticed = KernelTables::open(bpffs).unwrap();
        let delete = Op::V4(TableOp::DeleteBackend(1));
        unnoticed.apply(&delete).unwrap();
        node.apply(Op::V4(TableOp::DeleteBackend(3)));
        pause(LONG);
        assert!(socket.peer_addr().is_ok());
        wait_for_end("audit", &socket);
        assert!(
            begun.elapsed() > Duration::from_secs(3),
            "{:?}",
            begun.elapsed()
        );
        node.stop();
    });
}

#[test]
fn many_sockets_and_many_changes_cost_a_fraction_of_one_processor_and_no_change_costs_nothing() {
    const SOCKETS: usize = 900;
    on_a_node(|bpffs| {
        let mut node = Node::start(bpffs);
        let sockets: Vec<_> = (0..SOCKETS).map(|_| node.led(BACKENDS[1], 2)).collect();
        let ticks = || ticks_of("lb-stale").unwrap();
        let before = ticks();
        let begun = Instant::now();
        let mut changes = 0;
        wait_until("changes", || {
            node.apply(Op::V4(put_backend(1, v4(BACKENDS[0]), (SERVICE_V4, EPOCH))));
            node.apply(Op::V4(TableOp::DeleteBackend(1)));
            changes += 2;
            begun.elapsed() > Duration::from_secs(2)
        });
        let changed = ticks() - before;
        eprintln!(
            "{SOCKETS} sockets, {changes} changes in 2 s: {} ms of scans",
            changed * 10
        );
        assert!(changed < 60, "{changed} ticks");
        pause(LONG);
        let before = ticks();
        pause(3 * LONG);
        assert_eq!(ticks(), before, "nothing has changed");
        assert!(sockets.iter().all(|socket| socket.peer_addr().is_ok()));
        node.stop();
    });
}
