// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processes in a node's own network, and what their sockets are told.
//!
//! The node itself and a pod with `hostNetwork` dial; their packets pass no pod's device, so only the
//! programs on the node's cgroup can serve them.
//! **Invariant:** each question is asked by a connection, by a UDP socket that is connected and by one
//! that is not, and an address of IPv4 also by sockets of IPv6. Read next: `addresses.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

mod addresses;
mod affinity;
mod lasting;
mod pods;
mod policies;
mod programs;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lb_lab::{Host, HttpClient, LabError, Node, UdpClient};

use crate::cluster::{CONNECT_MAX, Cluster, fail};
use crate::inspect;

pub(crate) use addresses::seen_on_itself;

/// How long the refusals of three sockets may take.
const REFUSED_MAX: Duration = Duration::from_millis(300);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A process of a node, and a pod in the network of the same node.
fn callers(cluster: &Cluster, node: usize) -> [Host; 2] {
    let node = cluster.node(node);
    let pod = node.host_network_pod(&format!("host-{}", node.name()));
    [node.process(), pod.unwrap()]
}

/// An address as sockets may name it: one of IPv4 also within IPv6.
fn forms(remote: SocketAddr) -> Vec<SocketAddr> {
    match remote.ip() {
        IpAddr::V4(v4) => {
            let mapped = v4.to_ipv6_mapped().into();
            vec![remote, SocketAddr::new(mapped, remote.port())]
        }
        IpAddr::V6(_) => vec![remote],
    }
}

/// The loopback address of a family (0 is IPv4) with a port.
fn loopback(family: usize, port: u16) -> SocketAddr {
    let addresses = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ];
    SocketAddr::new(addresses[family], port)
}

/// A UDP socket that names its peer with every datagram.
struct Unconnected(UdpSocket);

impl Unconnected {
    /// A socket of the family of `like`; to be made inside a run.
    fn open(like: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = if like.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Sends one datagram; gives the answer and who it is said to come from.
    fn ask(&self, remote: SocketAddr, question: &str) -> io::Result<(String, SocketAddr)> {
        self.0.send_to(question.as_bytes(), remote)?;
        let mut buffer = [0; 512];
        let (length, from) = self.0.recv_from(&mut buffer)?;
        let answer = String::from_utf8_lossy(&buffer[..length]);
        Ok((answer.trim_end().to_owned(), from))
    }

    /// This server must answer, under the address that was asked.
    fn assert_answered_by(&self, remote: SocketAddr, name: &str, when: &str) {
        let answer = self.ask(remote, "hostname").map_err(|error| error.kind());
        assert_eq!(answer, Ok((name.to_owned(), remote)), "{when}");
    }
}

/// What the three kinds of sockets met, in the order of the module's invariant.
struct Met {
    names: [String; 3],
    sources: [IpAddr; 3],
}

/// What a socket is told where a packet would be refused: an error of the program's choice only where
/// the kernel lets it choose one.
pub(crate) fn refusal(node: &Node) -> ErrorKind {
    if inspect::kernel_has(node, "bpf_set_retval") {
        ErrorKind::ConnectionRefused
    } else {
        ErrorKind::PermissionDenied
    }
}

/// Dials an address in every way; each socket must be shown the address that it dialled.
fn meet(caller: &Host, remote: SocketAddr) -> Met {
    let source = |text: &str| text.split(' ').next().unwrap().parse().unwrap();
    let ask = || -> Result<Met, LabError> {
        let mut connection = HttpClient::new(remote).connect()?;
        assert!(connection.connect_time() < CONNECT_MAX, "{remote}");
        assert_eq!(connection.stream().peer_addr().unwrap(), remote, "TCP");
        let tcp = [connection.get("/")?, connection.get("/source")?];
        let connected = UdpClient::bind(remote, None)?;
        assert_eq!(connected.socket().peer_addr().unwrap(), remote, "UDP");
        let udp = [connected.ask("hostname")?, connected.ask("source")?];
        // Once more by recvfrom, which shows the sender of a connected socket's datagrams too.
        connected.socket().send(b"once more").unwrap();
        let (_, from) = connected.socket().recv_from(&mut [0; 64]).unwrap();
        assert_eq!(from, remote, "by recvfrom on a connected socket");
        let open = Unconnected::open(remote).unwrap();
        let free = ["hostname", "source"].map(|question| {
            let (answer, from) = open.ask(remote, question).unwrap();
            assert_eq!(from, remote, "by recvfrom");
            answer
        });
        Ok(Met {
            names: [tcp[0].text().to_owned(), udp[0].clone(), free[0].clone()],
            sources: [source(tcp[1].text()), source(&udp[1]), source(&free[1])],
        })
    };
    let met = caller.run(ask).unwrap();
    met.unwrap_or_else(|error| fail(&format!("{caller:?} to {remote}"), &error))
}

/// Dials an address in all forms: this server must answer, and see one of these sources.
pub(crate) fn assert_met(caller: &Host, remote: SocketAddr, name: &str, sources: &[IpAddr]) {
    for remote in forms(remote) {
        let met = meet(caller, remote);
        assert_eq!(met.names, [name; 3], "{caller:?} to {remote}");
        for seen in met.sources {
            let what = format!("{caller:?} to {remote}: {name} saw {seen} and none of {sources:?}");
            assert!(sources.contains(&seen), "{what}");
        }
    }
}

/// Each socket must fail at its first call with this error, before any packet could be answered.
pub(crate) fn assert_fails(caller: &Host, remote: SocketAddr, expected: ErrorKind) {
    let kind = |error: LabError| {
        if let LabError::Io { source, .. } = error {
            return source.kind();
        }
        fail("an error of a socket", &error)
    };
    for remote in forms(remote) {
        let attempt = || {
            let began = Instant::now();
            let tcp = HttpClient::new(remote).connect().map(drop);
            let connected = UdpClient::bind(remote, None).map(drop);
            let free = Unconnected::open(remote).unwrap();
            let sent = free.0.send_to(b"hostname", remote).map(drop);
            let sent = sent.map_err(|error| error.kind());
            let kinds = [tcp.map_err(kind), connected.map_err(kind), sent];
            (kinds, began.elapsed())
        };
        let (kinds, took) = caller.run(attempt).unwrap();
        let what = format!("{caller:?} to {remote}: TCP, UDP connected, UDP not connected");
        assert_eq!(kinds, [Err(expected); 3], "{what}");
        assert!(took < REFUSED_MAX, "{what}: {took:?}");
    }
}
