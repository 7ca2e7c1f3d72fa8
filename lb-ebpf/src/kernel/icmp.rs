// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Rewriting an ICMP error and the packet that it quotes.
//!
//! Every checksum that covers something changed is updated by the difference: the quoted header's,
//! the quoted transport's where the quote reaches so far, the message's own and its header's. What
//! is stored also corrects the sum over the packet where the device has computed one.
//! A message's checksum is never left to the device, except in our own answers to refused packets
//! (`reject.rs`), which belong to no flow.
//! **Invariant:** only packets of no protocol that frontends have come here.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use lb_common::abi::{Hook, proto};
use lb_common::{Address as _, Reason};
use lb_ebpf::checksum;
use lb_ebpf::icmp::{self, Icmp, Message};
use lb_ebpf::path::{self, Outcome, Side, Work};
use lb_ebpf::tables::Lookup;

use super::edit::ports;
use super::whole::Whole;
use super::{Host, World, work};

/// Offsets within the network headers, in bytes.
const V4_CHECKSUM: u32 = 10;
const V4_SOURCE: u32 = 12;
const V4_DESTINATION: u32 = 16;
const V6_SOURCE: u32 = 8;
const V6_DESTINATION: u32 = 24;

/// Translates an ICMP error about a translated flow, drops a redirect about one, and passes
/// everything else; gives the action. `l2` is the length of the link-layer header.
///
/// A BPF function of its own, so that its stack and its instructions are no part of other packets'
/// way.
#[inline(never)]
pub(crate) fn icmp<F: Host + Icmp>(skb: *mut __sk_buff, l2: u32, at_ingress: bool) -> i32 {
    let whole = Whole { skb, l2 };
    let Some(work) = work::<F>() else {
        return TC_ACT_UNSPEC;
    };
    let mut message = Message::new();
    if icmp::parse::<F, _>(&whole, &mut message, &mut work.packet).is_none() {
        return TC_ACT_UNSPEC;
    }
    let mut world = World::new(&TcContext::new(skb), l2);
    let hook = if at_ingress {
        Hook::Ingress
    } else {
        Hook::Egress
    };
    let mut outcome = path::icmp::<F, _>(&mut world, work, &message, hook);
    if outcome == Outcome::Edit {
        outcome = translate::<F>(&whole, work, &message).into();
    }
    match outcome {
        Outcome::Pass | Outcome::Edit | Outcome::Begin => TC_ACT_UNSPEC,
        Outcome::Refused(reason) => {
            Lookup::<F>::count(&mut world, reason);
            TC_ACT_SHOT
        }
    }
}

/// Carries out `work.edit`.
#[inline(always)]
fn translate<F: Host>(
    whole: &Whole,
    work: &Work<F::Addr>,
    message: &Message<F::Addr>,
) -> Result<(), Reason> {
    let (quoted, new) = (&work.packet, &work.edit);
    let words = F::Addr::LEN / 4;
    let to = new.address.words();
    // The quoted packet went the other way: its source is the message's destination.
    let from = match new.side {
        Side::Destination => quoted.source.words(),
        Side::Source => quoted.destination.words(),
    };
    let address = checksum::difference(&from, &to, words);
    let mut changed = address;

    let source_is_quoted = matches!(new.side, Side::Destination);
    whole.write(message.quote + place::<F>(source_is_quoted), &new.address)?;
    if !F::IS_V6 {
        let checksum = checksum::update(quoted.header_checksum, address);
        changed = checksum::add(
            changed,
            checksum::difference_of_halves(quoted.header_checksum, checksum),
        );
        whole.write(message.quote + V4_CHECKSUM, &checksum)?;
    }

    let old_ports = ports(quoted.source_port, quoted.destination_port);
    let new_ports = ports(new.source_port, new.destination_port);
    let difference = checksum::add(!old_ports, new_ports);
    changed = checksum::add(changed, difference);
    let l4 = message.quote + quoted.l4;
    whole.write(l4, &new_ports)?;
    if message.has_transport_checksum {
        let old = message.transport_checksum;
        let mut checksum = checksum::update(old, checksum::add(address, difference));
        if quoted.proto == proto::UDP && checksum == [0; 2] {
            checksum = [0xff; 2];
        }
        changed = checksum::add(changed, checksum::difference_of_halves(old, checksum));
        whole.write(message.quote + quoted.checksum_offset(), &checksum)?;
    }

    let from = match new.side {
        Side::Destination => message.destination.words(),
        Side::Source => message.source.words(),
    };
    let outer = checksum::difference(&from, &to, words);
    if F::IS_V6 {
        // The pseudo header's part.
        changed = checksum::add(changed, outer);
    } else {
        let checksum = checksum::update(message.header_checksum, outer);
        whole.write(V4_CHECKSUM, &checksum)?;
    }
    whole.write(place::<F>(!source_is_quoted), &new.address)?;
    let checksum = checksum::update(message.checksum, changed);
    whole.write(message.start + 2, &checksum)?;
    Ok(())
}

/// Where the source or the destination lies in a network header.
#[inline(always)]
const fn place<F: Host>(source: bool) -> u32 {
    match (F::IS_V6, source) {
        (false, true) => V4_SOURCE,
        (false, false) => V4_DESTINATION,
        (true, true) => V6_SOURCE,
        (true, false) => V6_DESTINATION,
    }
}
