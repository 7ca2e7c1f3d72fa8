// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cluster that the tables hold: who has which address.
//!
//! Every Service has a cluster address and a node port, over TCP and UDP, in both families, and
//! three to five backends. Everything follows from numbers, so nothing has to be remembered.
//! **Invariant:** no two flows share source, destination and protocol.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytemuck::Zeroable as _;
use lb_common::abi::{
    Backend, BackendFlags, BackendState, Frontend, FrontendKey, Kind, Policy, PortSet, SlotKey,
    names,
};

use super::kernel::Kernel;
use super::wire::{Ends, Proto};

/// Port of every cluster address, and of every pod.
const SERVICE_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
/// Another port of pods, which no Service leads to: a flow to it collides with none of ours.
const OTHER_PORT: u16 = 9090;
/// Node port of the first Service; none of them is a port to masquerade with.
const NODE_PORTS: u16 = 30_000;
/// Pods that dial, and the first port that they dial from.
const CLIENTS: u32 = 200;
const CLIENT_PORTS: u32 = 32_768;
/// Most backends of a Service.
const MOST: u32 = 5;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The address `number` of a range: `v4` begins that of IPv4, `net` names that of IPv6.
    fn address(self, v4: [u8; 4], net: u16, number: u32) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(u32::from_be_bytes(v4) + number).into(),
            Self::V6 => {
                let first = u128::from(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, 0));
                Ipv6Addr::from(first + u128::from(number)).into()
            }
        }
    }
}

/// What a client dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialled {
    ClusterIp,
    NodePort,
    /// A pod: none of our business.
    Pod,
}

/// How many Services there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cluster {
    pub(crate) services: u32,
}

impl Cluster {
    /// The flow of this number: client, source port and what it dials.
    pub(crate) fn flow(self, family: Family, dialled: Dialled, number: u32) -> Ends {
        let service = number % self.services;
        let client = number % CLIENTS;
        let port = CLIENT_PORTS + number / CLIENTS;
        let source = match dialled {
            Dialled::NodePort => family.address([172, 16, 0, 1], 0xc, client),
            Dialled::ClusterIp | Dialled::Pod => family.address([10, 244, 1, 2], 0x1, client),
        };
        let destination = match dialled {
            Dialled::ClusterIp => (cluster_ip(family, service), SERVICE_PORT),
            Dialled::NodePort => (node_ip(family), node_port(service)),
            Dialled::Pod => (pod(family, service, 0), OTHER_PORT),
        };
        Ends {
            source: (source, u16::try_from(port).expect("few flows")).into(),
            destination: destination.into(),
        }
    }

    /// Writes the tables, as the agent would.
    pub(crate) fn fill(self, kernel: &mut Kernel) {
        for family in Family::ALL {
            match node_ip(family) {
                IpAddr::V4(a) => kernel.put_own_address(names::PREFIXES_V4, a.octets()),
                IpAddr::V6(a) => kernel.put_own_address(names::PREFIXES_V6, a.octets()),
            }
            for service in 0..self.services {
                for proto in Proto::ALL {
                    self.fill_service(kernel, family, service, proto);
                }
            }
        }
        let mut ports = PortSet::zeroed();
        for proto in Proto::ALL {
            ports.insert(SERVICE_PORT, proto.number());
            for service in 0..self.services {
                ports.insert(node_port(service), proto.number());
            }
        }
        kernel.put_ports(&ports);
    }

    fn fill_service(self, kernel: &mut Kernel, family: Family, service: u32, proto: Proto) {
        let number = u32::from(family == Family::V6) * 2 + u32::from(proto == Proto::Udp);
        let id = 1 + service * 4 + number;
        let backends = MOST - service % 3;
        for slot in 0..backends {
            let backend = 1 + (id - 1) * MOST + slot;
            let at = SocketAddr::new(pod(family, service, slot), POD_PORT);
            put_backend(kernel, id, backend, at);
            let slot = u16::try_from(slot).expect("few backends");
            kernel.put(names::SLOTS, SlotKey::cluster(id, slot), backend);
        }
        let frontend = Frontend {
            service: id,
            generation: 1,
            cluster_count: u16::try_from(backends).expect("few backends"),
            ..Frontend::default()
        };
        let cluster_ip = SocketAddr::new(cluster_ip(family, service), SERVICE_PORT);
        put_frontend(kernel, cluster_ip, proto, frontend);
        let node_port = SocketAddr::new(node_ip(family), node_port(service));
        let frontend = Frontend {
            kind: Kind::NodePort as u8,
            pod_policy: Policy::SNAT_REMOTE,
            node_policy: Policy::SNAT_REMOTE,
            external_policy: Policy::SNAT_REMOTE,
            ..frontend
        };
        put_frontend(kernel, node_port, proto, frontend);
    }
}

fn cluster_ip(family: Family, service: u32) -> IpAddr {
    family.address([10, 96, 0, 1], 0x96, service)
}

fn node_ip(family: Family) -> IpAddr {
    family.address([192, 168, 50, 10], 0x50, 10)
}

fn node_port(service: u32) -> u16 {
    NODE_PORTS + u16::try_from(service).expect("few Services")
}

fn pod(family: Family, service: u32, slot: u32) -> IpAddr {
    family.address([10, 128, 0, 2], 0x128, service * MOST + slot)
}

fn put_frontend(kernel: &mut Kernel, at: SocketAddr, proto: Proto, frontend: Frontend) {
    let (port, proto) = (at.port(), proto.number());
    match at.ip() {
        IpAddr::V4(a) => {
            let key = FrontendKey::new(a.octets(), port, proto);
            kernel.put(names::FRONTENDS_V4, key, frontend);
        }
        IpAddr::V6(a) => {
            let key = FrontendKey::new(a.octets(), port, proto);
            kernel.put(names::FRONTENDS_V6, key, frontend);
        }
    }
}

fn put_backend(kernel: &mut Kernel, service: u32, id: u32, at: SocketAddr) {
    let state = BackendState::Active;
    let flags = BackendFlags::IN_CLUSTER_LIST;
    match at.ip() {
        IpAddr::V4(a) => {
            let backend = Backend::new(service, 1, a.octets(), at.port(), state);
            kernel.put(names::BACKENDS_V4, id, backend.with_flags(flags));
        }
        IpAddr::V6(a) => {
            let backend = Backend::new(service, 1, a.octets(), at.port(), state);
            kernel.put(names::BACKENDS_V6, id, backend.with_flags(flags));
        }
    }
}
