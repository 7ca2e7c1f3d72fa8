// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs and maps of one test, in the kernel.
//!
//! Maps are small, not pinned, and empty when a test begins. Packets go in through
//! `BPF_PROG_TEST_RUN`: the device is then the loopback of the test's own network namespace.
//! **Invariant:** nothing of the agent is used, so the tables are exactly what a test wrote.
//! Read next: `pool.rs`, which loads them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use bytemuck::Pod;
use lb_common::Reason;
use lb_common::abi::{
    Backend, BackendState, Conn, ConnKey, Cursor, Frontend, FrontendKey, Hook as Side, Iface, List,
    PortSet, Prefix, PrefixKey, SlotKey, names,
};

use super::pool::Lent;
pub(crate) use super::pool::Sizes;
use super::support::can_run;
use super::wire::Proto;

/// Returns the low 32 bits of jiffies.
const CLOCK: &str = "lb_clock";
/// `TC_ACT_UNSPEC`: the next program decides, and no program means pass.
const PASS: u32 = u32::MAX;
/// `TC_ACT_SHOT`.
const DROP: u32 = 2;
/// `TC_ACT_REDIRECT`.
const REDIRECT: u32 = 7;
/// Size of `struct __sk_buff`, and where the mark is in it.
const SK_BUFF: usize = 192;
const MARK: usize = 8;

/// Where a packet is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Ingress,
    Egress,
    IngressL3,
    EgressL3,
}

impl Hook {
    fn program(self) -> &'static str {
        match self {
            Self::Ingress => "lb_tc_ingress",
            Self::Egress => "lb_tc_egress",
            Self::IngressL3 => "lb_tc_ingress_l3",
            Self::EgressL3 => "lb_tc_egress_l3",
        }
    }
}

/// What a program said about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Drop,
    /// Goes out of a device, which the verdict does not name.
    Redirect,
    /// Anything else, which is always wrong.
    Other(u32),
}

/// One entry of a connection table, without what differs from run to run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) hook: u8,
    pub(crate) proto: u8,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) client_port: u16,
    pub(crate) service: u32,
    pub(crate) backend: u32,
    pub(crate) epoch: u32,
    pub(crate) generation: u32,
    pub(crate) request_seen: u8,
    pub(crate) reply_seen: u8,
    pub(crate) action: u8,
    pub(crate) flags: u8,
    pub(crate) hop: u8,
    pub(crate) next_hop: [u8; 6],
}

/// Lets plain data of one crate be plain data of the other.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: bytemuck's Pod has no padding and takes every bit pattern, which is all that is asked.
unsafe impl<T: Pod> aya::Pod for Plain<T> {}

/// The programs and maps of one test.
pub(crate) struct Kernel {
    ebpf: Lent,
    started: u32,
}

impl Kernel {
    /// Everything loaded, and every map empty. None, with the reason printed, when the machine
    /// does not let us.
    pub(crate) fn open(sizes: Sizes) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let mut ebpf = Lent::take(sizes);
        for name in [CLOCK, Hook::Ingress.program(), Hook::Egress.program()] {
            ebpf.load(name);
        }
        let mut kernel = Self { ebpf, started: 0 };
        kernel.started = kernel.now();
        Some(kernel)
    }

    /// Loads the programs for devices without link-layer headers, which few tests need.
    pub(crate) fn load_l3(&mut self) {
        for hook in [Hook::IngressL3, Hook::EgressL3] {
            self.ebpf.load(hook.program());
        }
    }

    /// Sends a frame through a hook; gives the verdict and the frame as the program left it.
    pub(crate) fn run(&self, hook: Hook, frame: &[u8]) -> (Verdict, Vec<u8>) {
        self.try_run(hook, frame)
            .unwrap_or_else(|| panic!("the kernel refuses a frame of {} bytes", frame.len()))
    }

    /// As `run`; none when the kernel itself refuses a frame so short.
    pub(crate) fn try_run(&self, hook: Hook, frame: &[u8]) -> Option<(Verdict, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = self.program(hook.program()).test_run(options).ok()?;
        out.truncate(result.data_size_out.try_into().unwrap());
        Some((verdict(result.return_value), out))
    }

    /// As `run`, with a mark on the packet; gives the mark that it has afterwards, too.
    pub(crate) fn run_marked(
        &self,
        hook: Hook,
        frame: &[u8],
        mark: u32,
    ) -> (Verdict, Vec<u8>, u32) {
        let mut out = vec![0; frame.len() + 256];
        let mut before = [0; SK_BUFF];
        before[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
        let mut after = [0; SK_BUFF];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&before),
            ctx_out: Some(&mut after),
            ..TestRunOptions::default()
        };
        let result = self.program(hook.program()).test_run(options).unwrap();
        out.truncate(result.data_size_out.try_into().unwrap());
        let mark = u32::from_ne_bytes(after[MARK..MARK + 4].try_into().unwrap());
        (verdict(result.return_value), out, mark)
    }

    /// Low 32 bits of jiffies, as the programs have them.
    pub(crate) fn now(&self) -> u32 {
        let options = TestRunOptions {
            data_in: Some(&[0; 64]),
            ..TestRunOptions::default()
        };
        self.program(CLOCK).test_run(options).unwrap().return_value
    }

    fn program(&self, name: &str) -> &SchedClassifier {
        self.ebpf.program(name).unwrap().try_into().unwrap()
    }

    pub(crate) fn put_frontend(&mut self, at: SocketAddr, proto: Proto, frontend: Frontend) {
        let (port, proto) = (at.port(), proto.number());
        self.add_port(port, proto);
        match at.ip() {
            IpAddr::V4(a) => {
                let key = FrontendKey::new(a.octets(), port, proto);
                self.put(names::FRONTENDS_V4, key, frontend);
            }
            IpAddr::V6(a) => {
                let key = FrontendKey::new(a.octets(), port, proto);
                self.put(names::FRONTENDS_V6, key, frontend);
            }
        }
    }

    /// Makes a port one that frontends may have.
    fn add_port(&mut self, port: u16, proto: u8) {
        let map = self.ebpf.map_mut(names::FRONTEND_PORTS).unwrap();
        let mut map = Array::<_, Plain<PortSet>>::try_from(map).unwrap();
        let Plain(mut set) = map.get(&0, 0).unwrap();
        set.insert(port, proto);
        map.set(0, Plain(set), 0).unwrap();
    }

    pub(crate) fn remove_frontend(&mut self, at: SocketAddr, proto: Proto) {
        let (port, proto) = (at.port(), proto.number());
        match at.ip() {
            IpAddr::V4(a) => self.remove::<_, Frontend>(
                names::FRONTENDS_V4,
                FrontendKey::new(a.octets(), port, proto),
            ),
            IpAddr::V6(a) => self.remove::<_, Frontend>(
                names::FRONTENDS_V6,
                FrontendKey::new(a.octets(), port, proto),
            ),
        }
    }

    pub(crate) fn put_slot(&mut self, service: u32, slot: u16, backend: u32) {
        self.put(names::SLOTS, SlotKey::cluster(service, slot), backend);
    }

    /// Writes a slot of the lookup table beside the list.
    pub(crate) fn put_table_slot(&mut self, service: u32, slot: u16, backend: u32) {
        let key = SlotKey::table(service, List::Cluster, slot);
        self.put(names::SLOTS, key, backend);
    }

    pub(crate) fn remove_slot(&mut self, service: u32, slot: u16) {
        self.remove::<_, u32>(names::SLOTS, SlotKey::cluster(service, slot));
    }

    pub(crate) fn put_backend(&mut self, id: u32, service: u32, epoch: u32, at: SocketAddr) {
        let state = BackendState::Active;
        match at.ip() {
            IpAddr::V4(a) => {
                let backend = Backend::new(service, epoch, a.octets(), at.port(), state);
                self.put(names::BACKENDS_V4, id, backend);
            }
            IpAddr::V6(a) => {
                let backend = Backend::new(service, epoch, a.octets(), at.port(), state);
                self.put(names::BACKENDS_V6, id, backend);
            }
        }
    }

    /// Removes a backend in the family of `like`.
    pub(crate) fn remove_backend(&mut self, id: u32, like: SocketAddr) {
        if like.is_ipv4() {
            self.remove::<_, Backend<[u8; 4]>>(names::BACKENDS_V4, id);
        } else {
            self.remove::<_, Backend<[u8; 16]>>(names::BACKENDS_V6, id);
        }
    }

    /// Writes `address/bits` into a table of prefixes.
    pub(crate) fn put_prefix(&mut self, table: u32, (address, bits): (IpAddr, u8), value: IpAddr) {
        match (address, value) {
            (IpAddr::V4(a), IpAddr::V4(value)) => {
                let key = PrefixKey::new(table, a.octets(), bits);
                self.put_prefix_of(names::PREFIXES_V4, key, value.octets());
            }
            (IpAddr::V6(a), IpAddr::V6(value)) => {
                let key = PrefixKey::new(table, a.octets(), bits);
                self.put_prefix_of(names::PREFIXES_V6, key, value.octets());
            }
            mixed => panic!("two families in one entry: {mixed:?}"),
        }
    }

    fn put_prefix_of<A: Pod>(&mut self, name: &str, key: PrefixKey<A>, value: A)
    where
        Prefix<A>: Pod,
    {
        let map = self.ebpf.map_mut(name).unwrap();
        let mut map = LpmTrie::<_, Plain<Prefix<A>>, Plain<A>>::try_from(map).unwrap();
        let key = Key::new(key.prefix_len, Plain(key.prefix));
        map.insert(&key, Plain(value), 0).unwrap();
    }

    /// Removes the entry of an established flow.
    pub(crate) fn remove_established(&mut self, entry: &Entry) {
        let hook = if entry.hook == Side::Ingress as u8 {
            Side::Ingress
        } else {
            Side::Egress
        };
        let ports = (entry.source.port(), entry.destination.port());
        match (entry.source.ip(), entry.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (from, to) = ((from.octets(), ports.0), (to.octets(), ports.1));
                let key = ConnKey::new(from, to, entry.proto, hook);
                self.remove::<_, Conn<[u8; 4]>>(names::CONNS_V4, key);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let (from, to) = ((from.octets(), ports.0), (to.octets(), ports.1));
                let key = ConnKey::new(from, to, entry.proto, hook);
                self.remove::<_, Conn<[u8; 16]>>(names::CONNS_V6, key);
            }
            mixed => panic!("two families in one entry: {mixed:?}"),
        }
    }

    pub(crate) fn put_iface(&mut self, index: u32, iface: Iface) {
        self.put(names::IFACES, index, iface);
    }

    pub(crate) fn set_cursor(&mut self, service: u32, cursor: Cursor) {
        let map = self.ebpf.map_mut(names::CURSORS).unwrap();
        Array::<_, Cursor>::try_from(map)
            .unwrap()
            .set(service, cursor, 0)
            .unwrap();
    }

    fn put<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: V) {
        let map = self.ebpf.map_mut(map).unwrap();
        let mut map = HashMap::<_, Plain<K>, Plain<V>>::try_from(map).unwrap();
        map.insert(Plain(key), Plain(value), 0).unwrap();
    }

    fn remove<K: Pod, V: Pod>(&mut self, map: &str, key: K) {
        let map = self.ebpf.map_mut(map).unwrap();
        let mut map = HashMap::<_, Plain<K>, Plain<V>>::try_from(map).unwrap();
        map.remove(&Plain(key)).unwrap();
    }

    /// Every counter that is not zero, summed over the CPUs.
    pub(crate) fn counters(&self) -> BTreeMap<Reason, u64> {
        let map = self.ebpf.map(names::REASONS).unwrap();
        let map = PerCpuArray::<_, u64>::try_from(map).unwrap();
        Reason::ALL
            .iter()
            .map(|&reason| (reason, map.get(&(reason as u32), 0).unwrap().iter().sum()))
            .filter(|&(_, count)| count != 0)
            .collect()
    }

    /// Both connection tables, sorted. Each entry must have been seen since the test began.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.last_seen().into_keys().collect()
    }

    /// Both connection tables, with the jiffies at which each entry was last seen.
    pub(crate) fn last_seen(&self) -> BTreeMap<Entry, u32> {
        let mut entries = self.table::<[u8; 4]>(names::CONNS_V4);
        entries.extend(self.table::<[u8; 4]>(names::HALF_OPEN_V4));
        entries.extend(self.table::<[u8; 16]>(names::CONNS_V6));
        entries.extend(self.table::<[u8; 16]>(names::HALF_OPEN_V6));
        entries.into_iter().collect()
    }

    fn table<A>(&self, name: &str) -> Vec<(Entry, u32)>
    where
        A: Into<IpAddr> + Copy,
        ConnKey<A>: Pod,
        Conn<A>: Pod,
    {
        let map = self.ebpf.map(name).unwrap();
        let map = HashMap::<_, Plain<ConnKey<A>>, Plain<Conn<A>>>::try_from(map).unwrap();
        map.iter()
            .map(Result::unwrap)
            .map(|(Plain(key), Plain(conn))| {
                let since_start = conn.last_seen.wrapping_sub(self.started);
                let now = self.now().wrapping_sub(self.started);
                assert!(
                    since_start <= now,
                    "an entry was seen {since_start} of {now} jiffies in"
                );
                (entry(&key, &conn), conn.last_seen)
            })
            .collect()
    }
}

fn verdict(value: u32) -> Verdict {
    match value {
        PASS => Verdict::Pass,
        DROP => Verdict::Drop,
        REDIRECT => Verdict::Redirect,
        other => Verdict::Other(other),
    }
}

fn entry<A: Into<IpAddr> + Copy>(key: &ConnKey<A>, conn: &Conn<A>) -> Entry {
    Entry {
        hook: key.hook,
        proto: key.proto,
        source: (key.source.into(), key.source_port).into(),
        destination: (key.destination.into(), key.destination_port).into(),
        peer: (conn.peer.into(), conn.peer_port).into(),
        client_port: conn.client_port,
        service: conn.service,
        backend: conn.backend,
        epoch: conn.epoch,
        generation: conn.generation,
        request_seen: conn.request_seen,
        reply_seen: conn.reply_seen,
        action: conn.action,
        flags: conn.flags,
        hop: conn.hop,
        next_hop: conn.next_hop,
    }
}
