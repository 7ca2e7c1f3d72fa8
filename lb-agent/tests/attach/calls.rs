// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single calls of `connect` through the program itself, told what the agent would tell it.
//!
//! What other kernels and mounts make of the constants of the program: an error that it cannot choose,
//! calls of kernel threads, namespaces of pods that are served and that are not.
//! **Invariant:** one program on a cgroup of the test's own, with maps that nobody else has.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;

use aya::maps::{Array, HashMap};
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use bytemuck::{Pod, Zeroable as _};
use lb_agent::datapath::{fit, netns_cookie};
use lb_common::abi::{
    Backend, BackendFlags, BackendState, Frontend, FrontendKey, PortSet, SlotKey, names, proto,
};

use crate::sockets::Cgroup;
use crate::support::{ip, on_a_node};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
const PORT: u16 = 53;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: bytemuck's Pod has no padding and takes every bit pattern, which is all that is asked.
unsafe impl<T: Pod> aya::Pod for Plain<T> {}

/// What the program is told.
#[derive(Clone, Copy)]
struct Told {
    node_netns: u64,
    of_pods: u32,
    can_set_error: u32,
    root_cgroup: u64,
}

impl Told {
    /// As on a node, where the agent is in the same namespace.
    fn node() -> Self {
        Self {
            node_netns: netns_cookie().unwrap(),
            of_pods: 0,
            can_set_error: 1,
            root_cgroup: 1,
        }
    }

    /// As in a pod's namespace, with `--socket-lb=all`.
    fn pod() -> Self {
        Self {
            node_netns: u64::MAX,
            of_pods: 1,
            ..Self::node()
        }
    }
}

/// The program on a cgroup, with one Service of so many backends.
struct Program {
    ebpf: Ebpf,
    cgroup: Cgroup,
}

impl Program {
    fn new(cgroup: Cgroup, told: Told, backends: u16) -> Self {
        let mut loader = EbpfLoader::new();
        for name in [names::CONNS_V4, names::CONNS_V6, names::SLOTS] {
            loader.map_max_entries(name, 16);
        }
        let object = fit(&mut loader, OBJECT);
        loader.override_global("NODE_NETNS", &told.node_netns, true);
        loader.override_global("SOCKETS_OF_PODS", &told.of_pods, true);
        loader.override_global("CAN_SET_ERROR", &told.can_set_error, true);
        loader.override_global("ROOT_CGROUP", &told.root_cgroup, true);
        let mut this = Self {
            ebpf: loader.load(&object).unwrap(),
            cgroup,
        };
        this.publish(backends);
        let folder = File::open(&this.cgroup.0).unwrap();
        let program = this.ebpf.program_mut("lb_connect4").unwrap();
        let program: &mut CgroupSockAddr = program.try_into().unwrap();
        program.load().unwrap();
        program.attach(folder, CgroupAttachMode::Single).unwrap();
        this
    }

    fn put<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) {
        let map = self.ebpf.map_mut(name).unwrap();
        let mut map = HashMap::<_, Plain<K>, Plain<V>>::try_from(map).unwrap();
        map.insert(Plain(key), Plain(value), 0).unwrap();
    }

    fn publish(&mut self, backends: u16) {
        let mut ports = PortSet::zeroed();
        ports.insert(PORT, proto::UDP);
        let map = self.ebpf.map_mut(names::FRONTEND_PORTS).unwrap();
        let mut map = Array::<_, Plain<PortSet>>::try_from(map).unwrap();
        map.set(0, Plain(ports), 0).unwrap();
        let backend = Backend::new(1, 1, POD.octets(), PORT, BackendState::Active);
        let backend = backend.with_flags(BackendFlags::IN_CLUSTER_LIST);
        self.put(names::BACKENDS_V4, 7_u32, backend);
        self.put(names::SLOTS, SlotKey::cluster(1, 0), 7_u32);
        let frontend = Frontend {
            service: 1,
            cluster_count: backends,
            ..Frontend::default()
        };
        let key = FrontendKey::new(VIP.octets(), PORT, proto::UDP);
        self.put(names::FRONTENDS_V4, key, frontend);
    }

    /// Where a socket of the cgroup is connected to, when it dials the Service.
    fn dial(&self) -> io::Result<SocketAddr> {
        let made = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        // Whose call it is counts as well as whose socket.
        self.cgroup.with_this_process(|| {
            let socket = made();
            socket.connect((VIP, PORT))?;
            socket.peer_addr()
        })
    }
}

/// A node whose addresses all lead somewhere; nothing is sent.
fn on_a_routed_node(test: fn()) {
    on_a_node(move |_| {
        ip("route add default dev lo");
        test();
    });
}

#[test]
fn who_is_refused_gets_the_error_that_the_kernel_lets_a_program_choose() {
    on_a_routed_node(|| {
        for (can_set_error, errno) in [(1, libc::ECONNREFUSED), (0, libc::EPERM)] {
            let told = Told {
                can_set_error,
                ..Told::node()
            };
            let program = Program::new(Cgroup::new(), told, 0);
            let refused = program.dial().unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(errno), "{refused}");
        }
    });
}

#[test]
fn a_namespace_that_is_not_served_is_left_alone_until_it_is() {
    on_a_routed_node(|| {
        let mut program = Program::new(Cgroup::new(), Told::pod(), 1);
        assert_eq!(program.dial().unwrap(), (VIP, PORT).into());
        let netns = netns_cookie().unwrap();
        program.put(names::NAMESPACES, netns, 1_u32);
        assert_eq!(program.dial().unwrap(), (POD, PORT).into());
        program.put(names::NAMESPACES, netns, 0_u32);
        assert_eq!(program.dial().unwrap(), (VIP, PORT).into());
        // With `--socket-lb=host` the map counts for nothing.
        let told = Told {
            of_pods: 0,
            ..Told::pod()
        };
        let mut program = Program::new(Cgroup::new(), told, 1);
        program.put(names::NAMESPACES, netns, 1_u32);
        assert_eq!(program.dial().unwrap(), (VIP, PORT).into());
    });
}

#[test]
fn calls_from_the_root_cgroup_are_left_alone_but_in_the_nodes_own_namespace() {
    on_a_routed_node(|| {
        let netns = netns_cookie().unwrap();
        for (node, reached) in [(false, VIP), (true, POD)] {
            let cgroup = Cgroup::new();
            let told = Told {
                // What the root is to kernel threads, this one is to the test.
                root_cgroup: std::fs::metadata(&cgroup.0).unwrap().ino(),
                ..if node { Told::node() } else { Told::pod() }
            };
            let mut program = Program::new(cgroup, told, 1);
            program.put(names::NAMESPACES, netns, 1_u32);
            assert_eq!(program.dial().unwrap(), (reached, PORT).into());
        }
    });
}
