// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The kernel side of the packet path: maps, helpers, packet bytes.
//!
//! The only unsafe code and the only use of `aya_ebpf`, one concern per file.
//! **Invariant:** no decision is taken here; the library in `path/` decides.

mod edit;
mod fragment;
mod icmp;
mod lookup;
mod maps;
#[cfg(feature = "layout-next")]
mod older;
#[cfg(not(feature = "layout-next"))]
#[path = "no_older.rs"]
mod older;
mod parse;
mod presence;
mod reject;
mod sctp;
mod settings;
mod sock;
mod socket;
mod time;
mod whole;
mod world;

pub(crate) use edit::edit;
pub(crate) use fragment::{Unusual, first_fragment, later_fragment, read_tagged, read_unusual};
pub(crate) use icmp::icmp;
pub(crate) use maps::{Host, work};
#[cfg(feature = "layout-next")]
pub(crate) use older::gate;
pub(crate) use parse::{TAG, ethertype, forget, inner_ethertype, is_of_vlan_device, parse};
pub(crate) use reject::reject;
pub(crate) use socket::{connect4, connect6, learn, send4, send6, show4, show6};
pub(crate) use world::World;
