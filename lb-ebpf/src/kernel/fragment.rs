// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Packets whose headers are not all where they usually are: IPv6 extension headers, fragments.
//!
//! **Invariant:** BPF functions of their own, entered only by packets that are none of the usual
//! ones.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use lb_common::Address as _;
use lb_common::abi::{Fragment, FragmentKey, Hook};
use lb_ebpf::checksum;
use lb_ebpf::packet::Bytes as _;
use lb_ebpf::path::{self, Fragments, Outcome, Side};
use lb_ebpf::tables::Lookup;

use super::edit::{addresses, link};
use super::whole::Whole;
use super::{Host, TAG, World, work};

/// What a packet is whose headers were not where they usually are.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Unusual {
    /// Of no protocol that frontends have.
    Other = 0,
    /// Its headers are in the work record now.
    Read = 1,
    /// A later fragment of a protocol that frontends have.
    LaterFragment = 2,
}

impl<F: Host> Fragments<F> for World {
    #[inline(always)]
    fn ports(&self, key: &FragmentKey<F::Addr>) -> Option<Fragment> {
        // SAFETY: written once, as a whole.
        unsafe { F::fragments().get(key).copied() }
    }

    #[inline(always)]
    fn remember(&mut self, key: &FragmentKey<F::Addr>, ports: &Fragment) {
        // Without room the later fragments are strays, and the datagram is lost.
        F::fragments().insert(key, ports, u64::from(BPF_ANY)).ok();
    }
}

/// Reads the headers of a packet behind extension headers, or of a later fragment.
#[inline(never)]
pub(crate) fn read_unusual<F: Host>(skb: *mut __sk_buff, l2: u32) -> Unusual {
    let Some(work) = work::<F>() else {
        return Unusual::Other;
    };
    let whole = Whole { skb, l2 };
    if lb_ebpf::packet::parse::<F, _>(&whole, &mut work.packet).is_none() {
        return Unusual::Other;
    }
    if work.packet.later_fragment {
        Unusual::LaterFragment
    } else {
        Unusual::Read
    }
}

/// Reads the headers of a packet behind a tag in the frame that its ethertype does not tell of: a
/// VLAN device that leaves the tags where they are (`reorder_hdr off`) hands it on like that.
#[inline(never)]
pub(crate) fn read_tagged<F: Host>(skb: *mut __sk_buff) -> u32 {
    const ETHERTYPE: u32 = 12;
    const BEHIND: u32 = 18;
    let Some(work) = work::<F>() else {
        return 0;
    };
    let frame = Whole { skb, l2: 0 };
    if frame.read::<[u8; 2]>(ETHERTYPE) != Some(TAG.to_be_bytes()) {
        return 0;
    }
    let whole = Whole { skb, l2: BEHIND };
    let parsed = lb_ebpf::packet::parse::<F, _>(&whole, &mut work.packet);
    u32::from(parsed.is_some() && !work.packet.later_fragment)
}

#[inline(always)]
fn hook(at_ingress: bool) -> Hook {
    if at_ingress {
        Hook::Ingress
    } else {
        Hook::Egress
    }
}

/// Writes down the ports of a first fragment that was translated.
#[inline(never)]
pub(crate) fn first_fragment<F: Host>(skb: *mut __sk_buff, l2: u32, at_ingress: bool) -> u32 {
    let Some(work) = work::<F>() else {
        return 0;
    };
    let mut world = World::new(&TcContext::new(skb), l2);
    path::first_fragment::<F, _>(&mut world, work, hook(at_ingress));
    0
}

/// Translates a later fragment whose first one was translated; gives the action.
#[inline(never)]
pub(crate) fn later_fragment<F: Host>(skb: *mut __sk_buff, l2: u32, at_ingress: bool) -> i32 {
    let Some(work) = work::<F>() else {
        return TC_ACT_UNSPEC;
    };
    let ctx = TcContext::new(skb);
    let mut world = World::new(&ctx, l2);
    let outcome = path::later_fragment::<F, _>(&mut world, work, hook(at_ingress));
    let reason = match outcome {
        Outcome::Pass | Outcome::Begin => return TC_ACT_UNSPEC,
        Outcome::Refused(reason) => reason,
        Outcome::Edit => {
            let old = match work.edit.side {
                Side::Destination => work.packet.destination.words(),
                Side::Source => work.packet.source.words(),
            };
            let new = work.edit.address.words();
            let difference = checksum::difference(&old, &new, F::Addr::LEN / 4);
            // No transport checksum makes up for the address here.
            let flags = BPF_F_RECOMPUTE_CSUM.into();
            let edited = addresses::<F>(&ctx, l2, work, difference, flags);
            match edited.and_then(|()| link(&ctx, l2, work)) {
                Ok(()) => return TC_ACT_UNSPEC,
                Err(reason) => reason,
            }
        }
    };
    Lookup::<F>::count(&mut world, reason);
    TC_ACT_SHOT
}
