// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a packet was dropped, or passed although it looked like ours.
//!
//! A reason is a stable code: it indexes the `REASONS` map and names a counter.
//! **Invariant:** codes are never reused or renumbered; a new reason is appended.

/// What becomes of a packet that has this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The packet goes on untouched.
    Pass,
    /// The packet is dropped.
    Drop,
    /// The packet is dropped and its sender is told that the port is unreachable.
    Reject,
    /// Nothing happens to a packet; the event itself is worth counting.
    Note,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $variant:ident = $code:literal, $name:literal, $class:ident;)*) => {
        /// Why a packet of ours was not simply translated; the index into `REASONS`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason { $($(#[doc = $doc])* $variant = $code),* }

        impl Reason {
            /// Every reason in code order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The stable name used in tables and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What it means, for a person: the words that stand at its definition.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*).trim_ascii_start()),* }
            }

            /// What becomes of the packet.
            #[inline(always)]
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class),* }
            }
        }
    };
}

reasons! {
    /// The frontend exists and has no backend that may get traffic.
    NoBackend = 0, "no-backend", Reject;
    /// The slot or backend that the frontend named was missing twice in a row.
    TableMiss = 1, "table-miss", Drop;
    /// The connection table had no room for a new flow.
    ConnectionsFull = 2, "connections-full", Drop;
    /// No source port was free towards any backend.
    NoSourcePort = 3, "no-source-port", Drop;
    /// The chosen backend is the client itself. No longer counted: such a flow is masqueraded.
    Hairpin = 4, "hairpin", Drop;
    /// A fragment of SCTP whose port would change.
    Fragment = 5, "fragment", Drop;
    /// The headers could not be read or written although the packet is ours.
    Malformed = 6, "malformed", Drop;
    /// A frontend that must be silent, such as a local-only one without a local backend.
    PolicyDrop = 7, "policy-drop", Drop;
    /// The flow's source port was changed because its reply tuple was taken.
    SourcePortChanged = 8, "source-port-changed", Note;
    /// A flow left a backend that is gone for another one.
    Reselected = 9, "reselected", Note;
    /// Two packets of one new flow raced; the first one's backend was kept.
    InsertRace = 10, "insert-race", Note;
    /// The source is in none of the ranges that a load balancer's address admits.
    SourceRange = 11, "source-range", Drop;
    /// The device that a packet to be masqueraded leaves by has no address for it.
    NoMasqueradeAddress = 12, "no-masquerade-address", Drop;
    /// No port of the masquerade address was free towards the backend.
    NoMasqueradePort = 13, "no-masquerade-port", Drop;
    /// A packet that ingress marked came to egress without its mark; it was masqueraded.
    MarkLost = 14, "mark-lost", Note;
    /// An ICMP redirect about a translated flow, which would teach its receiver a wrong way.
    Redirect = 15, "icmp-redirect", Drop;
    /// An ICMP error about a translated flow was translated as well.
    IcmpError = 16, "icmp-error", Note;
    /// A client was not told of a refusal because too many had been told just before.
    RejectLimited = 17, "reject-limited", Note;
    /// The answer to a refused packet could not be written, so the packet was only dropped.
    RejectFailed = 18, "reject-failed", Note;
    /// A reply to a masquerade port whose flow is gone; it was left to the stack.
    MasqueradeStray = 19, "masquerade-stray", Note;
    /// A packet of a connection that the table of established flows has no room for.
    EstablishedFull = 20, "established-full", Drop;
    /// What a socket was told could not be noted: it is shown its backend instead of the frontend.
    SocketUntracked = 21, "socket-untracked", Note;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_their_position_so_that_they_index_the_map() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn every_reason_says_what_it_means_in_a_sentence() {
        for reason in Reason::ALL {
            let meaning = reason.meaning();
            let begins = meaning.starts_with(|c: char| c.is_ascii_uppercase());
            assert!(begins && meaning.ends_with('.'), "{meaning:?}");
        }
    }

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
