// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Sockets: another address in the place of the one that is dialled, before there is any packet.
//!
//! A process of the node sends no packet through the hooks of its pods' devices, so it is served where
//! it says whom it wants to talk to. Nothing is left to do for its packets then.
//! **Invariant:** the frontend, its policy and the backend are found by the code that packets use
//! (`select.rs`, `affinity.rs`); only what a socket is told is kept here.

use lb_common::abi::{
    Frontend, FrontendFlags, Kind, Policy, PrefixTable, Scope, SocketKey, SocketPeer, Way,
};
use lb_common::{Address, Family, Reason};

use super::select::Choice;
use super::{affinity, select};
use crate::packet::Packet;
use crate::tables::{Caller, Dialled, Sockets};

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours: go on untouched.
    Pass,
    /// Go on with the peer that the call holds now.
    Changed,
    /// Ours, and it cannot be served.
    Refused(Reason),
}

/// A call of a socket. It lives on the stack, so nothing is in it twice.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Call<A> {
    /// The peer that it names as destination, and as source what is known of the client.
    pub packet: Packet<A>,
    /// The frontend that the call is for, and its backend.
    pub choice: Choice<A>,
    /// Key of the entry that is read or written.
    pub key: SocketKey<A>,
    /// What the socket is told: the peer to go on with after [`Verdict::Changed`].
    pub peer: SocketPeer<A>,
}

impl<A: Address> Call<A> {
    /// A call that names this peer; the port in host order.
    #[inline(always)]
    pub fn new(address: A, port: u16, proto: u8) -> Self {
        let mut packet = Packet::new();
        packet.destination = address;
        packet.destination_port = port;
        packet.proto = proto;
        Self {
            packet,
            choice: Choice::new(),
            key: SocketKey::new(0, (A::ZERO, 0), 0, Way::There),
            peer: SocketPeer::new((A::ZERO, 0)),
        }
    }
}

/// A socket connects: TCP, or UDP that names its peer once.
#[inline(always)]
pub fn connect<F: Family, T: Sockets<F>>(
    tables: &mut T,
    call: &mut Call<F::Addr>,
    caller: Caller,
) -> Verdict {
    if !is_served(tables, call, caller) || call.choice.frontend.is_draining() {
        return Verdict::Pass;
    }
    match choose(tables, call, caller) {
        Ok(()) => {
            write_back(tables, call);
            Verdict::Changed
        }
        Err(reason) => Verdict::Refused(reason),
    }
}

/// A datagram names its peer: it goes to the backend that earlier ones of this socket went to, as long
/// as that is right, as packets of one flow do.
#[inline(always)]
pub fn send<F: Family, T: Sockets<F>>(
    tables: &mut T,
    call: &mut Call<F::Addr>,
    caller: Caller,
) -> Verdict {
    name(tables, call, Way::There);
    let known = recall(tables, call) && !is_idle(tables, &call.peer);
    if known && is_still_right(tables, call) {
        return Verdict::Changed;
    }
    if !is_served(tables, call, caller) {
        return Verdict::Pass;
    }
    if known && may_continue(tables, call) {
        return Verdict::Changed;
    }
    if call.choice.frontend.is_draining() {
        return Verdict::Pass;
    }
    // ORDER: before the tables that it stands for.
    let version = select::version(tables, &call.choice, call.packet.proto);
    match choose(tables, call, caller) {
        Ok(()) => {
            call.peer.validated = version;
            if known {
                tables.count(Reason::Reselected);
            }
            keep(tables, call);
            write_back(tables, call);
            Verdict::Changed
        }
        Err(reason) => Verdict::Refused(reason),
    }
}

/// The peer that a socket is shown, in an answer or when it asks for its peer: the frontend that it
/// asked for.
#[inline(always)]
pub fn shown<F: Family, T: Sockets<F>>(tables: &mut T, call: &mut Call<F::Addr>) -> Verdict {
    name(tables, call, Way::Back);
    if recall(tables, call) {
        Verdict::Changed
    } else {
        Verdict::Pass
    }
}

/// Makes the key of the entry for the peer that the call names.
#[inline(always)]
fn name<F: Family, T: Sockets<F>>(tables: &T, call: &mut Call<F::Addr>, way: Way) {
    let packet = &call.packet;
    let peer = (packet.destination, packet.destination_port);
    call.key = SocketKey::new(tables.cookie(), peer, packet.proto, way);
}

/// Puts what this socket was told in the place of the peer in `call.key` into the call.
#[inline(always)]
fn recall<F: Family, T: Sockets<F>>(tables: &T, call: &mut Call<F::Addr>) -> bool {
    let Some(peer) = tables.peer(&call.key) else {
        return false;
    };
    call.peer.take_over(peer);
    true
}

/// Whether nothing of the service has changed since the peer in the call was found to be right.
#[inline(always)]
fn is_still_right<F: Family, T: Sockets<F>>(tables: &mut T, call: &mut Call<F::Addr>) -> bool {
    let version = tables.version(call.peer.service);
    if version == 0 || version != call.peer.validated {
        return false;
    }
    let now = tables.now();
    let is_fresh = now.wrapping_sub(call.peer.last_used) < tables.ticks_per_second();
    if !is_fresh {
        tables.touch_peer(&call.key, now, version);
        call.peer.last_used = now;
    }
    if !(is_fresh && leads_back(tables, call)) {
        write_back(tables, call);
    }
    true
}

/// Whether the entry that leads back from the backend in the call leads to what the call names: another
/// frontend of the same backend may have been asked meanwhile, by this socket, or the entry may have
/// given way to others.
#[inline(always)]
fn leads_back<F: Family, T: Sockets<F>>(tables: &T, call: &mut Call<F::Addr>) -> bool {
    let packet = &call.packet;
    let backend = (call.peer.address, call.peer.port);
    call.key = SocketKey::new(tables.cookie(), backend, packet.proto, Way::Back);
    tables.peer(&call.key).is_some_and(|peer| {
        peer.port == packet.destination_port && peer.address.words() == packet.destination.words()
    })
}

/// Whether the peer in the call is still what its frontend would have chosen from, by the same rule
/// as a flow of UDP.
#[inline(always)]
fn may_continue<F: Family, T: Sockets<F>>(tables: &mut T, call: &mut Call<F::Addr>) -> bool {
    // ORDER: before the tables that it stands for.
    let version = tables.version(call.peer.service);
    let alive = tables.backend(call.peer.backend).is_some_and(|backend| {
        backend.epoch == call.peer.epoch && backend.service == call.peer.service
    });
    let frontend = tables.frontend(&call.choice.frontend_key);
    let current = frontend.is_some_and(|frontend| {
        frontend.generation == call.peer.generation && frontend.service == call.peer.service
    });
    if !alive || !current {
        return false;
    }
    let now = tables.now();
    touch(tables, call, now, version);
    true
}

/// Whether the socket has been silent towards this peer for so long that it may get another one.
#[inline(always)]
fn is_idle<F: Family, T: Sockets<F>>(tables: &T, peer: &SocketPeer<F::Addr>) -> bool {
    let age = tables.now().wrapping_sub(peer.last_used);
    age >= tables.idle_secs().wrapping_mul(tables.ticks_per_second())
}

/// Notes that the peer in the call is used, and sees to it that there is a way back.
#[inline(always)]
fn touch<F: Family, T: Sockets<F>>(
    tables: &mut T,
    call: &mut Call<F::Addr>,
    now: u32,
    version: u32,
) {
    tables.touch_peer(&call.key, now, version);
    call.peer.last_used = now;
    write_back(tables, call);
}

/// Finds the frontend that the call is for, if that is not known yet, and whether it is served at the
/// socket at all.
///
/// At loopback addresses and the unspecified one, which the kernel takes for loopback, only node ports
/// are, those of the address that stands for loopback. A pod's socket that must be masqueraded, or
/// whose unknown address would decide, is left to the hooks that its packets pass.
#[inline(always)]
fn is_served<F: Family, T: Sockets<F>>(
    tables: &T,
    call: &mut Call<F::Addr>,
    caller: Caller,
) -> bool {
    let packet = &call.packet;
    let mut at = packet.destination;
    let loopback = at.is_loopback_or_unspecified();
    if loopback {
        let Some(address) = tables.prefix(PrefixTable::LOOPBACK, &at) else {
            return false;
        };
        at = F::Addr::from_words(address.words());
    }
    let known = call.choice.frontend.service != 0;
    let port = packet.destination_port;
    if !known && !select::look_up(tables, &mut call.choice, (at, port), packet.proto) {
        return false;
    }
    let frontend = &call.choice.frontend;
    match caller {
        Caller::Node => !loopback || frontend.kind == Kind::NodePort as u8,
        Caller::Pod(_) => {
            !loopback
                && frontend.flags & FrontendFlags::SOURCE_RANGES == 0
                && frontend.policy(Scope::Pod) & Policy::SNAT_ALWAYS == 0
        }
    }
}

/// Chooses a backend for the call's frontend.
#[inline(always)]
fn choose<F: Family, T: Sockets<F>>(
    tables: &mut T,
    call: &mut Call<F::Addr>,
    caller: Caller,
) -> Result<(), Reason> {
    let service = call.choice.frontend.service;
    identify(tables, call, caller);
    if let Err(reason) = select::admit(tables, &mut call.choice, &call.packet.source) {
        tables.count_service(service, Dialled::Rejected);
        return Err(reason);
    }
    if !affinity::kept_backend(tables, &mut call.choice, &call.packet.source) {
        let position = select::select_position(tables, &call.choice, &call.packet);
        select::select_backend(tables, &mut call.choice, position, 0)?;
    }
    let choice = &call.choice;
    call.peer = SocketPeer::new((choice.backend.address, choice.backend.port));
    call.peer.service = service;
    call.peer.generation = choice.frontend.generation;
    call.peer.backend = choice.backend_id;
    call.peer.epoch = choice.backend.epoch;
    call.peer.last_used = tables.now();
    affinity::keep(tables, choice, (choice.backend_id, choice.backend.epoch));
    tables.count_service(service, Dialled::Opened);
    Ok(())
}

/// Works out what is known of the client: its scope, and, where anything goes by it, its address. A
/// socket of the node that is bound to none is known by the node's primary address.
#[inline(always)]
fn identify<F: Family, T: Sockets<F>>(tables: &T, call: &mut Call<F::Addr>, caller: Caller) {
    call.choice.scope = match caller {
        Caller::Node => Scope::Node,
        Caller::Pod(_) => Scope::Pod,
    };
    if !asks_for_source(&call.choice.frontend) {
        return;
    }
    let packet = &mut call.packet;
    // The kernel chooses the port later; for hashes, one number is as good as another.
    #[expect(clippy::cast_possible_truncation, reason = "any sixteen bits of it")]
    let port = tables.cookie() as u16;
    packet.source_port = port;
    packet.source = match caller {
        Caller::Node => {
            let bound = tables.bound();
            let primary = if bound.is_loopback_or_unspecified() {
                tables.prefix(PrefixTable::PRIMARY, &bound)
            } else {
                None
            };
            F::Addr::from_words(primary.copied().unwrap_or(bound).words())
        }
        Caller::Pod(netns) => F::Addr::from_number(netns),
    };
}

/// Whether anything goes by the client's address.
#[inline(always)]
fn asks_for_source(frontend: &Frontend) -> bool {
    frontend.affinity_secs != 0
        || frontend.table_size != 0
        || frontend.flags & FrontendFlags::SOURCE_RANGES != 0
}

/// Writes the entry under `call.key`.
#[inline(always)]
fn keep<F: Family, T: Sockets<F>>(tables: &mut T, call: &Call<F::Addr>) {
    if tables.keep_peer(&call.key, &call.peer).is_err() {
        tables.count(Reason::SocketUntracked);
    }
}

/// Writes the entry that leads from the backend in the call back to what the call names.
#[inline(always)]
fn write_back<F: Family, T: Sockets<F>>(tables: &mut T, call: &mut Call<F::Addr>) {
    let (backend, port) = (call.peer.address, call.peer.port);
    let packet = &call.packet;
    call.key = SocketKey::new(tables.cookie(), (backend, port), packet.proto, Way::Back);
    call.peer.address = F::Addr::from_words(packet.destination.words());
    call.peer.port = packet.destination_port;
    keep(tables, call);
    // From the key, so that there is no third copy on the stack.
    call.peer.address = F::Addr::from_words(call.key.address.words());
    call.peer.port = port;
}
