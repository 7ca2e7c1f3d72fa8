// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients over real sockets: HTTP with a timed connect and an optional source port, UDP.
//!
//! **Invariant:** they work in the namespace of the calling thread and never retry, so a
//! failure is seen by whoever counts failures. Use them inside [`crate::Host::run`].
//! Read next: `server`, the other side.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::LabError;
use crate::{http, run};

/// The bound of every step unless the caller gives another, times `LB_SLOW`.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// A description of HTTP connections to one address.
#[derive(Debug, Clone)]
#[must_use]
pub struct HttpClient {
    remote: SocketAddr,
    source_port: Option<u16>,
    timeout: Duration,
}

/// An open HTTP connection.
#[derive(Debug)]
pub struct HttpConnection {
    reader: BufReader<TcpStream>,
    local: SocketAddr,
    remote: SocketAddr,
    connect_time: Duration,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpReply {
    /// The status, 200 for success.
    pub status: u16,
    /// The body as text.
    pub body: String,
    /// How long the connection took to be established.
    pub connect_time: Duration,
    /// The client's own address and port.
    pub local: SocketAddr,
}

impl HttpReply {
    /// The body without the end of line: the host name, or what `/source` answers.
    pub fn text(&self) -> &str {
        self.body.trim_end()
    }
}

/// The wildcard address of the same family, with a port.
fn any(remote: SocketAddr, port: u16) -> SocketAddr {
    match remote {
        SocketAddr::V4(_) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        SocketAddr::V6(_) => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
    }
}

impl HttpClient {
    /// Connections to `remote` from any port, each step bounded by [`TIMEOUT`].
    pub fn new(remote: SocketAddr) -> Self {
        Self {
            remote,
            source_port: None,
            timeout: run::bound(TIMEOUT),
        }
    }

    /// Fixes the source port; it is bound with `SO_REUSEADDR`.
    pub const fn source_port(mut self, port: u16) -> Self {
        self.source_port = Some(port);
        self
    }

    /// Bounds the connect and every read and write.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Opens a connection.
    pub fn connect(&self) -> Result<HttpConnection, LabError> {
        let failed = || format!("connect to {}", self.remote);
        let domain = Domain::for_address(self.remote);
        let open = || {
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            if let Some(port) = self.source_port {
                socket.set_reuse_address(true)?;
                socket.bind(&any(self.remote, port).into())?;
            }
            socket.set_tcp_nodelay(true)?;
            let start = Instant::now();
            socket.connect_timeout(&self.remote.into(), self.timeout)?;
            let connect_time = start.elapsed();
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            let local = stream.local_addr()?;
            let (reader, remote) = (BufReader::new(stream), self.remote);
            Ok(HttpConnection {
                reader,
                local,
                remote,
                connect_time,
            })
        };
        open().map_err(LabError::io(failed()))
    }

    /// One request on a connection of its own, which the server closes.
    pub fn get(&self, path: &str) -> Result<HttpReply, LabError> {
        self.connect()?.request(path, "Connection: close\r\n")
    }
}

impl HttpConnection {
    /// How long the connection took to be established.
    pub const fn connect_time(&self) -> Duration {
        self.connect_time
    }

    /// The client's own address and port.
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// One request; the connection stays open for the next.
    pub fn get(&mut self, path: &str) -> Result<HttpReply, LabError> {
        self.request(path, "")
    }

    /// Receives `bytes` bytes and checks each one.
    pub fn download(&mut self, bytes: u64) -> Result<(), LabError> {
        self.send(&format!(
            "GET /bulk?bytes={bytes} HTTP/1.1\r\nHost: lab\r\n\r\n"
        ))?;
        let (_, length) = self.receive_head()?;
        let wrong = http::check_bulk(&mut self.reader, length);
        match wrong.map_err(LabError::io(format!("receive {bytes} bytes")))? {
            None if length == bytes => Ok(()),
            None => Err(self.malformed(format!("{length} bytes instead of {bytes}"))),
            Some(offset) => Err(self.malformed(format!("bytes differ at {offset}"))),
        }
    }

    /// Sends `bytes` bytes, each of which the server checks.
    pub fn upload(&mut self, bytes: u64) -> Result<(), LabError> {
        let head = format!("PUT /bulk HTTP/1.1\r\nHost: lab\r\nContent-Length: {bytes}\r\n\r\n");
        self.send(&head)?;
        let mut writer = self.stream();
        http::write_bulk(&mut writer, bytes).map_err(LabError::io(format!(
            "send {bytes} bytes to {}",
            self.remote
        )))?;
        let reply = self.receive()?;
        if reply.text() == "ok" {
            Ok(())
        } else {
            Err(self.malformed(reply.body))
        }
    }

    fn request(&mut self, path: &str, headers: &str) -> Result<HttpReply, LabError> {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: lab\r\n{headers}\r\n"
        ))?;
        self.receive()
    }

    fn send(&self, text: &str) -> Result<(), LabError> {
        let sent = self.stream().write_all(text.as_bytes());
        sent.map_err(LabError::io(format!(
            "send to {} from {}",
            self.remote, self.local
        )))
    }

    fn receive_head(&mut self) -> Result<(u16, u64), LabError> {
        let doing = format!("receive from {} at {}", self.remote, self.local);
        let head = http::read_head(&mut self.reader).map_err(LabError::io(doing))?;
        let Some(head) = head else {
            return Err(self.malformed("the connection was closed before an answer".to_owned()));
        };
        let status = head.words[1].parse();
        Ok((
            status.map_err(|_| self.malformed(head.words.join(" ")))?,
            head.length,
        ))
    }

    fn receive(&mut self) -> Result<HttpReply, LabError> {
        let (status, length) = self.receive_head()?;
        let mut body = String::new();
        let read = self.reader.by_ref().take(length).read_to_string(&mut body);
        read.map_err(LabError::io(format!(
            "receive from {} at {}",
            self.remote, self.local
        )))?;
        if body.len() as u64 != length {
            return Err(self.malformed(format!("{} bytes instead of {length}", body.len())));
        }
        Ok(HttpReply {
            status,
            body,
            connect_time: self.connect_time,
            local: self.local,
        })
    }

    fn malformed(&self, why: String) -> LabError {
        LabError::Malformed {
            what: format!("the answer of {}", self.remote),
            why,
        }
    }
}

/// A UDP socket connected to one address: an answer from any other address is not seen.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
    remote: SocketAddr,
}

/// Ports of datagrams for which none is named: of those that the kernel chooses from, so neither node
/// ports nor ports for masqueraded flows, and above those that tests name.
const OWN_PORTS: std::ops::Range<u16> = 45_000..60_000;

/// The next of them, before the range is applied.
static NEXT_OWN_PORT: AtomicU32 = AtomicU32::new(0);

/// Binds a socket to a port that no recent socket of this process had.
///
/// Not to one that the kernel chooses: it may choose that of an earlier socket, whose flow lives on for
/// a while, and its backend with it.
fn bind_own_port(socket: &Socket, remote: SocketAddr) -> io::Result<()> {
    for _ in OWN_PORTS {
        let next = NEXT_OWN_PORT.fetch_add(1, Ordering::Relaxed);
        let count = u32::from(OWN_PORTS.end - OWN_PORTS.start);
        #[expect(clippy::cast_possible_truncation, reason = "less than the range has")]
        let port = OWN_PORTS.start + (next % count) as u16;
        match socket.bind(&any(remote, port).into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

impl UdpClient {
    /// Opens a socket, from a fixed port (with `SO_REUSEADDR`) if one is given, else from one of its own,
    /// which no flow has that may still live.
    pub fn bind(remote: SocketAddr, source_port: Option<u16>) -> Result<Self, LabError> {
        let open = || {
            let domain = Domain::for_address(remote);
            let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
            if let Some(port) = source_port {
                socket.set_reuse_address(true)?;
                socket.bind(&any(remote, port).into())?;
            } else {
                bind_own_port(&socket, remote)?;
            }
            socket.connect(&remote.into())?;
            socket.set_read_timeout(Some(run::bound(TIMEOUT)))?;
            Ok(Self {
                socket: socket.into(),
                remote,
            })
        };
        open().map_err(LabError::io(format!("open a UDP socket to {remote}")))
    }

    /// Changes the bound of an answer.
    pub fn set_timeout(&self, timeout: Duration) -> Result<(), LabError> {
        let set = self.socket.set_read_timeout(Some(timeout));
        set.map_err(LabError::io("set a read timeout"))
    }

    /// The socket itself.
    pub const fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Sends one datagram and returns the answer without its end of line.
    pub fn ask(&self, question: &str) -> Result<String, LabError> {
        let answer = self.exchange(question.as_bytes())?;
        Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
    }

    /// Sends one datagram and returns the answer's bytes.
    pub fn exchange(&self, question: &[u8]) -> Result<Vec<u8>, LabError> {
        let mut buffer = vec![0; 1 << 16];
        let result = self
            .socket
            .send(question)
            .and_then(|_| self.socket.recv(&mut buffer));
        let length = result.map_err(LabError::io(format!("ask {} over UDP", self.remote)))?;
        buffer.truncate(length);
        Ok(buffer)
    }
}
