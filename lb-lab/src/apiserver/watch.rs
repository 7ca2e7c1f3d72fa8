// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watches: how one begins, and its life of waiting and sending.
//!
//! **Invariant:** what a list or a version shows and what the watch then sends leave no gap: both are
//! taken under one lock. A running watch never falls behind the history, its queue is its own.
//! Read next: `stream`, which sends the events and does what faults say.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::libc::POLLRDHUP;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::fault::{Claims, Fault};
use super::out::{self, Chunks};
use super::query::{Params, Version};
use super::resource::Resource;
use super::selector::Filter;
use super::serve::{Next, Shared};
use super::status::Failure;
use super::store::{State, Watcher};
use super::stream::{Item, Stream};

/// The longest life of a watch that names none.
const LIFE: Duration = Duration::from_hours(1);

/// Answers a watch.
pub(super) fn watch(
    shared: &Shared,
    stream: &TcpStream,
    resource: Resource,
    params: &Params,
    filter: Filter,
    claims: Claims,
) -> io::Result<Next> {
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?);
    let begun = {
        let mut state = shared.lock();
        let begun = begin(&state, resource, params, &filter, &claims);
        begun.map(|pending| (pending, Seat::take(shared, &mut state, resource, wake)))
    };
    let (pending, seat) = match begun {
        Ok(begun) => begun,
        Err(failure) if failure.code == 410 => {
            // A real server has said 200 when it finds out.
            let mut out = Chunks::begin(shared, stream, claims.pace())?;
            super::stream::write_error(out.buffer(), &failure);
            out.finish()?;
            return Ok(Next::Request);
        }
        Err(failure) => {
            out::refuse(shared, stream, &failure)?;
            return Ok(Next::Request);
        }
    };
    let out = Chunks::begin(shared, stream, claims.pace())?;
    let ends = Instant::now() + params.timeout.unwrap_or(LIFE);
    let stream = Stream::new(shared, out, claims, filter, resource, params.bookmarks);
    live(&seat, stream, pending, ends)
}

/// What a new watch sends first.
fn begin(
    state: &State,
    resource: Resource,
    params: &Params,
    filter: &Filter,
    claims: &Claims,
) -> Result<VecDeque<Item>, Failure> {
    let current = state.version;
    let streams_list = params.streams_list && !claims.has(Fault::IgnoreWatchList);
    let from = match params.version {
        Version::Newest | Version::Any => None,
        Version::From(version) | Version::Exactly(version) => Some(version),
    };
    match from {
        Some(version) if streams_list && version > current => {
            return Err(Failure::too_large(version, current));
        }
        Some(version) if !streams_list => {
            let oldest = state.oldest(resource);
            if version < oldest {
                let message = format!("too old resource version: {version} ({oldest})");
                return Err(Failure::expired(message));
            }
            let events = state.since(resource, version);
            return Ok(events.into_iter().map(Item::Change).collect());
        }
        _ => {}
    }
    let page = state.page(resource, current, filter, None, None);
    let mut initial: VecDeque<Item> = page.objects.into_iter().map(Item::Initial).collect();
    if claims.has(Fault::HalfList) {
        let mut odd = false;
        initial.retain(|_| {
            odd = !odd;
            odd
        });
    }
    if streams_list {
        initial.push_back(Item::InitialEnd(current));
    }
    Ok(initial)
}

/// The place of a watch among the watchers, until it is dropped.
struct Seat<'a> {
    shared: &'a Shared,
    id: u64,
    /// How often a bookmark had been ordered.
    round: u64,
    wake: Arc<EventFd>,
}

impl<'a> Seat<'a> {
    /// With the lock that shows what the watch begins with, or something would fall between.
    fn take(shared: &'a Shared, state: &mut State, resource: Resource, wake: Arc<EventFd>) -> Self {
        let (id, round) = (state.next_id(), state.bookmark_round);
        let watcher = Watcher {
            resource,
            queue: VecDeque::new(),
            wake: Arc::clone(&wake),
        };
        state.watchers.insert(id, watcher);
        Self {
            shared,
            id,
            round,
            wake,
        }
    }

    /// Waits until there may be something to do; false when the client is gone.
    fn wait(&self, stream: &TcpStream, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be waited for in a busy loop.
        let millis = left + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut fds = [
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(stream.as_fd(), PollFlags::from_bits_retain(POLLRDHUP)),
        ];
        let polled = poll(&mut fds, timeout);
        // Its answer is a flag that nix does not know, which is `None`.
        let gone = fds[1].any().unwrap_or(true);
        // It is not readable after a timeout.
        self.wake.read().ok();
        matches!(polled, Ok(_) | Err(nix::errno::Errno::EINTR)) && !gone
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.shared.lock().watchers.remove(&self.id);
    }
}

fn live(
    seat: &Seat<'_>,
    mut stream: Stream<'_>,
    mut pending: VecDeque<Item>,
    ends: Instant,
) -> io::Result<Next> {
    let shared = seat.shared;
    let mut round = seat.round;
    let mut bookmarked = Instant::now();
    loop {
        let holds;
        let (version, ordered, every) = {
            let mut state = shared.lock();
            stream.claims.refresh(&mut state);
            holds = stream.claims.has(Fault::HoldEvents);
            if !holds && let Some(watcher) = state.watchers.get_mut(&seat.id) {
                pending.extend(watcher.queue.drain(..).map(Item::Change));
            }
            (state.version, state.bookmark_round, state.bookmark_every)
        };
        if shared.stopping.load(Ordering::SeqCst) {
            return Ok(Next::Close);
        }
        if stream.claims.has(Fault::SilentWatch) {
            if !seat.wait(stream.socket(), Instant::now() + LIFE) {
                return Ok(Next::Close);
            }
            continue;
        }
        stream.out.pace = stream.claims.pace();
        if let Some(end) = stream.due() {
            return stream.end(end);
        }
        if !holds {
            while let Some(item) = pending.pop_front() {
                stream.send(&item)?;
                if let Some(end) = stream.due() {
                    return stream.end(end);
                }
            }
            stream.send_held_end(version);
            let now = Instant::now();
            if round != ordered || now >= bookmarked + every || now >= ends {
                stream.bookmark(version);
                (round, bookmarked) = (ordered, now);
            }
        }
        stream.flush()?;
        if Instant::now() >= ends {
            stream.out.finish()?;
            return Ok(Next::Request);
        }
        let until = if holds {
            ends
        } else {
            ends.min(bookmarked + every)
        };
        if !seat.wait(stream.socket(), until) {
            return Ok(Next::Close);
        }
    }
}
