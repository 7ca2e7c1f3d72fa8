// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! ICMP errors about translated flows: they are translated as well.
//!
//! A message quotes a packet as it was on the wire where the trouble was, which is on the other
//! side of the translation than the quoted packet's sender. It comes back the flow's way, so it
//! meets the entry of the packets that go in its own direction.
//! **Invariant:** a message opens no flow, keeps none alive and ends none: anybody can send one.

use lb_common::abi::{ConnFlags, ConnKey, Hook};
use lb_common::{Address as _, Family, Reason};

use super::{Outcome, Side, Work};
use crate::icmp::{Kind, Message};
use crate::tables::{Table, Tables};

/// Decides about an ICMP message at a hook, the packet that it quotes being in `work.packet`.
///
/// With [`Outcome::Edit`], `work.edit` says what the quoted packet becomes: at ingress its source
/// gets the new address, at egress its destination; the ports are both as they will be. The
/// message's own destination (ingress) or source (egress) becomes that address, too, also where a
/// router on the way speaks: beyond the translation its address may be a stranger's, which a
/// reverse-path filter drops. Netfilter does the same.
#[inline(always)]
pub fn icmp<F: Family, T: Tables<F>>(
    tables: &mut T,
    work: &mut Work<F::Addr>,
    message: &Message<F::Addr>,
    hook: Hook,
) -> Outcome {
    let quoted = &work.packet;
    // It goes to the sender of what it quotes, or is made up.
    if message.destination.words() != quoted.source.words() {
        return Outcome::Pass;
    }
    work.other_key = ConnKey::new(
        (quoted.destination, quoted.destination_port),
        (quoted.source, quoted.source_port),
        quoted.proto,
        hook,
    );
    let established = tables.conn(Table::Established, &work.other_key);
    let entry = established.or_else(|| tables.conn(Table::HalfOpen, &work.other_key));
    let Some(conn) = entry else {
        return Outcome::Pass;
    };
    if conn.flags & ConnFlags::PENDING != 0 {
        return Outcome::Pass;
    }
    if message.kind == Kind::Redirect {
        return Outcome::Refused(Reason::Redirect);
    }
    work.edit.address = F::Addr::from_words(conn.peer.words());
    match hook {
        Hook::Ingress => {
            work.edit.side = Side::Destination;
            work.edit.source_port = conn.peer_port;
            work.edit.destination_port = conn.client_port;
        }
        Hook::Egress => {
            work.edit.side = Side::Source;
            work.edit.source_port = conn.client_port;
            work.edit.destination_port = conn.peer_port;
        }
    }
    tables.count(Reason::IcmpError);
    Outcome::Edit
}
