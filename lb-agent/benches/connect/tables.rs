// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables: Services with a cluster address over UDP in both families, three backends each.
//!
//! **Invariant:** everything follows from numbers, so nothing has to be remembered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aya::Ebpf;
use aya::maps::{Array, HashMap};
use bytemuck::{Pod, Zeroable as _};
use lb_common::abi::{
    Backend, BackendFlags, BackendState, Frontend, FrontendKey, PortSet, SlotKey, names, proto,
    version_index,
};

use crate::calls::Family;

/// Port of every cluster address, and of every pod.
pub(crate) const SERVICE_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
const BACKENDS: u32 = 3;

/// Lets plain data of one crate be plain data of the other.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: bytemuck's Pod has no padding and takes every bit pattern, which is all that is asked.
unsafe impl<T: Pod> aya::Pod for Plain<T> {}

/// The address of the only backend of a Service that has one.
pub(crate) fn only_backend(family: Family, service: u32) -> SocketAddr {
    let pod = address(family, [10, 128, 0, 2], 0x128, service * BACKENDS);
    SocketAddr::new(pod, POD_PORT)
}

/// The address of a Service.
pub(crate) fn cluster_ip(family: Family, service: u32) -> IpAddr {
    address(family, [10, 96, 0, 1], 0x96, service)
}

/// The address `number` of a range: `v4` begins that of IPv4, `net` names that of IPv6.
fn address(family: Family, v4: [u8; 4], net: u16, number: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::from_be_bytes(v4) + number).into(),
        Family::V6 => {
            let first = u128::from(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, 0));
            Ipv6Addr::from(first + u128::from(number)).into()
        }
    }
}

/// Writes the tables, as the agent would.
pub(crate) fn fill(ebpf: &mut Ebpf, services: u32) {
    for (number, family) in (0..).zip(Family::ALL) {
        for service in 0..services {
            fill_service(ebpf, family, service, 1 + service * 2 + number);
        }
    }
    let mut ports = PortSet::zeroed();
    ports.insert(SERVICE_PORT, proto::UDP);
    let map = ebpf.map_mut(names::FRONTEND_PORTS).expect("it is there");
    let mut map = Array::<_, Plain<PortSet>>::try_from(map).expect("the layouts agree");
    map.set(0, Plain(ports), 0).expect("the only element");
}

fn fill_service(ebpf: &mut Ebpf, family: Family, service: u32, id: u32) {
    for slot in 0..BACKENDS {
        let backend = 1 + (id - 1) * BACKENDS + slot;
        let pod = address(family, [10, 128, 0, 2], 0x128, service * BACKENDS + slot);
        let state = BackendState::Active;
        let flags = BackendFlags::IN_CLUSTER_LIST;
        match pod {
            IpAddr::V4(a) => {
                let value = Backend::new(id, 1, a.octets(), POD_PORT, state).with_flags(flags);
                put(ebpf, names::BACKENDS_V4, backend, value);
            }
            IpAddr::V6(a) => {
                let value = Backend::new(id, 1, a.octets(), POD_PORT, state).with_flags(flags);
                put(ebpf, names::BACKENDS_V6, backend, value);
            }
        }
        let slot = u16::try_from(slot).expect("few backends");
        put(ebpf, names::SLOTS, SlotKey::cluster(id, slot), backend);
    }
    let frontend = Frontend {
        service: id,
        generation: 1,
        // One in two leads to one backend only.
        cluster_count: if service.is_multiple_of(2) { 1 } else { 3 },
        ..Frontend::default()
    };
    match SocketAddr::new(cluster_ip(family, service), SERVICE_PORT) {
        SocketAddr::V4(a) => {
            let key = FrontendKey::new(a.ip().octets(), a.port(), proto::UDP);
            put(ebpf, names::FRONTENDS_V4, key, frontend);
        }
        SocketAddr::V6(a) => {
            let key = FrontendKey::new(a.ip().octets(), a.port(), proto::UDP);
            put(ebpf, names::FRONTENDS_V6, key, frontend);
        }
    }
    let map = ebpf.map_mut(names::VERSIONS).expect("it is there");
    let mut versions = Array::<_, u32>::try_from(map).expect("the layouts agree");
    versions
        .set(version_index(id), 1, 0)
        .expect("the entry is there");
}

fn put<K: Pod, V: Pod>(ebpf: &mut Ebpf, map: &str, key: K, value: V) {
    let map = ebpf.map_mut(map).expect("the object has the map");
    let mut map = HashMap::<_, Plain<K>, Plain<V>>::try_from(map).expect("the layouts agree");
    map.insert(Plain(key), Plain(value), 0)
        .expect("there is room");
}
