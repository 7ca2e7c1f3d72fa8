// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets of one network namespace: lists them, and ends single ones of UDP that are connected.
//!
//! Two requests of `NETLINK_SOCK_DIAG` (`include/uapi/linux/inet_diag.h`), written here because the crate
//! for them, `netlink-packet-sock-diag` 0.5, cannot say `SOCK_DESTROY`.
//! **Invariant:** a socket is ended by its addresses and its cookie as the kernel told them, so another
//! one that has taken its place is not.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::abi::proto;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use crate::datapath::request::{ACK, DUMP, REQUEST, Requests, part};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (`include/uapi/linux/sock_diag.h`).
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// The bit of the state of sockets that are connected, `TCP_ESTABLISHED`; also those of UDP.
const CONNECTED: u32 = 1 << 1;

/// Where `struct inet_diag_sockid` begins in what the kernel tells of a socket, and its length.
const ID_AT: usize = 4;
const ID: usize = 48;
/// Any state that a socket may be in.
const ANY: u32 = u32::MAX;
/// Where the local port and address begin.
const LOCAL_PORT: usize = 0;
const LOCAL: usize = 4;
/// Where the parts of an id begin: remote port, remote address, cookie. Before them are the local port
/// and, from 4 on, the local address; the interface is before the cookie.
const REMOTE_PORT: usize = 2;
const REMOTE: usize = 20;
const COOKIE: usize = 40;
/// Which sockets are asked for: those of IPv6 may be connected to addresses of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Family {
    /// `AF_INET`.
    Inet = 2,
    /// `AF_INET6`.
    Inet6 = 10,
}

/// A socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiagSocket {
    family: Family,
    /// A `struct inet_diag_sockid`, as the kernel told it.
    id: [u8; ID],
}

impl DiagSocket {
    /// Whom it talks to; IPv4 within IPv6 is IPv4, as it is to the programs at the socket.
    pub(super) fn remote(&self) -> SocketAddr {
        let port = u16::from_be_bytes(part(&self.id, REMOTE_PORT));
        let address: IpAddr = match self.family {
            Family::Inet => part::<4>(&self.id, REMOTE).into(),
            Family::Inet6 => Ipv6Addr::from(part::<16>(&self.id, REMOTE)).to_canonical(),
        };
        SocketAddr::new(address, port)
    }

    /// Its own address, likewise.
    pub(super) fn local(&self) -> SocketAddr {
        let port = u16::from_be_bytes(part(&self.id, LOCAL_PORT));
        let address: IpAddr = match self.family {
            Family::Inet => part::<4>(&self.id, LOCAL).into(),
            Family::Inet6 => Ipv6Addr::from(part::<16>(&self.id, LOCAL)).to_canonical(),
        };
        SocketAddr::new(address, port)
    }

    /// By which number the programs at the socket know it.
    pub(super) fn cookie(&self) -> u64 {
        let low = u32::from_ne_bytes(part(&self.id, COOKIE));
        let high = u32::from_ne_bytes(part(&self.id, COOKIE + 4));
        u64::from(high) << 32 | u64::from(low)
    }
}

/// A way to ask about the sockets of one network namespace.
pub(super) struct Diag(Requests);

impl Diag {
    /// Asks about the namespace that the calling thread is in now, wherever it goes afterwards.
    pub(super) fn open() -> io::Result<Self> {
        Requests::open(SockProtocol::NetlinkSockDiag).map(Self)
    }

    /// Tells of every connected socket of UDP of a family. Those that connect or close meanwhile may or
    /// may not be among them. Costs a look at each socket of UDP in the namespace.
    pub(super) fn list(&mut self, family: Family, each: impl FnMut(DiagSocket)) -> io::Result<()> {
        let what = (proto::UDP, CONNECTED);
        self.send(BY_FAMILY, REQUEST | DUMP, what, family, &[0; ID])?;
        self.told(family, each)
    }

    /// Tells of every socket of a protocol and family, whatever its state.
    pub(super) fn list_all(
        &mut self,
        protocol: u8,
        family: Family,
        each: impl FnMut(DiagSocket),
    ) -> io::Result<()> {
        let what = (protocol, ANY);
        self.send(BY_FAMILY, REQUEST | DUMP, what, family, &[0; ID])?;
        self.told(family, each)
    }

    fn told(&mut self, family: Family, mut each: impl FnMut(DiagSocket)) -> io::Result<()> {
        self.0.receive(BY_FAMILY, |told| {
            if told.first() == Some(&(family as u8)) {
                let id = part(told, ID_AT);
                each(DiagSocket { family, id });
            }
        })
    }

    /// Ends a socket: who waits on it or uses it next gets `ECONNABORTED`, and it is connected no longer.
    /// False when it has gone or talks to another one by now.
    pub(super) fn destroy(&mut self, socket: &DiagSocket) -> io::Result<bool> {
        let what = (proto::UDP, CONNECTED);
        self.send(DESTROY, REQUEST | ACK, what, socket.family, &socket.id)?;
        match self.0.receive(DESTROY, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a `struct inet_diag_req_v2` about sockets of a protocol in these states.
    fn send(
        &mut self,
        kind: u16,
        flags: u16,
        (protocol, states): (u8, u32),
        family: Family,
        id: &[u8; ID],
    ) -> io::Result<()> {
        let mut body = vec![family as u8, protocol, 0, 0];
        body.extend(states.to_ne_bytes());
        body.extend(id);
        self.0.send(kind, flags, &body)
    }
}

/// The addresses of all sockets of TCP and UDP in the calling thread's network namespace, by the numbers
/// that the programs at the socket know them by.
pub(in crate::datapath) fn local_addresses() -> io::Result<BTreeMap<u64, SocketAddr>> {
    let mut diag = Diag::open()?;
    let mut found = BTreeMap::new();
    for protocol in [proto::TCP, proto::UDP] {
        for family in [Family::Inet, Family::Inet6] {
            diag.list_all(protocol, family, |socket| {
                found.insert(socket.cookie(), socket.local());
            })?;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(port: u16, remote: &[u8], cookie: u64) -> [u8; ID] {
        let mut id = [0; ID];
        id[REMOTE_PORT..REMOTE_PORT + 2].copy_from_slice(&port.to_be_bytes());
        id[REMOTE..REMOTE + remote.len()].copy_from_slice(remote);
        let (low, high) = (cookie & 0xffff_ffff, cookie >> 32);
        for (at, word) in [(COOKIE, low), (COOKIE + 4, high)] {
            let word = u32::try_from(word).unwrap();
            id[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        id
    }

    #[test]
    fn ipv4_within_ipv6_is_ipv4() {
        let within: Ipv6Addr = "::ffff:10.244.0.5".parse().unwrap();
        let socket = DiagSocket {
            family: Family::Inet6,
            id: id(53, &within.octets(), 0x1_0000_0002),
        };
        assert_eq!(socket.remote(), "10.244.0.5:53".parse().unwrap());
        assert_eq!(socket.cookie(), 0x1_0000_0002);
        let socket = DiagSocket {
            family: Family::Inet,
            id: id(53, &[10, 244, 0, 5], 7),
        };
        assert_eq!(socket.remote(), "10.244.0.5:53".parse().unwrap());
    }
}
