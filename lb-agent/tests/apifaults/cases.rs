// SPDX-License-Identifier: MIT OR Apache-2.0
//! The faults that do not lie, with what makes each of them happen.
//!
//! **Invariant:** every fault of the lab's server is here, in lies.rs, or in outages.rs.

use lb_lab::apiserver::Rule;
use lb_lab::{Fault, Resource};

/// What makes the client ask anew, where a fault is about requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kick {
    /// Nothing: running watches meet the fault.
    None,
    /// All watches end.
    End,
    /// All watches end, and what they know is forgotten: everything is listed.
    Relist,
}

/// A fault as it is tried.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) rules: Vec<Rule>,
    pub(crate) kick: Kick,
    /// The server does not stream lists.
    pub(crate) pages: bool,
    /// The client learns from it, so that it happens once only.
    pub(crate) teaches: bool,
    /// It takes single objects away, so that they must be sent again.
    pub(crate) loses_objects: bool,
}

fn case(name: &'static str, kick: Kick, rules: impl IntoIterator<Item = Rule>) -> Case {
    Case {
        name,
        rules: rules.into_iter().collect(),
        kick,
        pages: false,
        teaches: false,
        loses_objects: false,
    }
}

/// The kinds that are watched.
pub(crate) const KINDS: [Resource; 3] =
    [Resource::Service, Resource::EndpointSlice, Resource::Node];

/// The fault once for each kind: a watch that is opened again does not meet it twice.
pub(crate) fn each(fault: Fault) -> [Rule; 3] {
    KINDS.map(|kind| fault.on(kind).once())
}

fn paged(name: &'static str, rules: impl IntoIterator<Item = Rule>) -> Case {
    Case {
        pages: true,
        ..case(name, Kick::Relist, rules)
    }
}

fn teaching(name: &'static str, fault: Fault) -> Case {
    Case {
        teaches: true,
        ..case(name, Kick::Relist, [fault.into()])
    }
}

fn losing(name: &'static str, fault: Fault) -> Case {
    Case {
        loses_objects: true,
        ..case(name, Kick::None, [fault.times(2)])
    }
}

/// Requests that are refused.
pub(crate) fn refusals() -> Vec<Case> {
    let status = |name, code| case(name, Kick::End, [Fault::Status(code).times(4)]);
    let retry_after = Fault::RetryAfter { code: 429, secs: 1 };
    vec![
        case("connections are reset", Kick::End, [Fault::Refuse.times(4)]),
        status("500", 500),
        status("503", 503),
        status("504", 504),
        status("429", 429),
        status("401", 401),
        status("403", 403),
        case(
            "429 with Retry-After",
            Kick::End,
            [retry_after.on(Resource::EndpointSlice).once()],
        ),
        case("410 before the watch", Kick::End, [Fault::Gone.times(3)]),
    ]
}

/// Watches that end or stop in some way.
pub(crate) fn ends() -> Vec<Case> {
    let end = |name, fault: Fault| case(name, Kick::None, each(fault));
    vec![
        end("a clean end", Fault::EndWatch { after: 0 }),
        end("a clean end after an event", Fault::EndWatch { after: 1 }),
        end("410 in the watch", Fault::GoneInStream { after: 0 }),
        end("410 after an event", Fault::GoneInStream { after: 1 }),
        end("a cut line", Fault::CutWatch { after: 0 }),
        end("a cut line after an event", Fault::CutWatch { after: 1 }),
        end("a reset", Fault::ResetWatch { after: 0 }),
        end("a reset after an event", Fault::ResetWatch { after: 1 }),
        end("silence", Fault::SilentWatch),
    ]
}

/// Lists that break, come slowly or in another way than asked for.
pub(crate) fn lists() -> Vec<Case> {
    let relist = |name, rule| case(name, Kick::Relist, [rule]);
    vec![
        paged("a cut list", [Fault::CutList { after: 1 }.times(4)]),
        paged("a list of nothing", [Fault::CutList { after: 0 }.times(4)]),
        paged("slow pages", [Fault::SlowBytes { per_ms: 200 }.times(6)]),
        paged("lists are 500", [Fault::Status(500).times(4)]),
        relist("slow streams", Fault::SlowBytes { per_ms: 200 }.times(6)),
        relist("a streamed list cut", Fault::CutWatch { after: 1 }.times(3)),
        relist("no end of a streamed list", Fault::HoldBookmarks.into()),
        teaching("streams refused", Fault::RefuseWatchList),
        teaching("streams ignored", Fault::IgnoreWatchList),
    ]
}

/// Events that come twice, late, broken, or not at all.
pub(crate) fn events() -> Vec<Case> {
    let hold = |name, resource| case(name, Kick::None, [Fault::HoldEvents.on(resource)]);
    vec![
        case("bookmarks held", Kick::None, [Fault::HoldBookmarks.into()]),
        case("twice", Kick::None, [Fault::DuplicateEvents.into()]),
        hold("Services held", Resource::Service),
        hold("slices held", Resource::EndpointSlice),
        hold("the Node held", Resource::Node),
        case(
            "bookmarks that lead nowhere",
            Kick::None,
            [Fault::BookmarkGap { ahead: 1_000 }.into()],
        ),
        losing("no JSON", Fault::MalformedEvent { after: 0 }),
        case(
            "an unknown type",
            Kick::None,
            [Fault::UnknownEvent { after: 0 }.times(2)],
        ),
        losing("an object that is broken", Fault::BrokenObject { after: 0 }),
    ]
}
