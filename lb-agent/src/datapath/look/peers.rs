// SPDX-License-Identifier: MIT OR Apache-2.0
//! What sockets were led to in the place of a frontend: flows that no packet path translates.
//!
//! **Invariant:** an entry may be older than its socket: the oldest give way, and nothing else removes
//! those of TCP. Which sockets are there still is asked of the kernel, in this network namespace.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{SocketKey, SocketPeer, Way, names};

use super::Look;
use crate::datapath::error::DatapathError;
use crate::datapath::loader::Clock;
use crate::datapath::sockets;
use crate::datapath::sweep::age_secs;

/// A socket that talks to a backend and asked for a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFlow {
    /// The number by which the kernel knows the socket.
    pub cookie: u64,
    /// Protocol number of IANA.
    pub proto: u8,
    /// The socket's own address, if it is there still and in this network namespace.
    pub local: Option<SocketAddr>,
    /// What it asked for.
    pub frontend: (IpAddr, u16),
    /// Where it was led.
    pub backend: (IpAddr, u16),
    /// Service id.
    pub service: u32,
    /// Seconds since it last connected or sent.
    pub idle_secs: u32,
}

impl Look {
    /// Every peer of every socket that was led to a backend. Asking for the sockets themselves costs a
    /// look at each socket of this network namespace.
    pub fn socket_flows(
        &self,
        each: &mut dyn FnMut(SocketFlow) -> bool,
    ) -> Result<(), DatapathError> {
        let clock = Clock::open(&self.pins)?;
        // Where the kernel does not tell, sockets are shown by their number.
        let owners = sockets::local_addresses().unwrap_or_default();
        let mut wants_more = true;
        self.socket_flows_in::<[u8; 4]>(names::SOCKETS_V4, &clock, &owners, &mut |flow| {
            wants_more = wants_more && each(flow);
        })?;
        self.socket_flows_in::<[u8; 16]>(names::SOCKETS_V6, &clock, &owners, &mut |flow| {
            wants_more = wants_more && each(flow);
        })
    }

    fn socket_flows_in<A>(
        &self,
        name: &'static str,
        clock: &Clock,
        owners: &BTreeMap<u64, SocketAddr>,
        each: &mut dyn FnMut(SocketFlow),
    ) -> Result<(), DatapathError>
    where
        A: Copy + Into<IpAddr>,
        SocketKey<A>: bytemuck::Pod,
        SocketPeer<A>: bytemuck::Pod,
    {
        self.walk_steps(name, |keys: &[SocketKey<A>], peers: &[SocketPeer<A>]| {
            let now = clock.now()?;
            let back = keys.iter().zip(peers);
            for (key, peer) in back.filter(|(key, _)| key.way == Way::Back as u8) {
                let [low, high] = key.cookie.map(u64::from);
                let cookie = high << 32 | low;
                each(SocketFlow {
                    cookie,
                    proto: key.proto,
                    local: owners.get(&cookie).copied(),
                    frontend: (peer.address.into(), peer.port),
                    backend: (key.address.into(), key.port),
                    service: peer.service,
                    idle_secs: age_secs(now, peer.last_used, clock.hz),
                });
            }
            Ok(())
        })
    }
}
