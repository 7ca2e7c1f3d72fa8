// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Datagrams in fragments: only the first has ports, the others go the same way.
//!
//! The ports of a first fragment that is translated are written down; a later fragment finds its
//! flow by them. One that comes before the first, or whose flow is gone, is left to the stack.
//! **Invariant:** a later fragment opens no flow, keeps none alive and ends none.

use lb_common::abi::{
    Action, ConnFlags, ConnKey, Fragment, FragmentKey, Hook, Hop, copy_link_address,
};
use lb_common::{Address as _, Family};

use super::{Outcome, Side, Work};
use crate::tables::{Table, Tables};

/// The table of datagrams that are under way in fragments.
pub trait Fragments<F: Family> {
    /// The ports of a datagram.
    fn ports(&self, key: &FragmentKey<F::Addr>) -> Option<Fragment>;
    /// Writes the ports of a datagram; when there is no room, its later fragments are strays.
    fn remember(&mut self, key: &FragmentKey<F::Addr>, ports: &Fragment);
}

/// The key of the datagram in `work.packet`.
#[inline(always)]
fn key<A: lb_common::Address>(work: &Work<A>, hook: Hook) -> FragmentKey<A> {
    let packet = &work.packet;
    FragmentKey::new(
        packet.source,
        packet.destination,
        packet.fragment_id,
        packet.proto,
        hook,
    )
}

/// Writes down the ports of the first fragment in `work.packet`, which is translated at this hook.
#[inline(always)]
pub fn first_fragment<F: Family, T: Fragments<F>>(
    tables: &mut T,
    work: &Work<F::Addr>,
    hook: Hook,
) {
    let ports = Fragment {
        source_port: work.packet.source_port,
        destination_port: work.packet.destination_port,
    };
    tables.remember(&key(work, hook), &ports);
}

/// Decides about the later fragment in `work.packet`. Of `work.edit`, all but the ports counts.
#[inline(always)]
pub fn later_fragment<F: Family, T: Tables<F> + Fragments<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    hook: Hook,
) -> Outcome {
    let Some(ports) = tables.ports(&key(work, hook)) else {
        return Outcome::Pass;
    };
    let packet = &work.packet;
    work.key = ConnKey::new(
        (packet.source, ports.source_port),
        (packet.destination, ports.destination_port),
        packet.proto,
        hook,
    );
    let established = tables.conn(Table::Established, &work.key);
    let entry = established.or_else(|| tables.conn(Table::HalfOpen, &work.key));
    let Some(conn) = entry else {
        return Outcome::Pass;
    };
    if conn.flags & ConnFlags::PENDING != 0 {
        return Outcome::Pass;
    }
    work.edit.address = F::Addr::from_words(conn.peer.words());
    work.edit.bridged = conn.hop == Hop::Bridged as u8;
    copy_link_address(&mut work.edit.next_hop, &conn.next_hop);
    let (action, flags) = (conn.action, conn.flags);
    match hook {
        Hook::Ingress => {
            work.edit.side = Side::Destination;
            if action == Action::Dnat as u8 && flags & ConnFlags::MASQUERADED != 0 {
                tables.set_mark(true);
            }
        }
        Hook::Egress => {
            work.edit.side = Side::Source;
            work.edit.bridged = false;
            if action == Action::Snat as u8 {
                tables.set_mark(false);
            }
        }
    }
    Outcome::Edit
}
