// SPDX-License-Identifier: MIT OR Apache-2.0
//! A load that must not notice anything: long streams, new connections at a steady rate, datagrams
//! from fixed ports; and the servers that send back what they get.
//!
//! One thread for each side, whatever the number of connections, because the machine has other work.
//! **Invariant:** nothing is tried twice: each byte is compared, and whatever takes longer than a
//! connect may take or is repeated by the kernel is a failure. Read next: `upgrades.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first failure")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lb_lab::Host;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::cluster::{CONNECT_MAX, pause};

/// How long an answer on a connection that is open may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a datagram's answer may take: nobody repeats it.
const DATAGRAM_MAX: Duration = Duration::from_secs(1);
/// Time between two records of a stream.
const STREAM_REST: Duration = Duration::from_secs(1);
/// Time between two datagrams of a socket.
const DATAGRAM_REST: Duration = Duration::from_millis(100);
/// The ports that datagrams come from, one after the other for each remote.
const FIRST_PORT: u16 = 21_000;
/// Streams opened between two rests, so that they do not come as one burst.
const OPENED_AT_ONCE: usize = 20;

/// How much there is of each kind, at each client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    /// Streams that last.
    pub(crate) streams: usize,
    /// New connections in a second.
    pub(crate) rate: u64,
    /// Sockets of UDP for each remote.
    pub(crate) datagrams: u16,
}

/// What a client counts.
#[derive(Debug, Default)]
struct Counters {
    streams: AtomicU64,
    bytes: AtomicU64,
    requests: AtomicU64,
    datagrams: AtomicU64,
}

/// What a client saw.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) bytes: u64,
    pub(crate) requests: u64,
    pub(crate) datagrams: u64,
    /// What went wrong, by what it was.
    pub(crate) failures: BTreeMap<String, usize>,
    /// Counters of the kernel in the client's namespace that stay as they are.
    pub(crate) kernel: BTreeMap<&'static str, u64>,
}

/// A thread in a host's namespace.
pub(crate) struct Running<T> {
    stop: Arc<AtomicBool>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<T>>,
}

impl<T> Running<T> {
    fn end(&mut self) -> Option<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(|thread| thread.join().unwrap())
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed, and this may be the end of a test that has failed.
            drop(thread.join());
        }
    }
}

/// Runs `work` on a thread of its own in the namespace of `host`.
fn start<T, W>(host: &Host, work: W) -> Running<T>
where
    T: Send + 'static,
    W: AsyncFnOnce(Arc<AtomicBool>, Arc<Counters>) -> T + Send + 'static,
{
    let stop = Arc::new(AtomicBool::new(false));
    let counters = Arc::<Counters>::default();
    let (for_thread, counted) = (Arc::clone(&stop), Arc::clone(&counters));
    // A thread has the namespaces of the one that started it.
    let spawn = || {
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, work(for_thread, counted))
        })
    };
    Running {
        stop,
        counters,
        thread: Some(host.run(spawn).unwrap()),
    }
}

/// Serves a host's addresses on this port, sending back all it gets.
pub(crate) fn echo(host: &Host, port: u16) -> Running<()> {
    let places = host
        .addresses()
        .map(|address| SocketAddr::new(address, port));
    start(host, async move |stop, _| {
        for place in places {
            let listener = TcpListener::bind(place).await.unwrap();
            spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    spawn_local(send_back(stream));
                }
            });
            let socket = UdpSocket::bind(place).await.unwrap();
            spawn_local(async move {
                let mut buffer = [0; 2048];
                loop {
                    // An error here is an ICMP error about an earlier answer.
                    if let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                        drop(socket.send_to(&buffer[..length], peer).await);
                    }
                }
            });
        }
        while !stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(20)).await;
        }
    })
}

async fn send_back(mut stream: TcpStream) {
    drop(stream.set_nodelay(true));
    let mut buffer = [0; 256];
    // The client sees a failure itself.
    while let Ok(length) = stream.read(&mut buffer).await {
        if length == 0 || stream.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
}

/// A load that runs.
pub(crate) struct Load(Running<Seen>);

impl Load {
    /// Opens all streams through the remotes in turn and begins with the rest; returns when all of them
    /// have been answered once.
    pub(crate) fn start(client: &Host, remotes: &[SocketAddr], amount: Amount) -> Self {
        let remotes = remotes.to_vec();
        let running = start(client, async move |stop, counters| {
            run(&remotes, amount, stop, counters).await
        });
        let until = Instant::now() + Duration::from_mins(1);
        let begun = || {
            let counters = &running.counters;
            counters.streams.load(Ordering::Relaxed) == amount.streams as u64
                && counters.requests.load(Ordering::Relaxed) > 0
        };
        while !begun() {
            let alive = running
                .thread
                .as_ref()
                .is_some_and(|thread| !thread.is_finished());
            assert!(
                alive && Instant::now() < until,
                "the load never began: {:?}",
                running.counters
            );
            pause(Duration::from_millis(10));
        }
        Self(running)
    }

    /// Ends it, when each stream has been answered for the last time.
    pub(crate) fn stop(mut self) -> Seen {
        self.0.end().unwrap()
    }
}

/// What all tasks of a client share.
struct Shared {
    stop: Arc<AtomicBool>,
    counters: Arc<Counters>,
    failures: RefCell<BTreeMap<String, usize>>,
    running: Cell<usize>,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn fail(&self, what: &str, error: &io::Error) {
        let mut failures = self.failures.borrow_mut();
        *failures.entry(format!("{what}: {error}")).or_default() += 1;
    }

    /// Runs a task that is waited for at the end, and notes its failure.
    fn spawn(self: &Rc<Self>, what: String, task: impl Future<Output = io::Result<()>> + 'static) {
        let shared = Rc::clone(self);
        shared.running.set(shared.running.get() + 1);
        spawn_local(async move {
            if let Err(error) = task.await {
                shared.fail(&what, &error);
            }
            shared.running.set(shared.running.get() - 1);
        });
    }
}

async fn run(
    remotes: &[SocketAddr],
    amount: Amount,
    stop: Arc<AtomicBool>,
    counters: Arc<Counters>,
) -> Seen {
    let before = kernel_counters();
    let shared = Rc::new(Shared {
        stop,
        counters,
        failures: RefCell::default(),
        running: Cell::new(0),
    });
    for number in 0..amount.streams {
        let remote = remotes[number % remotes.len()];
        shared.spawn(
            format!("stream {remote}"),
            stream(Rc::clone(&shared), remote, number),
        );
        if number % OPENED_AT_ONCE == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
    let ports = (FIRST_PORT..).take(usize::from(amount.datagrams) * remotes.len());
    for (number, port) in ports.enumerate() {
        let remote = remotes[number % remotes.len()];
        shared.spawn(
            format!("datagram {remote}"),
            datagrams(Rc::clone(&shared), remote, port),
        );
    }
    dial(&shared, remotes, amount.rate).await;
    while shared.running.get() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    let after = kernel_counters();
    let kernel = after
        .iter()
        .map(|(name, value)| (*name, value - before[name]));
    let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Seen {
        bytes: counted(&shared.counters.bytes),
        requests: counted(&shared.counters.requests),
        datagrams: counted(&shared.counters.datagrams),
        kernel: kernel.collect(),
        failures: shared.failures.take(),
    }
}

/// Begins connections at a steady rate until the end.
async fn dial(shared: &Rc<Shared>, remotes: &[SocketAddr], rate: u64) {
    /// Connections are begun so often, some at once: a timer of the runtime has milliseconds.
    const TICKS: u64 = 25;
    let mut ticks = interval(Duration::from_millis(1000 / TICKS));
    // What this thread was too late for is not made good: that would be a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    while shared.goes_on() {
        ticks.tick().await;
        for _ in 0..rate / TICKS {
            let remote = remotes[number % remotes.len()];
            shared.spawn(
                format!("request {remote}"),
                request(Rc::clone(shared), remote),
            );
            number += 1;
        }
    }
}

async fn connect(remote: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT_MAX, TcpStream::connect(remote)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a record and compares what comes back.
async fn exchange(stream: &mut TcpStream, record: &[u8; 64], max: Duration) -> io::Result<()> {
    stream.write_all(record).await?;
    let mut answer = [0; 64];
    timeout(max, stream.read_exact(&mut answer)).await??;
    if answer == *record {
        Ok(())
    } else {
        Err(io::Error::other("other bytes came back"))
    }
}

/// Bytes that nobody else sends.
fn record(numbers: [u64; 2]) -> [u8; 64] {
    let mut record = [0; 64];
    for (at, number) in (0..8_u64).zip(record.chunks_exact_mut(8)) {
        let [first, second] = numbers;
        number.copy_from_slice(&(first << 32 ^ second << 8 ^ at).to_le_bytes());
    }
    record
}

async fn stream(shared: Rc<Shared>, remote: SocketAddr, number: usize) -> io::Result<()> {
    let mut stream = connect(remote).await?;
    for round in 0.. {
        exchange(&mut stream, &record([number as u64, round]), ANSWER_MAX).await?;
        shared.counters.bytes.fetch_add(64, Ordering::Relaxed);
        if round == 0 {
            shared.counters.streams.fetch_add(1, Ordering::Relaxed);
        }
        if !shared.goes_on() {
            break;
        }
        sleep(STREAM_REST).await;
    }
    stream.shutdown().await?;
    // The other side has closed, too, and has sent nothing more.
    match timeout(ANSWER_MAX, stream.read(&mut [0; 1])).await?? {
        0 => Ok(()),
        _ => Err(io::Error::other("more came than was sent")),
    }
}

async fn request(shared: Rc<Shared>, remote: SocketAddr) -> io::Result<()> {
    let mut stream = connect(remote).await?;
    exchange(&mut stream, &record([u64::from(u32::MAX), 0]), ANSWER_MAX).await?;
    shared.counters.requests.fetch_add(1, Ordering::Relaxed);
    stream.shutdown().await
}

async fn datagrams(shared: Rc<Shared>, remote: SocketAddr, port: u16) -> io::Result<()> {
    let own: SocketAddr = match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    };
    let socket = UdpSocket::bind(own).await?;
    socket.connect(remote).await?;
    let mut round: u64 = 0;
    while shared.goes_on() {
        let sent = record([port.into(), round]);
        socket.send(&sent).await?;
        let mut answer = [0; 128];
        let length = timeout(DATAGRAM_MAX, socket.recv(&mut answer)).await??;
        if answer[..length] != sent {
            return Err(io::Error::other("another datagram came back"));
        }
        shared.counters.datagrams.fetch_add(1, Ordering::Relaxed);
        round += 1;
        sleep(DATAGRAM_REST).await;
    }
    Ok(())
}

/// Counters of TCP in the namespace of this thread, none of which moves where nothing is lost.
fn kernel_counters() -> BTreeMap<&'static str, u64> {
    const WATCHED: [&str; 3] = ["TCPSynRetrans", "EstabResets", "AttemptFails"];
    let mut found = BTreeMap::new();
    for file in ["netstat", "snmp"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let values = pair[1].split_whitespace();
            for (name, value) in pair[0].split_whitespace().zip(values) {
                if let Some(name) = WATCHED.into_iter().find(|watched| *watched == name) {
                    found.insert(name, value.parse().unwrap());
                }
            }
        }
    }
    assert_eq!(found.len(), WATCHED.len(), "{found:?}");
    found
}
