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
    /// Nothing happens to a packet; the event itself is worth counting.
    Note,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $class:ident;)*) => {
        /// Why a packet of ours was not simply translated; the index into `REASONS`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason { $($(#[$doc])* $variant = $code),* }

        impl Reason {
            /// Every reason in code order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The stable name used in tables and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
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
    NoBackend = 0, "no-backend", Drop;
    /// The slot or backend that the frontend named was missing twice in a row.
    TableMiss = 1, "table-miss", Drop;
    /// The connection table had no room for a new flow.
    ConnectionsFull = 2, "connections-full", Drop;
    /// No source port was free towards any backend.
    NoSourcePort = 3, "no-source-port", Drop;
    /// The chosen backend is the client itself, which needs SNAT.
    Hairpin = 4, "hairpin", Drop;
    /// A fragment of a translated flow.
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
    fn names_are_distinct() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
