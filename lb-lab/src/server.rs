// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real servers in a host's namespace that answer the host's name over TCP and UDP.
//!
//! TCP speaks HTTP/1.1 with keep-alive; one thread accepts per address, one serves per
//! connection. **Invariant:** stopping closes every socket, so a stopped server refuses and
//! its connections end. Paths are listed at [`Server`]. Read next: `client`.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::error::LabError;
use crate::host::Host;
use crate::http::{self, Head};

/// Connections that may wait for the accepting thread.
const BACKLOG: i32 = 4096;
/// Stack of a connection's thread; thousands may exist.
const STACK: usize = 256 << 10;

/// What a server listens on and answers.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    host_name: String,
    ports: Vec<u16>,
    tcp: bool,
    udp: bool,
}

impl ServerOptions {
    /// A server on these ports, TCP and UDP, that answers `host_name`.
    pub fn new(host_name: &str, ports: &[u16]) -> Self {
        Self {
            host_name: host_name.to_owned(),
            ports: ports.to_vec(),
            tcp: true,
            udp: true,
        }
    }

    /// Leaves TCP out.
    #[must_use]
    pub const fn without_tcp(mut self) -> Self {
        self.tcp = false;
        self
    }

    /// Leaves UDP out.
    #[must_use]
    pub const fn without_udp(mut self) -> Self {
        self.udp = false;
        self
    }
}

/// A running server; it stops when dropped, and with its lab.
///
/// Over HTTP, any path answers the host name and an end of line, except:
/// - `/source`: the client's address as the server sees it, `ADDRESS PORT`;
/// - `/stream?bytes=N&ms=M`: N bytes, one kibibyte every M milliseconds;
/// - `/bulk?bytes=N`: N bytes that follow from their offset; with PUT or POST the body is
///   checked against the same bytes and the answer is `ok` or `differs at OFFSET`.
///
/// Over UDP, `hostname` is answered by the host name, `source` as above, all else is echoed.
#[derive(Debug)]
#[must_use = "the server stops when dropped"]
pub struct Server {
    shared: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

/// What a server's threads share, and how they are told to end.
#[derive(Debug)]
pub(crate) struct Stop {
    host_name: String,
    stopping: AtomicBool,
    event: EventFd,
    connections: AtomicU64,
    answers: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<TcpStream>>>,
}

impl Stop {
    /// Wakes every thread and ends every connection.
    pub(crate) fn now(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // The counter is never read back, so the descriptor stays readable for all threads.
        if let Err(errno) = self.event.write(1) {
            crate::stale::complain(&format!("stop server {}: {errno}", self.host_name));
        }
        for stream in self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
        {
            // The peer may have closed it already.
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }

    /// Waits until a socket is readable; false when the server stops.
    fn readable(&self, socket: BorrowedFd<'_>) -> bool {
        let mut fds = [
            PollFd::new(self.event.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket, PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => !self.stopping.load(Ordering::SeqCst),
            Err(_) => false,
        }
    }

    /// Waits for a time; false when the server stops.
    fn wait(&self, time: Duration) -> bool {
        let millis = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, millis).is_ok() && !self.stopping.load(Ordering::SeqCst)
    }
}

impl Server {
    pub(crate) fn start(host: &Host, options: &ServerOptions) -> Result<Self, LabError> {
        let mut state = host.lab.open()?;
        let name = &options.host_name;
        let event = EventFd::new().map_err(LabError::sys("make an eventfd"))?;
        let shared = Arc::new(Stop {
            host_name: name.clone(),
            stopping: AtomicBool::new(false),
            event,
            connections: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let mut server = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        let places: Vec<SocketAddr> = options
            .ports
            .iter()
            .flat_map(|port| {
                host.addresses()
                    .map(|address| SocketAddr::new(address, *port))
            })
            .collect();
        host.run(|| {
            for place in places {
                if options.tcp {
                    let listener = listen(place);
                    let listener = listener.map_err(LabError::io(format!("listen on {place}")))?;
                    server.spawn(move |shared| {
                        accept(shared, &listener);
                        // A child that was forked and has not called exec yet holds a copy of
                        // the descriptor; shutting down ends the listening in spite of it.
                        drop(SockRef::from(&listener).shutdown(std::net::Shutdown::Both));
                    })?;
                }
                if options.udp {
                    let socket = UdpSocket::bind(place);
                    let socket = socket.map_err(LabError::io(format!("bind UDP {place}")))?;
                    server.spawn(move |shared| answer_datagrams(shared, &socket))?;
                }
            }
            Ok(())
        })??;
        state.add_server(&shared);
        Ok(server)
    }

    fn spawn(&mut self, work: impl FnOnce(&Arc<Stop>) + Send + 'static) -> Result<(), LabError> {
        let shared = Arc::clone(&self.shared);
        let builder = thread::Builder::new().name(format!("serve {}", shared.host_name));
        let thread = builder.stack_size(STACK).spawn(move || work(&shared));
        self.threads
            .push(thread.map_err(LabError::io("start a server thread"))?);
        Ok(())
    }

    /// The name it answers.
    pub fn host_name(&self) -> &str {
        &self.shared.host_name
    }

    /// How many TCP connections it has accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many requests it has answered, TCP and UDP together.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// How many TCP connections are open now.
    pub fn open_connections(&self) -> usize {
        self.shared
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Closes the listeners and all connections; dropping the value does the same.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.now();
        for thread in self.threads.drain(..) {
            // A panic of a server thread was reported on standard error already.
            drop(thread.join());
        }
    }
}

fn listen(place: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(place),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restarted server takes its port back from connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&place.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn accept(shared: &Arc<Stop>, listener: &TcpListener) {
    while shared.readable(listener.as_fd()) {
        while let Ok((stream, peer)) = listener.accept() {
            let number = shared.connections.fetch_add(1, Ordering::Relaxed);
            let stream = Arc::new(stream);
            let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.insert(number, Arc::clone(&stream));
            drop(open);
            if shared.stopping.load(Ordering::SeqCst) {
                // It came between the two: `now` did not see it.
                drop(stream.shutdown(std::net::Shutdown::Both));
            }
            let for_thread = Arc::clone(shared);
            let serve = move || {
                // The client sees a failure itself; nobody else can use the error.
                drop(converse(&for_thread, &stream, peer));
                for_thread
                    .open
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&number);
            };
            if thread::Builder::new()
                .stack_size(STACK)
                .spawn(serve)
                .is_err()
            {
                // Out of threads: the connection is closed, which the client counts as an error.
                shared
                    .open
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&number);
            }
        }
    }
}

/// Answers requests on one connection until either side closes it.
fn converse(shared: &Stop, stream: &TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(head) = http::read_head(&mut reader)? {
        let path = head.words[1].as_str();
        let mut writer = stream;
        if head.length > 0 {
            if head.expects_continue {
                writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let verdict = receive(&mut reader, path, head.length)?;
            respond(writer, &head, &verdict)?;
        } else if path.starts_with("/bulk?") {
            let length = http::query(path, "bytes").unwrap_or(0);
            write_head(writer, &head, length, "")?;
            http::write_bulk(&mut writer, length)?;
        } else if path.starts_with("/stream?") {
            stream_slowly(shared, writer, &head)?;
        } else if path == "/source" {
            respond(writer, &head, &format!("{} {}\n", peer.ip(), peer.port()))?;
        } else {
            respond(writer, &head, &format!("{}\n", shared.host_name))?;
        }
        shared.answers.fetch_add(1, Ordering::Relaxed);
        if head.close || head.words[2] == "HTTP/1.0" {
            break;
        }
    }
    stream.shutdown(std::net::Shutdown::Both)
}

fn receive(reader: &mut impl io::BufRead, path: &str, length: u64) -> io::Result<String> {
    if !path.starts_with("/bulk") {
        io::copy(&mut reader.take(length), &mut io::sink())?;
        return Ok("ok\n".to_owned());
    }
    let wrong = http::check_bulk(reader, length)?;
    Ok(wrong.map_or_else(
        || "ok\n".to_owned(),
        |offset| format!("differs at {offset}\n"),
    ))
}

/// Writes a head and, in the same segment, the body given.
fn write_head(mut writer: &TcpStream, head: &Head, length: u64, body: &str) -> io::Result<()> {
    let connection = if head.close { "close" } else { "keep-alive" };
    let text = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         Connection: {connection}\r\n\r\n{body}"
    );
    writer.write_all(text.as_bytes())
}

fn respond(writer: &TcpStream, head: &Head, body: &str) -> io::Result<()> {
    write_head(writer, head, body.len() as u64, body)
}

fn stream_slowly(shared: &Stop, mut writer: &TcpStream, head: &Head) -> io::Result<()> {
    let path = &head.words[1];
    let mut left = http::query(path, "bytes").unwrap_or(1024);
    let pause = Duration::from_millis(http::query(path, "ms").unwrap_or(100));
    write_head(writer, head, left, "")?;
    let piece = [b'.'; 1024];
    while left > 0 {
        let part = left.min(1024);
        writer.write_all(&piece[..usize::try_from(part).unwrap_or(1024)])?;
        left -= part;
        if left > 0 && !shared.wait(pause) {
            break;
        }
    }
    Ok(())
}

fn answer_datagrams(shared: &Arc<Stop>, socket: &UdpSocket) {
    let mut buffer = vec![0; 1 << 16];
    while shared.readable(socket.as_fd()) {
        // An error here is an ICMP error about an earlier answer.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let ip: IpAddr = peer.ip();
        let question = buffer[..length].trim_ascii();
        let sent = match question {
            b"hostname" => socket.send_to(format!("{}\n", shared.host_name).as_bytes(), peer),
            b"source" => socket.send_to(format!("{ip} {}\n", peer.port()).as_bytes(), peer),
            _ => socket.send_to(&buffer[..length], peer),
        };
        if sent.is_ok() {
            shared.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}
