// SPDX-License-Identifier: MIT OR Apache-2.0
//! `BACKENDS_V4` and `BACKENDS_V6`: what traffic is sent to, by backend id.
//!
//! Written by the agent only. A backend id belongs to one service port, so Services that share
//! pods do not share ids.
//! **Invariant:** a reused id gets a new epoch, so a flow can tell that its backend is gone.

use super::plain;
use crate::Address;

/// The `state` byte of [`Backend`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum BackendState {
    /// Takes new flows.
    #[default]
    Active = 0,
    /// Shutting down; takes new flows only while nothing better is in the list.
    Terminating = 1,
}

/// Bits of [`Backend::flags`].
pub struct BackendFlags;

impl BackendFlags {
    /// It is in `List::Cluster` of its service.
    pub const IN_CLUSTER_LIST: u8 = 1;
    /// It is in `List::Local` of its service.
    pub const IN_LOCAL_LIST: u8 = 2;
    /// It runs on this node.
    pub const ON_THIS_NODE: u8 = 4;
}

/// One endpoint of one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Backend<A> {
    /// Service id that the backend belongs to, never 0.
    pub service: u32,
    /// Tells users of a reused id apart.
    pub epoch: u32,
    /// The endpoint's address.
    pub address: A,
    /// The endpoint's port.
    pub port: u16,
    /// A [`BackendState`].
    pub state: u8,
    /// Bits of [`BackendFlags`].
    pub flags: u8,
}

plain!(Backend<[u8; 4]>, 4 + 4 + 4 + 2 + 1 + 1);
plain!(Backend<[u8; 16]>, 4 + 4 + 16 + 2 + 1 + 1);

impl<A: Address> Backend<A> {
    /// Takes every field over; see `Conn::take_over` for why one by one.
    #[inline(always)]
    pub fn take_over(&mut self, other: &Self) {
        self.service = other.service;
        self.epoch = other.epoch;
        self.address = A::from_words(other.address.words());
        self.port = other.port;
        self.state = other.state;
        self.flags = other.flags;
    }
}

impl<A> Backend<A> {
    /// A backend without flags; `port` in host order.
    #[inline(always)]
    pub const fn new(service: u32, epoch: u32, address: A, port: u16, state: BackendState) -> Self {
        Self {
            service,
            epoch,
            address,
            port,
            state: state as u8,
            flags: 0,
        }
    }

    /// The same with `flags`, bits of [`BackendFlags`].
    #[must_use]
    #[inline(always)]
    pub const fn with_flags(mut self, flags: u8) -> Self
    where
        A: Copy,
    {
        self.flags = flags;
        self
    }
}
