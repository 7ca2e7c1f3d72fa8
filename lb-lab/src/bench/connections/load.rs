// SPDX-License-Identifier: MIT OR Apache-2.0
//! The load: connect, read one line, close with a reset; and the server that says the line.
//!
//! **Invariant:** one connection at a time, both ends on one processor, no retry; whatever does not
//! answer in time or says another line is counted as failed.
//! Read next: `rounds`, which takes the measurements.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::services::TARGET_PORT;
use crate::error::LabError;
use crate::host::Host;

/// What a connect and the answer may take each: half the time after which a SYN is repeated, so a
/// connection that lost one counts as failed.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long the server waits for a client or for a client's reset before it looks whether it is over.
const LOOK: Duration = Duration::from_secs(1);
/// The most that a thread can have without being a real-time one, which would starve the kernel's own.
const NICENESS: i32 = -20;
/// The longest line, that of the longest name and a number.
const LINE_MAX: usize = 64;

/// The processor that a bench uses where nobody says which: the last one that it may.
pub(super) fn last_cpu() -> Result<usize, LabError> {
    let allowed = sched_getaffinity(Pid::from_raw(0));
    let allowed = allowed.map_err(LabError::sys("ask for the allowed processors"))?;
    let mut numbers = (0..CpuSet::count()).rev();
    Ok(numbers
        .find(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .unwrap_or(0))
}

/// Keeps the calling thread on one processor, before everything else that wants to be there: of two
/// threads that wake each other, each would else wait for a turn of whoever computes there.
fn pin(cpu: usize) -> Result<(), LabError> {
    let mut set = CpuSet::new();
    let pinned = set
        .set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.map_err(LabError::sys(format!("stay on processor {cpu}")))?;
    // SAFETY: the call takes three numbers; 0 is the calling thread.
    let status = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    Errno::result(status)
        .map(drop)
        .map_err(LabError::sys("go before other threads"))
}

/// A server that says one line to whoever connects; it ends with the value.
pub(super) struct LineServer {
    listener: Arc<TcpListener>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LineServer {
    /// Starts it on a host; the line is `name number`.
    pub(super) fn start(
        host: &Host,
        name: &str,
        number: usize,
        cpu: usize,
    ) -> Result<Self, LabError> {
        let listener = host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, TARGET_PORT)))?;
        let listener = listener.map_err(LabError::io("listen in a pod"))?;
        // What is accepted inherits it, so a connection costs no system call more.
        let bounded = SockRef::from(&listener).set_read_timeout(Some(LOOK));
        bounded.map_err(LabError::io("set a server's timeout"))?;
        let (listener, over) = (Arc::new(listener), Arc::new(AtomicBool::new(false)));
        let line = format!("{name} {number}\n");
        let (own, until) = (Arc::clone(&listener), Arc::clone(&over));
        let (told, pinned) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            // Nobody waits for the answer if the bench is already over.
            told.send(pin(cpu)).unwrap_or_default();
            while !until.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = own.accept() {
                    answer(stream, line.as_bytes());
                }
            }
        });
        let server = Self {
            listener,
            over,
            thread: Some(thread),
        };
        // A thread that could not even say so has no processor to stay on.
        pinned.recv().unwrap_or(Ok(()))?;
        Ok(server)
    }
}

/// Says the line and waits until the client is gone.
fn answer(mut stream: TcpStream, line: &[u8]) {
    if stream.write_all(line).is_ok() {
        // The client resets the connection, so this is an error, and that is the end of it.
        drop(stream.read(&mut [0; 1]));
    }
}

impl Drop for LineServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the accept; a socket that is gone needs no waking.
        drop(SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Where the load goes, and who must answer.
#[derive(Debug, Clone)]
pub(super) struct Goal {
    /// Dialled in turn.
    pub(super) remotes: Vec<SocketAddrV4>,
    /// The name in the line.
    pub(super) name: String,
}

/// What one turn of a load gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Turn {
    /// From the call of connect to the end of the line, in nanoseconds, sorted.
    pub(super) nanos: Vec<u64>,
    pub(super) failed: u64,
    /// The first failure.
    pub(super) error: Option<String>,
    /// A bit for each server that has answered.
    pub(super) servers: u32,
    pub(super) elapsed: Duration,
}

/// One connection after the other for so long, from a host, on one processor.
pub(super) fn run(from: &Host, goal: &Goal, time: Duration, cpu: usize) -> Result<Turn, LabError> {
    from.run(|| {
        pin(cpu)?;
        let start = Instant::now();
        Ok(repeat(goal, |_| start.elapsed() < time))
    })?
}

/// So many connections, to see whether there is an answer at all; ends with the first failure.
pub(super) fn probe(from: &Host, goal: &Goal, count: usize, cpu: usize) -> Result<Turn, LabError> {
    from.run(|| {
        pin(cpu)?;
        Ok(repeat(goal, |turn| {
            turn.failed == 0 && turn.nanos.len() < count
        }))
    })?
}

fn repeat(goal: &Goal, go_on: impl Fn(&Turn) -> bool) -> Turn {
    let mut turn = Turn::default();
    let start = Instant::now();
    for remote in goal.remotes.iter().cycle() {
        if !go_on(&turn) {
            break;
        }
        match connect(*remote, &goal.name) {
            Ok((nanos, server)) => {
                turn.nanos.push(nanos);
                turn.servers |= 1 << server;
            }
            Err(error) => {
                turn.failed += 1;
                turn.error.get_or_insert(format!("{remote}: {error}"));
            }
        }
        // The server, on the same processor, sees the reset now and not within the next connection.
        thread::yield_now();
    }
    turn.elapsed = start.elapsed();
    turn.nanos.sort_unstable();
    turn
}

/// One connection: nanoseconds until the line was there, and the number in it.
fn connect(remote: SocketAddrV4, name: &str) -> io::Result<(u64, u32)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_write_timeout(Some(ANSWER_MAX))?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    let mut line = [0; LINE_MAX];
    let start = Instant::now();
    socket.connect(&SocketAddr::V4(remote).into())?;
    let mut stream = TcpStream::from(socket);
    let length = read_line(&mut stream, &mut line)?;
    let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    // The reset is not part of the time.
    drop(stream);
    let number = server_number(&line[..length], name)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "somebody else answered"))?;
    Ok((nanos, number))
}

fn read_line(stream: &mut TcpStream, line: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < line.len() {
        match stream.read(&mut line[length..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => length += count,
        }
        if line[length - 1] == b'\n' {
            return Ok(length);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "no end of line"))
}

/// The number in a line of a server with this name.
fn server_number(line: &[u8], name: &str) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let number = line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()?;
    (number < u32::BITS).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_line_of_the_right_server_counts() {
        assert_eq!(server_number(b"clean 2\n", "clean"), Some(2));
        assert_eq!(server_number(b"clean 2", "clean"), None);
        assert_eq!(server_number(b"ours 2\n", "clean"), None);
        assert_eq!(server_number(b"ours-cni 2\n", "ours"), None);
        assert_eq!(server_number(b"clean 32\n", "clean"), None);
    }

    #[test]
    fn a_refused_connection_is_a_failure_with_its_reason() {
        // Port 0 is nobody's.
        let remotes = vec![SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)];
        let name = "clean".to_owned();
        let turn = repeat(&Goal { remotes, name }, |turn| turn.failed < 3);
        assert_eq!((turn.failed, turn.nanos.len()), (3, 0));
        assert!(turn.error.unwrap().starts_with("127.0.0.1:0: "));
    }
}
