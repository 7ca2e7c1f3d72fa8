// SPDX-License-Identifier: MIT OR Apache-2.0
//! The events of one watch on their way out, and what faults make of them.
//!
//! **Invariant:** without a fault an event is two copies of bytes into the buffer: the frame and the object.
//! The time of handing over is taken just before the write, so nobody can have read the event earlier.
//! Read next: `fault`.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::time::{ClockId, clock_gettime};

use super::fault::{Claims, End, Fault};
use super::object::Object;
use super::out::Chunks;
use super::resource::Resource;
use super::selector::Filter;
use super::serve::{Next, Shared};
use super::status::Failure;
use super::store::Event;

/// Something to send.
pub(super) enum Item {
    /// An object that was there before the watch.
    Initial(Arc<Object>),
    /// The mark that all of them were sent, with their version.
    InitialEnd(u64),
    /// Something that happened.
    Change(Arc<Event>),
}

/// The sending side of a watch.
pub(super) struct Stream<'a> {
    shared: &'a Shared,
    pub(super) out: Chunks<'a>,
    pub(super) claims: Claims,
    filter: Filter,
    resource: Resource,
    bookmarks: bool,
    /// Whether the mark at the end of the initial events is being held back.
    end_is_held: bool,
    /// Lines that are to come again, each with the number of newer ones to let go first.
    late: Vec<(u32, Vec<u8>)>,
    /// Events in the buffer.
    handing: Vec<Arc<Event>>,
}

impl<'a> Stream<'a> {
    pub(super) const fn new(
        shared: &'a Shared,
        out: Chunks<'a>,
        claims: Claims,
        filter: Filter,
        resource: Resource,
        bookmarks: bool,
    ) -> Self {
        Self {
            shared,
            out,
            claims,
            filter,
            resource,
            bookmarks,
            end_is_held: false,
            late: Vec::new(),
            handing: Vec::new(),
        }
    }

    pub(super) const fn socket(&self) -> &'a TcpStream {
        self.out.stream
    }

    /// How a fault ends the watch now, if one does.
    pub(super) fn due(&self) -> Option<End> {
        self.claims.held.iter().find_map(|claim| {
            let (after, end) = claim.fault.end()?;
            (claim.seen >= after).then_some(end)
        })
    }

    /// Ends the watch so.
    pub(super) fn end(mut self, end: End) -> io::Result<Next> {
        match end {
            End::Error => {
                let failure = Failure::expired("too old resource version: 1 (2)");
                write_error(self.out.buffer(), &failure);
            }
            End::Cut => {
                let start = format!(
                    r#"{{"type":"MODIFIED","object":{{"kind":"{}","apiVer"#,
                    self.resource.kind()
                );
                self.out.buffer().extend_from_slice(start.as_bytes());
            }
            End::Clean | End::Reset => {}
        }
        self.flush()?;
        match end {
            End::Clean | End::Error => self.out.finish().map(|()| Next::Request),
            End::Cut => Ok(Next::Close),
            End::Reset => Ok(Next::Reset),
        }
    }

    /// Sends an item.
    pub(super) fn send(&mut self, item: &Item) -> io::Result<()> {
        match item {
            Item::Initial(object) => self.event("ADDED", object, None),
            Item::InitialEnd(version) => {
                self.end_is_held = true;
                self.send_held_end(*version);
            }
            Item::Change(event) => {
                if let Some((kind, object, version)) = event.seen_by(&self.filter) {
                    self.event(kind, object, version);
                    self.handing.push(Arc::clone(event));
                }
            }
        }
        if self.out.is_full() {
            self.flush()?;
        }
        Ok(())
    }

    fn event(&mut self, kind: &str, object: &Object, version: Option<u64>) {
        let buffer = self.out.buffer();
        let from = buffer.len();
        object.write_event(buffer, kind, version);
        if self.claims.held.is_empty() && self.late.is_empty() {
            return;
        }
        for claim in &self.claims.held {
            let once = |after| claim.seen == after;
            let replace: fn(&[u8]) -> Vec<u8> = if matches!(claim.fault, Fault::MalformedEvent { after } if once(after))
            {
                malformed
            } else if matches!(claim.fault, Fault::UnknownEvent { after } if once(after)) {
                unknown
            } else if matches!(claim.fault, Fault::BrokenObject { after } if once(after)) {
                broken
            } else {
                continue;
            };
            let changed = replace(&buffer[from..]);
            buffer.truncate(from);
            buffer.extend_from_slice(&changed);
        }
        let line = buffer[from..].to_vec();
        if self.claims.has(Fault::DuplicateEvents) {
            buffer.extend_from_slice(&line);
        }
        self.late.retain_mut(|(left, late)| {
            *left = left.saturating_sub(1);
            if *left == 0 {
                buffer.extend_from_slice(late);
            }
            *left > 0
        });
        let again = self.claims.find(|fault| {
            let Fault::RepeatLate { after } = fault else {
                return None;
            };
            Some(after.max(1))
        });
        if let Some(after) = again {
            self.late.push((after, line));
        }
        for claim in &mut self.claims.held {
            claim.seen = claim.seen.saturating_add(1);
        }
    }

    /// Sends the mark at the end of the initial events, if it is due and not held back;
    /// everything up to the version has been sent.
    pub(super) fn send_held_end(&mut self, version: u64) {
        if self.end_is_held && !self.claims.has(Fault::HoldBookmarks) {
            self.end_is_held = false;
            self.write_bookmark(
                version,
                r#","annotations":{"k8s.io/initial-events-end":"true"}"#,
            );
        }
    }

    /// Sends a bookmark, if the client wants any.
    pub(super) fn bookmark(&mut self, version: u64) {
        if !self.claims.has(Fault::HoldBookmarks) {
            self.write_bookmark(version, "");
        }
    }

    fn write_bookmark(&mut self, version: u64, annotations: &str) {
        if !self.bookmarks {
            return;
        }
        let ahead = self.claims.find(|fault| {
            let Fault::BookmarkGap { ahead } = fault else {
                return None;
            };
            Some(ahead)
        });
        let version = version + ahead.unwrap_or(0);
        let (kind, api_version) = (self.resource.kind(), self.resource.api_version());
        let rest = self.resource.empty_rest();
        let line = format!(
            r#"{{"type":"BOOKMARK","object":{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{version}"{annotations}}}{rest}}}}}"#
        );
        let buffer = self.out.buffer();
        buffer.extend_from_slice(line.as_bytes());
        buffer.push(b'\n');
    }

    /// Hands over what was gathered, and notes when.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let now = monotonic_ns();
        self.out.flush()?;
        if self.handing.is_empty() {
            return Ok(());
        }
        for event in self.handing.drain(..) {
            // Only the first hand-over counts, and nobody waits for another.
            event
                .handed_ns
                .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
                .ok();
        }
        // With the lock held, a waiter is either before its look at the times or already waiting.
        let state = self.shared.lock();
        self.shared.handed.notify_all();
        drop(state);
        Ok(())
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(super) fn monotonic_ns() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        // The clock exists in every Linux.
        return 0;
    };
    let secs = u64::try_from(now.tv_sec()).unwrap_or_default();
    let nanos = u64::try_from(now.tv_nsec()).unwrap_or_default();
    secs * 1_000_000_000 + nanos
}

/// Appends an `ERROR` event.
pub(super) fn write_error(buffer: &mut Vec<u8>, failure: &Failure) {
    buffer.extend_from_slice(br#"{"type":"ERROR","object":"#);
    buffer.extend_from_slice(failure.body().as_bytes());
    buffer.extend_from_slice(b"}\n");
}

fn malformed(_: &[u8]) -> Vec<u8> {
    b"{\"type\":\"MODIFIED\",\"object\":{\"kind\":,,}}\n".to_vec()
}

fn unknown(line: &[u8]) -> Vec<u8> {
    let object = line.splitn(5, |byte| *byte == b'"').nth(4);
    [br#"{"type":"RENAMED""#, object.unwrap_or_default()].concat()
}

/// The line with the first number of a port, else with its labels, made what they cannot be.
fn broken(line: &[u8]) -> Vec<u8> {
    const PORT: &[u8] = br#""port":"#;
    const METADATA: &[u8] = br#""metadata":{"#;
    let find = |what: &[u8]| {
        let found = line.windows(what.len()).position(|part| part == what);
        found.map(|at| at + what.len())
    };
    if let Some(at) = find(PORT) {
        let digits = line[at..].iter().take_while(|byte| byte.is_ascii_digit());
        let end = at + digits.count();
        return [&line[..at], br#""abc""#, &line[end..]].concat();
    }
    let at = find(METADATA).unwrap_or_default();
    [&line[..at], br#""labels":"abc","#, &line[at..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_where_they_should_be() {
        let line = b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\"},\"p\":[{\"port\":80}]}}\n";
        let text = |line: Vec<u8>| String::from_utf8(line).unwrap();
        let expected = "{\"type\":\"RENAMED\",\"object\":{\"metadata\":";
        assert!(text(unknown(line)).starts_with(expected));
        assert!(text(broken(line)).contains("\"port\":\"abc\"}"));
        let node = b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\"}}}\n";
        assert!(text(broken(node)).contains("{\"labels\":\"abc\",\"name\""));
        assert!(serde_json::from_slice::<serde_json::Value>(&malformed(line)).is_err());
    }
}
