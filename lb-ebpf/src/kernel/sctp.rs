// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! New ports in a packet of SCTP.
//!
//! Its checksum covers the packet and no pseudo header, so addresses do not count and ports do.
//! With offload pending the field is still zero, and stays so: the device computes it whole.

use aya_ebpf::bindings::__sk_buff;
use lb_common::Reason;
use lb_ebpf::crc32c;
use lb_ebpf::packet::Bytes as _;

use super::whole::Whole;

/// Offset of the checksum in the header, in bytes.
const CHECKSUM: u32 = 8;

/// Writes both ports of the packet of SCTP that begins at `at` and has `length` bytes; 0 when all
/// went well.
///
/// A BPF function of its own: its loops are no part of other packets' way.
#[inline(never)]
pub(crate) fn write_ports(skb: *mut __sk_buff, at: u32, from: u32, to: u32, length: u32) -> u32 {
    let packet = Whole { skb, l2: at };
    match update(&packet, from.to_ne_bytes(), to.to_ne_bytes(), length) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

#[inline(always)]
fn update(packet: &Whole, from: [u8; 4], to: [u8; 4], length: u32) -> Result<(), Reason> {
    let field = packet.read::<[u8; 4]>(CHECKSUM).ok_or(Reason::Malformed)?;
    packet.write(0, &to)?;
    if field != [0; 4] {
        packet.write(CHECKSUM, &crc32c::update(field, from, to, length))?;
    }
    Ok(())
}
