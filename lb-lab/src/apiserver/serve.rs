// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections and requests: who accepts, who answers, and how all of it ends.
//!
//! One thread accepts, one serves per connection. **Invariant:** a stopped server has closed every
//! socket and joined every thread.
//! Read next: `list` and `watch`, the two answers that matter.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use socket2::SockRef;

use super::Request;
use super::fault::{self, Claims, Fault, Verb};
use super::list::list;
use super::out::{answer, refuse};
use super::query::Params;
use super::resource::{Resource, Route, route};
use super::selector::Filter;
use super::status::Failure;
use super::store::{State, wake};
use super::watch::watch;
use super::written;
use crate::error::LabError;
use crate::http::{self, Head};

/// Stack of a connection's thread.
const STACK: usize = 256 << 10;
/// The longest body that is read, as a real server has it.
const BODY_MAX: u64 = 3 << 20;
/// What `/version` answers.
const VERSION: &str = r#"{"major":"1","minor":"36","gitVersion":"v1.36.2","gitCommit":"0000000000000000000000000000000000000000","gitTreeState":"clean","buildDate":"2026-01-01T00:00:00Z","goVersion":"go1.26.0","compiler":"gc","platform":"linux/amd64"}"#;

/// What a connection does after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It takes the next request.
    Request,
    /// It closes.
    Close,
    /// It is reset.
    Reset,
}

/// What all threads of a server share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Told when events were handed to a socket.
    pub(super) handed: Condvar,
    /// Bytes sent.
    pub(super) bytes: AtomicU64,
    pub(super) stopping: AtomicBool,
    stop: EventFd,
    open: Mutex<BTreeMap<u64, Arc<TcpStream>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    pub(super) fn new() -> Result<Self, LabError> {
        Ok(Self {
            state: Mutex::default(),
            handed: Condvar::new(),
            bytes: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            stop: EventFd::new().map_err(LabError::sys("make an eventfd"))?,
            open: Mutex::default(),
            threads: Mutex::default(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits a millisecond, or fails when the server stops.
    pub(super) fn pause_for_a_millisecond(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        // A signal shortens the pause, which harms nobody.
        poll(&mut fds, PollTimeout::from(1_u8)).ok();
        if self.stopping.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<TcpStream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every connection.
    pub(super) fn close_connections(&self) {
        for stream in self.connections().values() {
            // The client may have closed it already.
            drop(stream.shutdown(Shutdown::Both));
        }
        self.lock().wake_all();
    }

    /// Ends every connection and waits for its thread.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        wake(&self.stop);
        self.close_connections();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A panic of a thread was reported on standard error already.
            drop(thread.join());
        }
    }
}

/// The thread that accepts; the port is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Acceptor {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    pub(super) fn start(shared: &Arc<Shared>, listener: TcpListener) -> Result<Self, LabError> {
        let stop = EventFd::new().map_err(LabError::sys("make an eventfd"))?;
        let stop = Arc::new(stop);
        let (shared, until) = (Arc::clone(shared), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("apiserver".to_owned())
            .spawn(move || {
                while readable(&until, listener.as_fd()) {
                    accept(&shared, &listener);
                }
            });
        let thread = thread.map_err(LabError::io("start the API server's thread"))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        wake(&self.stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported on standard error already.
            drop(thread.join());
        }
    }
}

/// Waits until the listener is readable; false when it is to stop.
fn readable(stop: &EventFd, listener: BorrowedFd<'_>) -> bool {
    let mut fds = [
        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        PollFd::new(listener, PollFlags::POLLIN),
    ];
    let polled = poll(&mut fds, PollTimeout::NONE);
    let stops = fds[0].any().unwrap_or(true);
    matches!(polled, Ok(_) | Err(nix::errno::Errno::EINTR)) && !stops
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    let Ok((stream, _)) = listener.accept() else {
        return;
    };
    if fault::refuses(&mut shared.lock()) {
        reset(&stream);
        return;
    }
    let stream = Arc::new(stream);
    let number = shared.lock().next_id();
    shared.connections().insert(number, Arc::clone(&stream));
    let for_thread = Arc::clone(shared);
    let serve = move || {
        // The client sees a failure itself; nobody else can use the error.
        let next = converse(&for_thread, &stream).unwrap_or(Next::Close);
        for_thread.connections().remove(&number);
        if next == Next::Reset {
            reset(&stream);
        }
    };
    let thread = thread::Builder::new().stack_size(STACK).spawn(serve);
    let mut threads = shared
        .threads
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    threads.retain(|thread| !thread.is_finished());
    match thread {
        Ok(thread) => threads.push(thread),
        // Out of threads: the connection closes, which the client sees.
        Err(_) => drop(shared.connections().remove(&number)),
    }
}

/// Makes the close that follows a reset.
fn reset(stream: &TcpStream) {
    // Where it fails, the client sees an ordinary end, and the test that waits for a reset says so.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

/// Answers requests on one connection until either side closes it.
fn converse(shared: &Shared, stream: &TcpStream) -> io::Result<Next> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(head) = http::read_head(&mut reader)? {
        if head.length > BODY_MAX {
            return Ok(Next::Close);
        }
        if head.expects_continue && head.length > 0 {
            let mut writer = stream;
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = vec![0; usize::try_from(head.length).unwrap_or_default()];
        reader.read_exact(&mut body)?;
        let next = respond(shared, stream, &head, &body)?;
        if next != Next::Request {
            return Ok(next);
        }
        if head.close || head.words[2] == "HTTP/1.0" {
            break;
        }
    }
    Ok(Next::Close)
}

fn respond(shared: &Shared, stream: &TcpStream, head: &Head, body: &[u8]) -> io::Result<Next> {
    let [method, target, _] = &head.words;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let log = |verb: &str| {
        shared.lock().requests.push(Request {
            verb: verb.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            user_agent: head.user_agent.clone(),
        });
    };
    let small = |text: &str| {
        log("get");
        answer(shared, stream, "200 OK", text.as_bytes(), None)
    };
    match route(path) {
        Route::Version => small(VERSION)?,
        Route::Health => small("ok")?,
        Route::Unknown => {
            log(&method.to_lowercase());
            refuse(shared, stream, &Failure::unknown_path())?;
        }
        Route::Objects {
            resource,
            namespace,
            name,
        } => {
            let about = About {
                resource,
                namespace,
                name,
                query,
            };
            let is_read = method == "GET" && resource != Resource::Event;
            return match name {
                Some(name) if is_read => about.get(shared, stream, name, log),
                None if is_read => about.find(shared, stream, log),
                _ => about.write(shared, stream, method, body, log),
            };
        }
    }
    Ok(Next::Request)
}

/// What a request is about.
struct About<'a> {
    resource: Resource,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    query: &'a str,
}

impl About<'_> {
    /// Claims faults; an answer if one of them is an answer already.
    fn claim(
        &self,
        shared: &Shared,
        stream: &TcpStream,
        verb: Verb,
    ) -> io::Result<Result<Claims, Next>> {
        let claims = Claims::begin(&mut shared.lock(), self.resource, verb);
        if claims.has(Fault::Refuse) {
            return Ok(Err(Next::Reset));
        }
        let failure = claims.find(Fault::failure);
        match failure {
            Some(failure) => refuse(shared, stream, &failure).map(|()| Err(Next::Request)),
            None => Ok(Ok(claims)),
        }
    }

    fn get(
        &self,
        shared: &Shared,
        stream: &TcpStream,
        name: &str,
        log: impl Fn(&str),
    ) -> io::Result<Next> {
        log("get");
        let claims = match self.claim(shared, stream, Verb::Get)? {
            Ok(claims) => claims,
            Err(next) => return Ok(next),
        };
        let key = super::object::key(self.resource, self.namespace.unwrap_or_default(), name);
        let object = shared.lock().get(self.resource, &key).map(Arc::clone);
        match object {
            Some(object) => answer(shared, stream, "200 OK", object.bytes(), claims.pace())?,
            None => refuse(shared, stream, &Failure::not_found(self.resource, name))?,
        }
        Ok(Next::Request)
    }

    fn find(&self, shared: &Shared, stream: &TcpStream, log: impl Fn(&str)) -> io::Result<Next> {
        let params = Params::parse(self.query, self.resource);
        let verb = match &params {
            Ok(params) if params.watch && params.streams_list => Verb::StreamList,
            Ok(params) if params.watch => Verb::Watch,
            Ok(params) if params.page.is_some() => Verb::Page,
            _ => Verb::List,
        };
        let is_watch = matches!(verb, Verb::Watch | Verb::StreamList);
        log(if is_watch { "watch" } else { "list" });
        let claims = match self.claim(shared, stream, verb)? {
            Ok(claims) => claims,
            Err(next) => return Ok(next),
        };
        let params = match params {
            Ok(params) => params,
            Err(failure) => {
                refuse(shared, stream, &failure)?;
                return Ok(Next::Request);
            }
        };
        let filter = Filter {
            namespace: self.namespace.map(str::to_owned),
            labels: params.labels.clone(),
            fields: params.fields.clone(),
        };
        if is_watch {
            watch(shared, stream, self.resource, &params, filter, claims)
        } else {
            list(shared, stream, self.resource, &params, &filter, &claims)
        }
    }

    fn write(
        &self,
        shared: &Shared,
        stream: &TcpStream,
        method: &str,
        body: &[u8],
        log: impl Fn(&str),
    ) -> io::Result<Next> {
        match method {
            "POST" => log("create"),
            "PUT" => log("update"),
            _ => log(&method.to_lowercase()),
        }
        if let Err(next) = self.claim(shared, stream, Verb::Write)? {
            return Ok(next);
        }
        let done = if self.resource == Resource::Event {
            written::write(&mut shared.lock(), self.namespace, self.name, method, body)
        } else {
            Err(Failure::wrong_method())
        };
        match done {
            Ok((status, body)) => answer(shared, stream, status, body.as_bytes(), None)?,
            Err(failure) => refuse(shared, stream, &failure)?,
        }
        Ok(Next::Request)
    }
}
