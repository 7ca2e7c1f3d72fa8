// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be made to go wrong, and which requests it happens to.
//!
//! A rule is a fault with where and how often. A request claims the rules that suit it when it begins,
//! a running watch also later; it keeps what it claimed until it ends or the rule is lifted.
//! **Invariant:** `times` counts requests, whatever else the fault counts.
//! Read next: `watch` and `list`, where the faults happen.

use super::resource::Resource;
use super::status::Failure;
use super::store::State;

/// Something that goes wrong. Counts named `after` are of events (of items in a list) that the
/// request delivers first; a watch counts from when the fault was switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A new connection is reset at once, and an old one at its next request.
    /// With [`Fault::on`] only the requests for that resource are. A server that is gone altogether
    /// is [`super::ApiServer::pause`].
    Refuse,
    /// The request is answered by this code and a `Status` (429 says to try again in a second).
    Status(u16),
    /// As [`Fault::Status`], with a `Retry-After`.
    RetryAfter {
        /// The code.
        code: u16,
        /// The seconds to wait.
        secs: u32,
    },
    /// A watch is answered by 410 before it begins.
    Gone,
    /// A watch ends with an `ERROR` event that holds a 410 `Status`.
    GoneInStream {
        /// Events delivered first.
        after: u32,
    },
    /// A watch ends as if its time were over.
    EndWatch {
        /// Events delivered first.
        after: u32,
    },
    /// The connection closes in the middle of a watch's line.
    CutWatch {
        /// Events delivered first.
        after: u32,
    },
    /// The connection of a watch is reset (TCP RST).
    ResetWatch {
        /// Events delivered first.
        after: u32,
    },
    /// The connection closes in the middle of a list.
    CutList {
        /// Items delivered whole.
        after: u32,
    },
    /// A page but the first is answered by 410.
    ExpireContinue,
    /// No bookmark is sent, neither the one at the end of a streaming list; that one follows
    /// when the fault is lifted.
    HoldBookmarks,
    /// Bookmarks tell a version that has not come to be: who resumes there misses events.
    BookmarkGap {
        /// How much further the version is.
        ahead: u64,
    },
    /// A streaming list is answered by 422, as by servers with the feature off.
    RefuseWatchList,
    /// A streaming list is taken for a plain watch, as by servers that do not know the parameter:
    /// nothing ever marks the end of the initial events.
    IgnoreWatchList,
    /// Each event of a watch comes twice.
    DuplicateEvents,
    /// Each event of a watch comes again, after newer ones.
    RepeatLate {
        /// How many newer events come between.
        after: u32,
    },
    /// Nothing comes on a watch until the fault is lifted; then all does, in order.
    HoldEvents,
    /// A watch says nothing any more, also when the fault is lifted, and stays open.
    SilentWatch,
    /// Answers come slowly.
    SlowBytes {
        /// Bytes per millisecond.
        per_ms: u32,
    },
    /// One event of a watch is replaced by a line that is no JSON.
    MalformedEvent {
        /// Events delivered first.
        after: u32,
    },
    /// One event of a watch has a type that does not exist.
    UnknownEvent {
        /// Events delivered first.
        after: u32,
    },
    /// One event of a watch has an object that violates its schema (a port `"abc"`).
    BrokenObject {
        /// Events delivered first.
        after: u32,
    },
    /// Every second object is missing in a list, which looks complete.
    HalfList,
}

impl Fault {
    /// Only for requests about this resource.
    pub fn on(self, resource: Resource) -> Rule {
        Rule::from(self).on(resource)
    }

    /// For this many requests.
    pub fn times(self, times: u32) -> Rule {
        Rule::from(self).times(times)
    }

    /// For one request.
    pub fn once(self) -> Rule {
        self.times(1)
    }

    /// How it ends a watch, and after how many events.
    pub(super) const fn end(self) -> Option<(u32, End)> {
        if let Self::EndWatch { after } = self {
            Some((after, End::Clean))
        } else if let Self::GoneInStream { after } = self {
            Some((after, End::Error))
        } else if let Self::CutWatch { after } = self {
            Some((after, End::Cut))
        } else if let Self::ResetWatch { after } = self {
            Some((after, End::Reset))
        } else {
            None
        }
    }

    /// The failure that it answers with instead of anything else.
    pub(super) fn failure(self) -> Option<Failure> {
        if let Self::Status(code) = self {
            Some(Failure::by_code(code, None))
        } else if let Self::RetryAfter { code, secs } = self {
            Some(Failure::by_code(code, Some(secs)))
        } else if self == Self::Gone {
            Some(Failure::by_code(410, None))
        } else if self == Self::RefuseWatchList {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            Some(Failure::forbidden_option("sendInitialEvents", why))
        } else {
            None
        }
    }

    const fn suits(self, verb: Verb) -> bool {
        match self {
            Self::Refuse | Self::Status(_) | Self::RetryAfter { .. } | Self::SlowBytes { .. } => {
                true
            }
            Self::CutList { .. } => matches!(verb, Verb::List | Verb::Page),
            Self::ExpireContinue => matches!(verb, Verb::Page),
            Self::HalfList => matches!(verb, Verb::List | Verb::Page | Verb::StreamList),
            Self::RefuseWatchList | Self::IgnoreWatchList => matches!(verb, Verb::StreamList),
            Self::Gone
            | Self::GoneInStream { .. }
            | Self::EndWatch { .. }
            | Self::CutWatch { .. }
            | Self::ResetWatch { .. }
            | Self::HoldBookmarks
            | Self::BookmarkGap { .. }
            | Self::DuplicateEvents
            | Self::RepeatLate { .. }
            | Self::HoldEvents
            | Self::SilentWatch
            | Self::MalformedEvent { .. }
            | Self::UnknownEvent { .. }
            | Self::BrokenObject { .. } => matches!(verb, Verb::Watch | Verb::StreamList),
        }
    }

    /// Whether it means something only before the answer has begun.
    const fn is_about_the_start(self) -> bool {
        matches!(
            self,
            Self::Refuse
                | Self::Status(_)
                | Self::RetryAfter { .. }
                | Self::Gone
                | Self::HalfList
                | Self::RefuseWatchList
                | Self::IgnoreWatchList
        )
    }
}

/// How a fault ends a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Clean,
    Error,
    Cut,
    Reset,
}

/// A fault with where and how often; anywhere and until it is lifted if not said.
#[derive(Debug, Clone, Copy)]
#[must_use = "a rule does nothing until the server has it"]
pub struct Rule {
    fault: Fault,
    resource: Option<Resource>,
    times: Option<u32>,
}

impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        Self {
            fault,
            resource: None,
            times: None,
        }
    }
}

impl Rule {
    /// Only for requests about this resource.
    pub const fn on(mut self, resource: Resource) -> Self {
        self.resource = Some(resource);
        self
    }

    /// For this many requests.
    pub const fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// For one request.
    pub const fn once(self) -> Self {
        self.times(1)
    }
}

/// Names a rule that a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(pub(super) u64);

/// A rule that is switched on.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) id: FaultId,
    rule: Rule,
    pub(super) claimed: u64,
}

impl Active {
    pub(super) const fn new(id: FaultId, rule: Rule) -> Self {
        Self {
            id,
            rule,
            claimed: 0,
        }
    }

    fn has_times_left(&self) -> bool {
        self.rule
            .times
            .is_none_or(|times| self.claimed < u64::from(times))
    }
}

/// What a request does, as far as faults tell requests apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    /// A page but the first of a list.
    Page,
    Watch,
    /// A watch with `sendInitialEvents=true`.
    StreamList,
    Write,
}

/// A rule that a request has claimed.
#[derive(Debug)]
pub(super) struct Claim {
    id: FaultId,
    pub(super) fault: Fault,
    /// Events delivered since.
    pub(super) seen: u32,
}

/// The rules that a request has claimed.
#[derive(Debug)]
pub(super) struct Claims {
    resource: Resource,
    verb: Verb,
    pub(super) held: Vec<Claim>,
}

impl Claims {
    /// Claims what suits a request that begins.
    pub(super) fn begin(state: &mut State, resource: Resource, verb: Verb) -> Self {
        let mut claims = Self {
            resource,
            verb,
            held: Vec::new(),
        };
        claims.claim(state, |_| true);
        claims
    }

    /// Gives up what was lifted, and claims what was switched on since.
    pub(super) fn refresh(&mut self, state: &mut State) {
        self.held.retain(|claim| {
            claim.fault == Fault::SilentWatch || state.rules.iter().any(|rule| rule.id == claim.id)
        });
        self.claim(state, |fault| !fault.is_about_the_start());
    }

    fn claim(&mut self, state: &mut State, may: impl Fn(Fault) -> bool) {
        for active in &mut state.rules {
            let Rule {
                fault, resource, ..
            } = active.rule;
            let suits = fault.suits(self.verb)
                && resource.is_none_or(|resource| resource == self.resource)
                && may(fault);
            let is_held = self.held.iter().any(|claim| claim.id == active.id);
            if suits && !is_held && active.has_times_left() {
                active.claimed += 1;
                self.held.push(Claim {
                    id: active.id,
                    fault,
                    seen: 0,
                });
            }
        }
    }

    /// What the first of the claimed faults that has something to say says.
    pub(super) fn find<T>(&self, say: impl Fn(Fault) -> Option<T>) -> Option<T> {
        self.held.iter().find_map(|claim| say(claim.fault))
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        self.held.iter().any(|claim| claim.fault == fault)
    }

    /// How many bytes may be sent in a millisecond.
    pub(super) fn pace(&self) -> Option<usize> {
        self.find(|fault| {
            let Fault::SlowBytes { per_ms } = fault else {
                return None;
            };
            usize::try_from(per_ms.max(1)).ok()
        })
    }
}

/// Whether a connection that was just accepted is refused.
pub(super) fn refuses(state: &mut State) -> bool {
    let refuses = |active: &&mut Active| {
        active.rule.fault == Fault::Refuse
            && active.rule.resource.is_none()
            && active.has_times_left()
    };
    let found = state.rules.iter_mut().find(refuses);
    found.map(|active| active.claimed += 1).is_some()
}
