// SPDX-License-Identifier: MIT OR Apache-2.0
//! The calls that are measured, one case after the other in every round.
//!
//! Two kinds: one socket that is connected again and again, as in a loop around an unconnected
//! client, and sockets of which each is connected once, as most are.
//! **Invariant:** within a case the calls are the same whatever program there is, so that the
//! difference is the program's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::stage::Stage;
use crate::tables::{SERVICE_PORT, cluster_ip, only_backend};

/// Calls on one socket that are timed together.
const AGAIN: usize = 2_000;
/// Sockets that are connected once each.
const ONCE: usize = 400;
/// A port that no Service has.
const OTHER_PORT: u16 = 81;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) const fn any(self) -> SocketAddr {
        match self {
            Self::V4 => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            Self::V6 => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Which program is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum With {
    Nothing,
    Empty,
    Ours,
}

impl With {
    pub(crate) const ALL: [Self; 3] = [Self::Nothing, Self::Empty, Self::Ours];

    /// The programs that are asked.
    pub(crate) const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::Empty => &["empty_connect4", "empty_connect6"],
            Self::Ours => &["lb_connect4", "lb_connect6"],
        }
    }

    pub(crate) const fn folder(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Empty => "empty",
            Self::Ours => "ours",
        }
    }
}

/// What is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialled {
    /// A Service.
    Service,
    /// An address without a Service, at a port that no Service has.
    OtherPort,
    /// The same at a port that Services have.
    OtherAddress,
}

impl Dialled {
    pub(crate) const ALL: [Self; 3] = [Self::Service, Self::OtherPort, Self::OtherAddress];

    const fn name(self) -> &'static str {
        match self {
            Self::Service => "hit",
            Self::OtherPort => "miss by the port",
            Self::OtherAddress => "miss by the address",
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    family: Family,
    pub(crate) dialled: Dialled,
    /// Each socket is connected once.
    pub(crate) once: bool,
}

impl Case {
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for family in Family::ALL {
            for once in [false, true] {
                all.extend(Dialled::ALL.map(|dialled| Self {
                    family,
                    dialled,
                    once,
                }));
            }
        }
        all
    }

    pub(crate) fn name(self) -> String {
        let how = if self.once {
            "new socket"
        } else {
            "same socket"
        };
        format!("{}, {how}, {}", self.family.name(), self.dialled.name())
    }

    /// What is dialled. Without our program that is the backend itself, so that all else that the call
    /// does is the same.
    fn peer(self, with: With) -> SocketAddr {
        const SERVICE: u32 = 42;
        const NOBODY: u32 = 1 << 20;
        match self.dialled {
            Dialled::Service if with != With::Ours => only_backend(self.family, SERVICE),
            Dialled::Service => (cluster_ip(self.family, SERVICE), SERVICE_PORT).into(),
            Dialled::OtherPort => (cluster_ip(self.family, NOBODY), OTHER_PORT).into(),
            Dialled::OtherAddress => (cluster_ip(self.family, NOBODY), SERVICE_PORT).into(),
        }
    }
}

/// What a case took, nanoseconds a call in each round: with nothing, with an empty program, with ours.
pub(crate) struct Measured {
    pub(crate) case: Case,
    pub(crate) rounds: Vec<[f64; 3]>,
}

impl Measured {
    pub(crate) const fn new(case: Case) -> Self {
        Self {
            case,
            rounds: Vec::new(),
        }
    }

    /// One way of one round.
    pub(crate) fn measure(&mut self, stage: &Stage, with: With) -> Result<()> {
        if with == With::Nothing {
            self.rounds.push([0.0; 3]);
        }
        let count = if self.case.once { ONCE } else { 1 };
        let sockets = stage.sockets(with, self.case.family, count)?;
        let peer = Raw::new(self.case.peer(with));
        let took = if self.case.once {
            connect_once(&sockets, &peer)
        } else {
            connect_again(&sockets, &peer)
        };
        check(&sockets, self.case)?;
        let round = self.rounds.last_mut().context("a round has begun")?;
        let slot: &mut f64 = round.get_mut(with as usize).context("three")?;
        *slot = took;
        Ok(())
    }
}

fn connect_once(sockets: &[OwnedFd], peer: &Raw) -> f64 {
    let begin = Instant::now();
    for socket in sockets {
        peer.connect(socket.as_raw_fd());
    }
    nanos(begin, sockets.len())
}

fn connect_again(sockets: &[OwnedFd], peer: &Raw) -> f64 {
    let socket = sockets.first().map_or(-1, AsRawFd::as_raw_fd);
    // The first calls find nothing in the caches and nothing noted of the socket.
    for _ in 0..AGAIN / 10 {
        peer.connect(socket);
    }
    let begin = Instant::now();
    for _ in 0..AGAIN {
        peer.connect(socket);
    }
    nanos(begin, AGAIN)
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
fn nanos(begin: Instant, calls: usize) -> f64 {
    begin.elapsed().as_secs_f64() * 1e9 / calls as f64
}

/// Whoever dialled what, all are connected to the same in the end.
fn check(sockets: &[OwnedFd], case: Case) -> Result<()> {
    let socket = sockets.last().context("no socket")?.try_clone()?;
    let peer = std::net::UdpSocket::from(socket).peer_addr()?;
    // Without the hook for it, the peer is shown as it is.
    ensure!(
        peer == case.peer(With::Nothing),
        "{}: connected to {peer}",
        case.name()
    );
    Ok(())
}

/// A peer as connect(2) takes it, so that nothing is converted while the clock runs.
struct Raw {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl Raw {
    fn new(peer: SocketAddr) -> Self {
        let peer = nix::sys::socket::SockaddrStorage::from(peer);
        let length = nix::sys::socket::SockaddrLike::len(&peer);
        // SAFETY: all zero is an address of no family.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        // SAFETY: the source is at least so long, and the storage is as long as any.
        unsafe {
            std::ptr::copy_nonoverlapping(
                nix::sys::socket::SockaddrLike::as_ptr(&peer).cast::<u8>(),
                (&raw mut storage).cast::<u8>(),
                length as usize,
            );
        }
        Self { storage, length }
    }

    fn connect(&self, socket: RawFd) {
        // SAFETY: the address lives until the call returns.
        let result =
            unsafe { libc::connect(socket, (&raw const self.storage).cast(), self.length) };
        assert!(result == 0, "connect: {}", std::io::Error::last_os_error());
    }
}
