// SPDX-License-Identifier: MIT OR Apache-2.0
//! Follows one kind of objects: all of them first, then every change, for ever.
//!
//! The first list comes as a stream where the server can do that, else page by page. What breaks is
//! begun again where it broke; where that is not known any more, everything is listed anew.
//! **Invariant:** a list is handed on when it is complete or not at all; events are handed on in
//! the order of the stream, whatever their versions say. Versions are compared for one thing only:
//! to find out a server that was set back.
//! Read next: hub.rs, which they are handed to.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use tokio::time::{sleep, timeout};

use super::Patience;
use super::decode::{self, Event, Item, Watched};
use super::failure::{Backoff, Failure};
use super::hub::{Found, Hub};
use super::wire::{Answer, Fill, From, Query, silent};
use crate::model::snapshot::ObjectRef;

/// Objects of one page.
const PAGE: u32 = 500;
/// The most objects of one kind that a list may bring, page after page.
const OBJECTS_MAX: usize = 4_000_000;
/// A stream that ends sooner than this did not work.
const SHORTEST: Duration = Duration::from_secs(1);
/// So many lists in a row come as streams that bring everything and no mark of their end, until that
/// is taken for what the server does always. One may be a server that was held up.
const UNMARKED_MAX: u32 = 2;
/// So many streams in a row without any line, from a server that sends bookmarks, until it is taken
/// for one that was set back. One may be a connection that is dead.
const MUTE_MAX: u32 = 2;

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
    /// Streams in a row without any line.
    mute: u32,
    /// This server streams lists, to their end.
    streams_lists: bool,
    /// Lists in a row that came as streams without a mark of their end.
    unmarked: u32,
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
}

/// How the list ended with which a stream began.
enum Initial {
    /// It is complete, at this version.
    Complete(String),
    /// The server refuses to send it.
    Refused { code: u16, message: String },
    /// Nothing more comes.
    Stalled,
}

/// A list of pages that is complete.
struct Pages {
    items: Vec<Item>,
    received: Instant,
    version: String,
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
            mute: 0,
            streams_lists: false,
            unmarked: 0,
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
        })
    }

    /// Lists by the events with which a stream begins, then stays on that stream. If that list does
    /// not come to its end, lists page by page.
    async fn stream_list(&mut self) -> Result<(), Failure> {
        // No longer than a request may take, so that there is a list whatever happens to streams.
        let begin_within = self.patience.list_longest / 2;
        let mut stream = match timeout(begin_within, self.open(From::Everything)).await {
            Err(_) => return self.list().await,
            Ok(Err(Failure::Refused { code, message, .. })) => {
                return self.list_instead(code, &message).await;
            }
            Ok(opened) => opened?,
        };
        let mut found = BTreeMap::new();
        match self.initial(&mut stream, &mut found).await? {
            Initial::Complete(version) => {
                self.streams_lists = true;
                self.mute = 0;
                stream.spoke = true;
                let items: Vec<Item> = found.into_values().collect();
                self.hub.listed(T::KIND, stream.received, items);
                self.is_at(version);
                self.read(stream).await
            }
            Initial::Refused { code, message } => self.list_instead(code, &message).await,
            Initial::Stalled => {
                drop(stream);
                let found: BTreeSet<ObjectRef> = found.into_keys().collect();
                let pages = self.pages().await?;
                self.note_stall(&found, &pages.items);
                self.hand_on(pages);
                Ok(())
            }
        }
    }

    /// Reads the list with which a stream begins.
    async fn initial(
        &self,
        stream: &mut Stream,
        found: &mut BTreeMap<ObjectRef, Item>,
    ) -> Result<Initial, Failure> {
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
                    Event::Bookmark(Some(version), true) => return Ok(Initial::Complete(version)),
                    Event::Bookmark(..) => {}
                    Event::Nameless(message) => nameless(&message),
                    Event::Ended(status) => {
                        let failure = self.query.failure("watch", &status, None);
                        if let Failure::Refused { code, message, .. } = failure {
                            return Ok(Initial::Refused { code, message });
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
                // An old server sends what there is and then changes, or it is held up, or dead.
                Fill::Silent => return Ok(Initial::Stalled),
            }
        }
    }

    /// Lists page by page after a stream was refused, and remembers why if that will be so always.
    async fn list_instead(&mut self, code: u16, message: &str) -> Result<(), Failure> {
        tracing::debug!("a list as a stream is refused ({code}): {message}");
        if means_no_streamed_lists(code, message) {
            self.hub.server_cannot_stream_lists();
        }
        self.list().await
    }

    /// A streamed list stopped without its mark; `found` is what it brought, `listed` what there is.
    fn note_stall(&mut self, found: &BTreeSet<ObjectRef>, listed: &[Item]) {
        let has_all = listed.iter().all(|item| found.contains(&item.reference));
        if self.streams_lists || listed.is_empty() || !has_all {
            return;
        }
        self.unmarked += 1;
        if self.unmarked >= UNMARKED_MAX {
            self.hub.server_cannot_stream_lists();
        }
    }

    /// Lists page by page.
    async fn list(&mut self) -> Result<(), Failure> {
        let pages = self.pages().await?;
        self.hand_on(pages);
        Ok(())
    }

    fn hand_on(&mut self, pages: Pages) {
        self.hub.listed(T::KIND, pages.received, pages.items);
        self.is_at(pages.version);
    }

    async fn pages(&self) -> Result<Pages, Failure> {
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
            return Ok(Pages {
                items,
                received,
                version,
            });
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
                Fill::Silent => return self.fell_silent(&stream),
            }
        }
    }

    /// How long nothing need come.
    fn silence_allowed(&self, stream: &Stream) -> Duration {
        let end = stream.length + self.patience.grace;
        let left = end.saturating_sub(stream.opened.elapsed());
        left.min(if stream.works {
            self.patience.silence
        } else {
            self.patience.settle
        })
    }

    /// What it means that nothing has come for too long.
    fn fell_silent(&mut self, stream: &Stream) -> Result<(), Failure> {
        if !self.sends_bookmarks {
            // Where nothing happens this server says nothing: asking again costs one request.
            return Ok(());
        }
        if !stream.spoke {
            self.mute += 1;
            if self.mute >= MUTE_MAX {
                self.mute = 0;
                return Err(Failure::SetBack);
            }
        }
        Err(silent(stream.received.elapsed()))
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
            self.mute = 0;
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
        Failure::Unreachable { .. }
        | Failure::Busy { .. }
        | Failure::Unauthorized { .. }
        | Failure::Forbidden { .. }
        | Failure::Broken { .. } => false,
    }
}

/// Whether a refusal of a streamed list says that there are none, now and later. Servers that do not
/// know the wish take offence at what has to stand beside it.
fn means_no_streamed_lists(code: u16, message: &str) -> bool {
    let words = ["sendInitialEvents", "resourceVersionMatch"];
    matches!(code, 400 | 422) && words.iter().any(|word| message.contains(word))
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
