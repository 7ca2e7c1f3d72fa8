// SPDX-License-Identifier: MIT OR Apache-2.0
//! `SOCKETS_V4` and `SOCKETS_V6`: what sockets were told in the place of what they asked for.
//!
//! Written by the hooks at the socket, when it connects to a frontend or sends to one; the entries not
//! used for longest give way. Tables of one kind for both directions, like those of flows.
//! **Invariant:** the entry that leads back is written before the address is changed, so a socket that
//! talks to a backend can be shown its frontend.

use super::plain;
use crate::Address;

/// Which way an entry of `SOCKETS_*` leads; the `way` byte of [`SocketKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// From a frontend to the backend that the socket's datagrams for it go to.
    There = 0,
    /// From a backend to the frontend that the socket asked for.
    Back = 1,
}

/// One peer of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct SocketKey<A> {
    /// The socket's cookie: low word, high word.
    pub cookie: [u32; 2],
    /// Address of the frontend or backend, as `way` says.
    pub address: A,
    /// Its port.
    pub port: u16,
    /// Protocol number of IANA.
    pub proto: u8,
    /// A [`Way`].
    pub way: u8,
}

plain!(SocketKey<[u8; 4]>, 8 + 4 + 2 + 1 + 1);
plain!(SocketKey<[u8; 16]>, 8 + 16 + 2 + 1 + 1);

impl<A> SocketKey<A> {
    /// A key; the port in host order.
    #[inline(always)]
    pub fn new(cookie: u64, (address, port): (A, u16), proto: u8, way: Way) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "its two halves")]
        let cookie = [cookie as u32, (cookie >> 32) as u32];
        Self {
            cookie,
            address,
            port,
            proto,
            way: way as u8,
        }
    }
}

/// The other side of the translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct SocketPeer<A> {
    /// Address of the backend on the way there, of the frontend on the way back.
    pub address: A,
    /// Its port.
    pub port: u16,
    _pad: u16,
    /// Service id.
    pub service: u32,
    /// The frontend's generation when the backend was chosen.
    pub generation: u32,
    /// Backend id.
    pub backend: u32,
    /// The backend's epoch when it was chosen.
    pub epoch: u32,
    /// The word of `VERSIONS` at which the choice was last found to be right; 0: never.
    pub validated: u32,
    /// Low 32 bits of the kernel's jiffies when it was last used; written at most once a second.
    pub last_used: u32,
}

plain!(SocketPeer<[u8; 4]>, 4 + 2 + 2 + 6 * 4);
plain!(SocketPeer<[u8; 16]>, 16 + 2 + 2 + 6 * 4);

impl<A> SocketPeer<A> {
    /// A peer without service and backend; the port in host order.
    #[inline(always)]
    pub fn new((address, port): (A, u16)) -> Self {
        Self {
            address,
            port,
            _pad: 0,
            service: 0,
            generation: 0,
            backend: 0,
            epoch: 0,
            validated: 0,
            last_used: 0,
        }
    }
}

impl<A: Address> SocketPeer<A> {
    /// Takes every field over; see `Conn::take_over` for why one by one.
    #[inline(always)]
    pub fn take_over(&mut self, other: &Self) {
        self.address = A::from_words(other.address.words());
        self.port = other.port;
        self.service = other.service;
        self.generation = other.generation;
        self.backend = other.backend;
        self.epoch = other.epoch;
        self.validated = other.validated;
        self.last_used = other.last_used;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_kept_whole() {
        let key = SocketKey::new(0x1_0000_0002, ([10, 0, 0, 1], 53), 17, Way::Back);
        assert_eq!(key.cookie, [2, 1]);
    }

    #[test]
    fn every_field_is_taken_over() {
        let mut from = SocketPeer::new(([192, 0, 2, 1], 53));
        (from.service, from.generation, from.backend) = (1, 2, 3);
        (from.epoch, from.validated, from.last_used) = (4, 5, 6);
        let mut to = SocketPeer::new(([0; 4], 0));
        to.take_over(&from);
        assert_eq!(to, from);
    }
}
