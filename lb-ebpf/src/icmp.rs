// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What the packet path needs to know of an ICMP error: the packet that it quotes.
//!
//! The quoted packet is read by the code that reads packets themselves, a few bytes further on.
//! **Invariant:** what cannot be read (another type, a quote without ports) is "not ours".
//! Read next: `path/icmp.rs`.

use bytemuck::Pod;
use lb_common::abi::proto;
use lb_common::{Address, V4, V6};

use crate::packet::{Bytes, Packet, Parse};

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The quoted packet did not arrive, or was wrong.
    Error,
    /// The quoted packet should have taken another way.
    Redirect,
}

/// What is known of an ICMP message with a quote. Offsets are bytes from the start of the network
/// header, checksums as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Message<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Start of the ICMP header.
    pub start: u32,
    /// Start of the quoted network header.
    pub quote: u32,
    /// IPv4 header checksum.
    pub header_checksum: [u8; 2],
    /// ICMP checksum.
    pub checksum: [u8; 2],
    /// The quoted transport checksum, when `has_transport_checksum`.
    pub transport_checksum: [u8; 2],
    /// Whether the quote reaches as far as the transport checksum, and has one that covers
    /// addresses and ports as they are.
    pub has_transport_checksum: bool,
    /// What it is about.
    pub kind: Kind,
}

impl<A: Address> Message<A> {
    /// A message of which nothing is known.
    #[inline(always)]
    pub fn new() -> Self {
        Self {
            source: A::ZERO,
            destination: A::ZERO,
            start: 0,
            quote: 0,
            header_checksum: [0; 2],
            checksum: [0; 2],
            transport_checksum: [0; 2],
            has_transport_checksum: false,
            kind: Kind::Error,
        }
    }
}

impl<A: Address> Default for Message<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes from an offset on.
struct Behind<'a, B> {
    bytes: &'a B,
    start: u32,
}

impl<B: Bytes> Bytes for Behind<'_, B> {
    const WALKS: bool = B::WALKS;

    #[inline(always)]
    fn read<T: Pod>(&self, offset: u32) -> Option<T> {
        self.bytes.read(self.start + offset)
    }
}

/// The part of ICMP that differs between the families.
pub trait Icmp: Parse {
    /// Protocol number.
    const NUMBER: u8;
    /// What a message of a type is about; none for all but errors and redirects.
    fn kind(message_type: u8) -> Option<Kind>;
    /// Where the quoted packet starts in a message that starts at `start`.
    fn quote<B: Bytes>(bytes: &B, start: u32, kind: Kind) -> Option<u32>;
}

/// Length of the ICMP header, in bytes.
const HEADER: u32 = 8;

impl Icmp for V4 {
    const NUMBER: u8 = 1;

    #[inline(always)]
    fn kind(message_type: u8) -> Option<Kind> {
        match message_type {
            // Destination unreachable, time exceeded, parameter problem.
            3 | 11 | 12 => Some(Kind::Error),
            5 => Some(Kind::Redirect),
            _ => None,
        }
    }

    #[inline(always)]
    fn quote<B: Bytes>(_: &B, start: u32, _: Kind) -> Option<u32> {
        Some(start + HEADER)
    }
}

impl Icmp for V6 {
    const NUMBER: u8 = 58;

    #[inline(always)]
    fn kind(message_type: u8) -> Option<Kind> {
        match message_type {
            // Destination unreachable, packet too big, time exceeded, parameter problem.
            1..=4 => Some(Kind::Error),
            137 => Some(Kind::Redirect),
            _ => None,
        }
    }

    /// A redirect quotes in an option (RFC 4861, 4.5 and 4.6.3), alone or behind the link-layer
    /// address of the target.
    #[inline(always)]
    fn quote<B: Bytes>(bytes: &B, start: u32, kind: Kind) -> Option<u32> {
        const OPTIONS: u32 = 40;
        const TARGET_ADDRESS: u8 = 2;
        const REDIRECTED: u8 = 4;
        const OPTION_HEADER: u32 = 8;
        if matches!(kind, Kind::Error) {
            return Some(start + HEADER);
        }
        let mut at = start + OPTIONS;
        let [mut option, units] = bytes.read::<[u8; 2]>(at)?;
        if option == TARGET_ADDRESS {
            at += u32::from(units) * 8;
            [option, _] = bytes.read::<[u8; 2]>(at)?;
        }
        (option == REDIRECTED).then_some(at + OPTION_HEADER)
    }
}

/// Reads an ICMP error or redirect and the tuple of the packet that it quotes; none when it is
/// something else or quotes no packet with ports.
#[inline(always)]
pub fn parse<F: Icmp, B: Bytes>(
    bytes: &B,
    message: &mut Message<F::Addr>,
    quoted: &mut Packet<F::Addr>,
) -> Option<()> {
    let outer = F::network(bytes)?;
    if outer.proto != F::NUMBER || outer.later_fragment {
        return None;
    }
    let [message_type, _, c0, c1] = bytes.read::<[u8; 4]>(outer.l4)?;
    message.kind = F::kind(message_type)?;
    message.source = F::Addr::from_words(outer.source);
    message.destination = F::Addr::from_words(outer.destination);
    message.header_checksum = outer.checksum;
    message.start = outer.l4;
    message.checksum = [c0, c1];
    message.quote = F::quote(bytes, outer.l4, message.kind)?;
    let behind = Behind {
        bytes,
        start: message.quote,
    };
    let inner = F::network(&behind)?;
    if inner.later_fragment {
        return None;
    }
    quoted.source = F::Addr::from_words(inner.source);
    quoted.destination = F::Addr::from_words(inner.destination);
    quoted.header_checksum = inner.checksum;
    quoted.proto = inner.proto;
    quoted.l4 = inner.l4;
    let at = match inner.proto {
        proto::TCP | proto::UDP => quoted.checksum_offset(),
        // Its checksum covers no addresses, and of the ports nothing can be made good in a part.
        proto::SCTP => 0,
        _ => return None,
    };
    let [s0, s1, d0, d1] = behind.read::<[u8; 4]>(inner.l4)?;
    quoted.source_port = u16::from_be_bytes([s0, s1]);
    quoted.destination_port = u16::from_be_bytes([d0, d1]);
    message.has_transport_checksum = false;
    if at != 0
        && message.quote + at + 2 <= outer.length
        && let Some(checksum) = behind.read::<[u8; 2]>(at)
    {
        message.transport_checksum = checksum;
        message.has_transport_checksum = inner.proto != proto::UDP || checksum != [0; 2];
    }
    Some(())
}

#[cfg(test)]
mod tests;
