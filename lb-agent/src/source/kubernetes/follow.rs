// SPDX-License-Identifier: MIT OR Apache-2.0
//! Follows one kind of objects: all of them first, then every change, for ever.
//!
//! The first list comes as a stream where the server can do that, else page by page. What breaks is
//! begun again where it broke; where that is not known any more, everything is listed anew.
//! **Invariant:** a list is handed on when it is complete or not at all; events are handed on in
//! the order of the stream, whatever their versions say. Versions are compared for one thing only:
//! to find out a server that was set back.
//! Read next: hub.rs, which they are handed to.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use tokio::time::sleep;

use super::Patience;
use super::decode::{self, Event, Item, Watched};
use super::failure::{Backoff, Failure};
use super::hub::{Found, Hub};
use super::wire::{Answer, Fill, From, Query, silent};

/// Objects of one page.
const PAGE: u32 = 500;
/// The most objects of one kind that a list may bring, page after page.
const OBJECTS_MAX: usize = 4_000_000;
/// A stream that ends sooner than this did not work.
const SHORTEST: Duration = Duration::from_secs(1);
/// What a server says that was set back to a state before the version that we know.
const GATEWAY_TIMEOUT: u16 = 504;

/// Follows the objects of type `T`.
pub(super) struct Follower<T> {
    client: Client,
    query: Query,
    hub: Arc<Hub>,
    patience: Patience,
    backoff: Backoff,
    /// What is known is the state of this version; none before the first list.
    version: Option<String>,
    /// The highest version since the last list, where versions are numbers.
    highest: u64,
    /// This server sends bookmarks, so a stream without any is a strange one.
    sends_bookmarks: bool,
    kind: PhantomData<fn() -> T>,
}

/// A stream of events that is open.
struct Stream {
    answer: Answer,
    opened: Instant,
    /// How long the server was asked to keep it open.
    length: Duration,
    /// When the latest bytes came.
    received: Instant,
    /// Something good came from it.
    works: bool,
    /// Any line came.
    spoke: bool,
    /// The server sends bookmarks from time to time, so silence means something.
    has_bookmarks: bool,
}

impl Stream {
    /// It has lasted as long as it was to.
    fn is_over(&self) -> bool {
        self.opened.elapsed() >= self.length
    }
}

impl<T: Watched> Follower<T> {
    pub(super) fn new(client: Client, query: Query, hub: Arc<Hub>, patience: Patience) -> Self {
        Self {
            client,
            query,
            hub,
            patience,
            backoff: Backoff::new(),
            version: None,
            highest: 0,
            sends_bookmarks: false,
            kind: PhantomData,
        }
    }

    /// Goes on until nobody takes updates any more.
    pub(super) async fn run(mut self) {
        while !self.hub.is_closed() {
            let Err(failure) = self.round().await else {
                continue;
            };
            if must_list_after(&failure) {
                self.version = None;
            }
            self.hub.health().failed(T::KIND, &failure);
            let wait = sleep(self.backoff.wait(&failure));
            if let Failure::Unreachable { .. } = failure {
                tokio::select! {
                    () = wait => {}
                    () = self.hub.wait_until_reached() => {}
                }
            } else {
                wait.await;
            }
        }
    }

    async fn round(&mut self) -> Result<(), Failure> {
        match self.version.take() {
            Some(version) => {
                let opened = self.open(From::Version(&version)).await;
                // Only an answer may make us forget where we are.
                self.version = Some(version);
                self.read(opened?).await
            }
            None if self.hub.server_streams_lists() => self.stream_list().await,
            None => self.list().await,
        }
    }

    async fn open(&mut self, from: From<'_>) -> Result<Stream, Failure> {
        let seconds = self.patience.stream_secs();
        let opened = Instant::now();
        let answer = self.query.watch(&self.client, from, seconds).await?;
        self.hub.note_reached();
        Ok(Stream {
            answer,
            opened,
            length: Duration::from_secs(seconds.into()),
            received: opened,
            works: false,
            spoke: false,
            has_bookmarks: false,
        })
    }

    /// Lists by the events with which a stream begins, then stays on that stream.
    async fn stream_list(&mut self) -> Result<(), Failure> {
        let mut stream = match self.open(From::Everything).await {
            Err(Failure::Refused { code, message, .. }) => {
                tracing::debug!("lists as streams are refused ({code}): {message}");
                self.hub.server_cannot_stream_lists();
                return Ok(());
            }
            opened => opened?,
        };
        let mut found = BTreeMap::new();
        // When an object came that was not there yet, or a part of one.
        let mut progress = stream.opened;
        loop {
            let before = found.len();
            let mut lines = 0;
            while let Some(line) = stream.answer.line() {
                lines += 1;
                match decode::event::<T>(line).map_err(|e| garbled(&e))? {
                    Event::Applied(item, _) => {
                        found.insert(item.reference.clone(), item);
                    }
                    Event::Deleted(reference, _) => {
                        found.remove(&reference);
                    }
                    Event::Bookmark(Some(version), true) => {
                        let items: Vec<Item> = found.into_values().collect();
                        self.hub.listed(T::KIND, stream.received, items);
                        self.is_at(version);
                        return self.read(stream).await;
                    }
                    Event::Bookmark(..) => {}
                    Event::Nameless(message) => nameless(&message),
                    Event::Ended(status) => {
                        let failure = self.query.failure("watch", &status, None);
                        if matches!(failure, Failure::Refused { .. }) {
                            self.hub.server_cannot_stream_lists();
                            return Ok(());
                        }
                        return Err(failure);
                    }
                }
            }
            // An old server goes on with changes, as often as there are any.
            if found.len() > before || lines == 0 {
                progress = stream.received;
            }
            let left = self.patience.list_longest;
            let left = left.saturating_sub(stream.opened.elapsed());
            let quiet = self.patience.list_quiet;
            let quiet = quiet.saturating_sub(progress.elapsed());
            match stream.answer.fill(left.min(quiet)).await? {
                Fill::Bytes(at) => {
                    stream.received = at;
                    stream.answer.check_line()?;
                }
                Fill::End => return Err(ended(stream.opened)),
                // An old server sends what there is and then changes, or it is dead.
                Fill::Silent => {
                    drop(stream);
                    self.list().await?;
                    self.hub.server_cannot_stream_lists();
                    return Ok(());
                }
            }
        }
    }

    /// Lists page by page.
    async fn list(&mut self) -> Result<(), Failure> {
        let mut items = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let answer = self.query.list(&self.client, PAGE, token.clone()).await?;
            let bytes = answer.whole(self.patience.piece).await?;
            let received = Instant::now();
            let page = decode::page::<T>(&bytes).map_err(|e| garbled(&e))?;
            page.nameless.iter().for_each(|message| nameless(message));
            items.extend(page.items);
            if page.continue_token.is_some() {
                if page.continue_token == token || items.len() > OBJECTS_MAX {
                    let cause = "a list that does not end".to_owned();
                    return Err(Failure::Garbled { cause });
                }
                token = page.continue_token;
                continue;
            }
            let Some(version) = page.version else {
                let cause = "a list without a version".to_owned();
                return Err(Failure::Garbled { cause });
            };
            self.hub.listed(T::KIND, received, items);
            self.is_at(version);
            return Ok(());
        }
    }

    /// A list of this version is what is known now.
    fn is_at(&mut self, version: String) {
        self.highest = number(&version);
        self.version = Some(version);
    }

    /// Hands on what a stream brings, until it ends.
    async fn read(&mut self, mut stream: Stream) -> Result<(), Failure> {
        loop {
            self.take(&mut stream)?;
            let within = self.silence_allowed(&stream);
            match stream.answer.fill(within).await? {
                Fill::Bytes(at) => {
                    stream.received = at;
                    stream.answer.check_line()?;
                }
                // A server that was set back is silent until it reaches our version again.
                Fill::End if self.sends_bookmarks && stream.is_over() && !stream.spoke => {
                    return Err(Failure::SetBack);
                }
                Fill::End if stream.works && stream.opened.elapsed() >= SHORTEST => return Ok(()),
                Fill::End => return Err(ended(stream.opened)),
                // A stream that is open and brings nothing is as good as any.
                Fill::Silent if !stream.works => self.works(&mut stream),
                Fill::Silent => return Err(silent(stream.received.elapsed())),
            }
        }
    }

    /// How long nothing need come.
    fn silence_allowed(&self, stream: &Stream) -> Duration {
        let end = stream.length + self.patience.grace;
        let left = end.saturating_sub(stream.opened.elapsed());
        if !stream.works {
            left.min(self.patience.settle)
        } else if stream.has_bookmarks {
            left.min(self.patience.bookmark)
        } else {
            left
        }
    }

    fn works(&mut self, stream: &mut Stream) {
        stream.works = true;
        self.backoff.reset();
        self.hub.health().succeeded(T::KIND);
    }

    /// Whether a bookmark tells a version that was reached long ago.
    fn is_below(&self, version: &str) -> bool {
        version.parse::<u64>().is_ok_and(|it| it < self.highest)
    }

    /// Hands on the lines that are there.
    fn take(&mut self, stream: &mut Stream) -> Result<(), Failure> {
        let mut found = Vec::new();
        let mut good = false;
        let mut end = Ok(());
        while let Some(line) = stream.answer.line() {
            let version = match decode::event::<T>(line) {
                Ok(Event::Applied(item, version)) => {
                    found.push(Found::Item(item));
                    version
                }
                Ok(Event::Deleted(reference, version)) => {
                    found.push(Found::Gone(reference));
                    version
                }
                Ok(Event::Bookmark(version, _)) => {
                    if version.as_deref().is_some_and(|v| self.is_below(v)) {
                        end = Err(Failure::SetBack);
                        break;
                    }
                    stream.has_bookmarks = true;
                    self.sends_bookmarks = true;
                    version
                }
                Ok(Event::Nameless(message)) => {
                    nameless(&message);
                    None
                }
                Ok(Event::Ended(status)) => {
                    end = Err(self.query.failure("watch", &status, None));
                    break;
                }
                Err(error) => {
                    end = Err(garbled(&error));
                    break;
                }
            };
            good = true;
            stream.spoke = true;
            if let Some(version) = version {
                self.highest = self.highest.max(number(&version));
                self.version = Some(version);
            }
        }
        if !found.is_empty() {
            self.hub.changed(stream.received, found);
        }
        if good && !stream.works {
            self.works(stream);
        }
        end
    }
}

/// Whether there is no going on from the version that is known.
fn must_list_after(failure: &Failure) -> bool {
    match failure {
        Failure::Gone | Failure::SetBack | Failure::Refused { .. } | Failure::Garbled { .. } => {
            true
        }
        Failure::Busy { code, .. } => *code == GATEWAY_TIMEOUT,
        Failure::Unreachable { .. }
        | Failure::Unauthorized { .. }
        | Failure::Forbidden { .. }
        | Failure::Broken { .. } => false,
    }
}

/// A version as a number; 0 for one that is none, below which nothing is.
fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

fn ended(opened: Instant) -> Failure {
    let seconds = opened.elapsed().as_secs_f32();
    Failure::Broken {
        cause: format!("the stream ended after {seconds:.1} seconds"),
    }
}

fn garbled(error: &serde_json::Error) -> Failure {
    Failure::Garbled {
        cause: error.to_string(),
    }
}

fn nameless(message: &str) {
    tracing::warn!("left out something that the API server sent: {message}");
}
