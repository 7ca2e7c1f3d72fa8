// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What the packet path asks of the world around it, and what the hooks at the socket ask.
//!
//! The kernel glue implements [`Tables`] and [`Sockets`] on BPF maps and helpers, the tests on ordinary
//! maps; [`Lookup`] is what both need to choose a backend.
//! **Invariant:** a lookup may miss; the path decides what a miss means, the implementation never
//! does. Entries are changed through methods, so that a borrowed entry cannot be written twice.

use lb_common::abi::{
    Affinity, AffinityKey, Backend, Conn, ConnKey, Cursor, Direction, Frontend, FrontendKey,
    SlotKey, SocketKey, SocketPeer,
};
use lb_common::{Family, Reason};

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken.
    Exists,
    /// The table is full.
    Full,
}

/// Where a packet for an address behind the client's own bridge goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// Not behind that bridge: the host routes it.
    Routed,
    /// Behind that bridge, its link-layer address not known yet.
    Unresolved,
    /// Behind that bridge, at this link-layer address.
    Bridged([u8; 6]),
}

/// The two tables of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Table {
    /// Both sides have spoken; nothing gives way.
    Established = 0,
    /// Only begun; the oldest gives way to the newest.
    HalfOpen = 1,
}

/// What is counted for a service when a flow begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialled {
    /// The flow has a backend.
    Opened,
    /// The first packet was refused or dropped.
    Rejected,
}

/// What is known of Services, and what choosing a backend takes: the same for packets and sockets.
pub trait Lookup<F: Family> {
    /// The frontend of this address, port and protocol.
    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<&Frontend>;
    /// The backend id in a slot.
    fn slot(&self, key: &SlotKey) -> Option<u32>;
    /// A backend by id.
    fn backend(&self, id: u32) -> Option<&Backend<F::Addr>>;
    /// Takes the next round-robin position of a service.
    fn advance_cursor(&mut self, service: u32) -> Cursor;
    /// How often what flows of UDP of a service depend on has changed.
    fn version(&self, service: u32) -> u32;

    /// The backend that a client keeps.
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<&Affinity>;
    /// Writes which backend a client keeps.
    fn keep_affinity(&mut self, key: &AffinityKey<F::Addr>, affinity: &Affinity);
    /// True when one of the service's source ranges holds the source.
    fn admits(&self, service: u32, source: &F::Addr) -> bool;
    /// What a table of `PREFIXES_*` says of an address: see `lb_common::abi::PrefixTable`.
    fn prefix(&self, table: u32, address: &F::Addr) -> Option<&F::Addr>;

    /// Low 32 bits of jiffies.
    fn now(&self) -> u32;
    /// Jiffies in a second.
    fn ticks_per_second(&self) -> u32;
    /// 32 random bits.
    fn random(&mut self) -> u32;
    /// Counts one event.
    fn count(&mut self, reason: Reason);
    /// Counts the beginning of a flow of a service.
    fn count_service(&mut self, service: u32, what: Dialled);
}

/// Tables and services of the kernel, for one packet of one family.
pub trait Tables<F: Family>: Lookup<F> {
    /// False when a packet that may begin a flow, with this key at ingress, has no entry there and is
    /// for no frontend.
    fn may_be_known(&self, key: &ConnKey<F::Addr>) -> bool;
    /// The entry of one direction of a flow, with this packet counted in it, and its table. Half-open
    /// flows are looked for only when that is asked for.
    fn find(
        &mut self,
        key: &ConnKey<F::Addr>,
        half_open_too: bool,
    ) -> Option<(Table, &Conn<F::Addr>)>;
    /// The entry of one direction of a flow.
    fn conn(&self, table: Table, key: &ConnKey<F::Addr>) -> Option<&Conn<F::Addr>>;
    /// Inserts an entry whose key must be free.
    fn insert_conn(
        &mut self,
        table: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError>;
    /// Inserts or replaces an entry.
    fn replace_conn(
        &mut self,
        table: Table,
        key: &ConnKey<F::Addr>,
        conn: &Conn<F::Addr>,
    ) -> Result<(), InsertError>;
    /// Removes an entry if there is one.
    fn remove_conn(&mut self, table: Table, key: &ConnKey<F::Addr>);
    /// Writes when an entry was last seen.
    fn touch_conn(&mut self, table: Table, key: &ConnKey<F::Addr>, now: u32);
    /// Adds bits of `ConnState`, seen in packets of the direction `by`, to an entry.
    fn mark_conn(&mut self, table: Table, key: &ConnKey<F::Addr>, by: Direction, bits: u8);
    /// Takes bits that `mark_conn` added away.
    fn unmark_conn(&mut self, table: Table, key: &ConnKey<F::Addr>, by: Direction, bits: u8);
    /// Writes the next hop of a request entry.
    fn set_next_hop(&mut self, table: Table, key: &ConnKey<F::Addr>, address: [u8; 6]);

    /// Writes at which version a request entry was found to be right.
    fn set_validated(&mut self, table: Table, key: &ConnKey<F::Addr>, version: u32);
    /// True when a source on the device that this packet came in by is a pod of this node.
    fn is_pod(&self, source: &F::Addr) -> bool;

    /// Segments of the packet, and its bytes from the network header on.
    fn size(&self) -> (u32, u32);
    /// Index of the device at whose hook the packet is.
    fn device(&self) -> u32;
    /// True when the packet has the mark that asks for masquerading.
    fn is_marked(&self) -> bool;
    /// Sets or clears that mark.
    fn set_mark(&mut self, on: bool);
    /// True when masquerading is left to someone else's rules, who go by the mark.
    fn masquerades_by_mark(&self) -> bool;
    /// True when a port may be used for masquerading.
    fn is_masquerade_port(&self, port: u16) -> bool;
    /// A port for masquerading, chosen by `random`; 0 when there is none.
    fn masquerade_port(&self, random: u32) -> u16;
    /// True when the node's own namespace has a socket that packets with this key are for.
    fn has_own_socket(&self, key: &ConnKey<F::Addr>) -> bool;

    /// True when the client's own namespace has a connection of its own from the reply key's
    /// destination to its source, made without us.
    fn has_direct_socket(&self, reply: &ConnKey<F::Addr>) -> bool;
    /// How to reach an address from the device that this packet came in by.
    fn next_hop(&self, destination: &F::Addr) -> NextHop;
}

/// Tables and services of the kernel, for one call of one socket.
pub trait Sockets<F: Family>: Lookup<F> {
    /// The cookie of the socket.
    fn cookie(&self) -> u64;
    /// The address that the socket is bound to; zero: none yet.
    fn bound(&self) -> F::Addr;
    /// What this socket was told in the place of a peer.
    fn peer(&self, key: &SocketKey<F::Addr>) -> Option<&SocketPeer<F::Addr>>;
    /// Notes what this socket is told in the place of a peer.
    fn keep_peer(
        &mut self,
        key: &SocketKey<F::Addr>,
        peer: &SocketPeer<F::Addr>,
    ) -> Result<(), InsertError>;
    /// Writes when a peer was last used, and at which version it was right then.
    fn touch_peer(&mut self, key: &SocketKey<F::Addr>, now: u32, version: u32);
    /// For how many seconds a socket that is not connected keeps a backend that it does not send to.
    fn idle_secs(&self) -> u32;
}

/// Whose socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The node's own, or that of a pod on its network.
    Node,
    /// That of a pod, by the cookie of its network namespace.
    Pod(u64),
}
