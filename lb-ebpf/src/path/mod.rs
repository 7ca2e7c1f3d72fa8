// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The order of the steps: what happens to a packet at each hook.
//!
//! Every step fills the [`Work`] record and returns what to do; nothing here touches a packet.
//! **Invariant:** a packet that is not ours leaves through [`Outcome::Pass`] with nothing
//! counted and nothing written. Next: `request.rs` for tc ingress, `reply.rs` for tc egress,
//! `socket.rs` for sockets, which have no packet yet.

mod affinity;
mod flow;
mod fragment;
mod hash;
mod icmp;
mod masquerade;
mod open;
mod promote;
mod reply;
mod request;
mod select;
mod socket;
#[cfg(test)]
mod tests;

pub use fragment::{Fragments, first_fragment, later_fragment};
pub use icmp::icmp;
pub use masquerade::begin_reply;
pub use open::begin;
pub use reply::reply;
pub use request::request;
pub use select::Choice;
pub use socket::{Call, Verdict, connect, send, shown};

use bytemuck::Zeroable as _;
use lb_common::abi::{Conn, ConnKey};
use lb_common::{Address, Reason};

use crate::packet::Packet;
use crate::tables::Table;

/// What becomes of a packet.
///
/// VERIFIER: one number, here and wherever a function that is not inlined returns something, because
/// BPF cannot return aggregates, and of a number put together from two the compiler may leave one to
/// chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not ours: go on untouched.
    Pass,
    /// Rewrite as [`Work::edit`] says, then go on.
    Edit,
    /// A flow begins: what to do is up to [`begin`] or [`begin_reply`].
    ///
    /// VERIFIER: a step of its own, so that its stack is not on top of that of the first step.
    Begin,
    /// Ours, and it cannot be served.
    Refused(Reason),
}

const _: () = assert!(size_of::<Outcome>() == size_of::<Reason>());

impl From<Result<(), Reason>> for Outcome {
    #[inline(always)]
    fn from(result: Result<(), Reason>) -> Self {
        match result {
            Ok(()) => Self::Edit,
            Err(reason) => Self::Refused(reason),
        }
    }
}

/// What came of one attempt to claim a tuple.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// The flow has it.
    Done,
    /// A living flow has it.
    Taken,
    /// No attempt will do better.
    Refused(Reason),
}

impl Claim {
    #[inline(always)]
    fn is_done(self) -> Result<bool, Reason> {
        match self {
            Self::Done => Ok(true),
            Self::Taken => Ok(false),
            Self::Refused(reason) => Err(reason),
        }
    }
}

/// Which address of the packet is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// Requests: the destination.
    Destination,
    /// Replies: the source.
    Source,
}

/// The rewriting of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Edit<A> {
    /// The new address of `side`.
    pub address: A,
    /// New source port, host order.
    pub source_port: u16,
    /// New destination port, host order.
    pub destination_port: u16,
    /// New link-layer destination, when `bridged`.
    pub next_hop: [u8; 6],
    /// Whether to write `next_hop`.
    pub bridged: bool,
    /// Which address changes.
    pub side: Side,
}

/// Everything known and decided about one packet. It lives in a per-CPU map, because the keys of
/// IPv6 alone would fill the stack of 512 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Work<A> {
    /// The headers.
    pub packet: Packet<A>,
    /// What to change.
    pub edit: Edit<A>,
    /// The frontend that a new flow is for, and its backend.
    pub choice: Choice<A>,
    /// Key of the entry that this packet is for.
    pub key: ConnKey<A>,
    /// The entry that this packet is for.
    pub conn: Conn<A>,
    /// The table that `conn` is in.
    pub table: Table,
    /// Whether a packet that begins a flow past all frontends has an entry in `conn`.
    pub found: bool,
    /// Whether a new flow goes where it says, with another source port.
    pub direct: bool,
    /// The version that a new flow is right at; 0: none.
    pub version: u32,
    /// Key of the entry for the other direction of a new flow.
    pub pair_key: ConnKey<A>,
    /// The entry for the other direction of a new flow.
    pub pair: Conn<A>,
    /// Key of another flow's entry.
    pub other_key: ConnKey<A>,
    /// Length of the link-layer header, in bytes: here so that the verifier knows it no better.
    pub l2: u32,
}

impl<A: Address> Work<A>
where
    ConnKey<A>: bytemuck::Zeroable,
    Conn<A>: bytemuck::Zeroable,
{
    /// A record with nothing known.
    pub fn new() -> Self {
        Self {
            packet: Packet::new(),
            edit: Edit {
                address: A::ZERO,
                source_port: 0,
                destination_port: 0,
                next_hop: [0; 6],
                bridged: false,
                side: Side::Destination,
            },
            choice: Choice::new(),
            key: ConnKey::zeroed(),
            conn: Conn::zeroed(),
            table: Table::Established,
            found: false,
            direct: false,
            version: 0,
            pair_key: ConnKey::zeroed(),
            pair: Conn::zeroed(),
            other_key: ConnKey::zeroed(),
            l2: 0,
        }
    }
}

impl<A: Address> Default for Work<A>
where
    ConnKey<A>: bytemuck::Zeroable,
    Conn<A>: bytemuck::Zeroable,
{
    fn default() -> Self {
        Self::new()
    }
}
