// SPDX-License-Identifier: MIT OR Apache-2.0
//! `IFACES`: what the packet path must know of the device a new flow came in by.
//!
//! Written by the agent, read once per new flow, keyed by ifindex (`u32`).
//! **Invariant:** a device without an entry is treated as routed, with nothing known behind it.

use super::plain;

/// Bits of [`Iface::flags`].
pub struct IfaceFlags;

impl IfaceFlags {
    /// `peer_netns` is valid.
    pub const PEER_NETNS: u32 = 1;
    /// What comes in by the device comes from a pod of this node.
    pub const POD: u32 = 1 << 1;
    /// Whether it does is told by the source address: `PrefixTable::PODS`.
    pub const POD_BY_ADDRESS: u32 = 1 << 2;
}

/// A managed device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Iface {
    /// Index of the bridge that the device is a port of; 0: none.
    pub bridge: u32,
    /// Id, in the host's network namespace, of the namespace at the other end of a veth; valid
    /// when the flag says so.
    pub peer_netns: u32,
    /// Bits of [`IfaceFlags`].
    pub flags: u32,
}

plain!(Iface, 4 + 4 + 4);
