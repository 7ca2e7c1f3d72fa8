// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flows as people see them: one for the entries of both directions and of its masquerading.
//!
//! **Invariant:** a flow is met by the entry of its requests at ingress. Whoever only counts costs one
//! look at each entry; the others are asked for when a flow is wanted whole.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::abi::{Action, Conn, ConnFlags, ConnKey, ConnState, Hook, names};
use lb_common::{V4, V6};

use super::Look;
use crate::datapath::error::DatapathError;
use crate::datapath::loader::Clock;
use crate::datapath::maps::{Hash, MapFamily, Raw, failed, is_missing, open_hash};
use crate::datapath::sweep::age_secs;

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlowState {
    /// Not both sides have spoken.
    HalfOpen,
    /// Both sides have spoken.
    Established,
    /// One side has ended, the other may still send.
    Closing,
    /// Both sides have ended; the entries are about to go.
    Closed,
    /// One side has reset it; the entries are about to go.
    Reset,
}

/// A flow through a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Protocol number of IANA.
    pub proto: u8,
    /// Who has opened it.
    pub client: (IpAddr, u16),
    /// What the client dialled.
    pub frontend: (IpAddr, u16),
    /// Where it goes.
    pub backend: (IpAddr, u16),
    /// What the backend sees in the place of the client, if that was replaced.
    pub masquerade: Option<(IpAddr, u16)>,
    /// How far it has come.
    pub state: FlowState,
    /// Service id; 0 for one that dialled a backend itself and got another source port.
    pub service: u32,
    /// Packets and bytes from the client.
    pub sent: (u64, u64),
    /// Packets and bytes to the client.
    pub received: (u64, u64),
    /// Seconds since the last packet of either side, exact to two.
    pub idle_secs: u32,
    /// Seconds since the first packet.
    pub age_secs: u32,
}

/// Who looks at flows.
pub trait FlowVisitor {
    /// Called for every flow; true if it is wanted whole.
    fn meets(&mut self, service: u32, backend: u32, half_open: bool) -> bool;
    /// Called for each that was wanted; false ends the walk.
    fn takes(&mut self, flow: Flow) -> bool;
}

/// Flows that are masqueraded with one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerades {
    /// How many there are.
    pub flows: u64,
    /// How many there are towards each backend address and port, of each protocol: each of these has
    /// all ports for itself.
    pub towards: BTreeMap<(IpAddr, u16, u8), u32>,
}

impl Look {
    /// Shows every flow of both families, established ones first.
    pub fn flows(&self, visitor: &mut dyn FlowVisitor) -> Result<(), DatapathError> {
        let clock = Clock::open(&self.pins)?;
        let v4 = (names::CONNS_V4, names::HALF_OPEN_V4);
        let v6 = (names::CONNS_V6, names::HALF_OPEN_V6);
        let v4 = Tables::<[u8; 4]>::open::<V4>(self, v4, &clock)?;
        let v6 = Tables::<[u8; 16]>::open::<V6>(self, v6, &clock)?;
        let _ends = v4.walk(false, visitor)?
            || v6.walk(false, visitor)?
            || v4.walk(true, visitor)?
            || v6.walk(true, visitor)?;
        Ok(())
    }

    /// How many established flows are masqueraded, by the address that they are given.
    pub fn masquerades(&self) -> Result<BTreeMap<IpAddr, Masquerades>, DatapathError> {
        let mut found = BTreeMap::new();
        self.masquerades_in::<[u8; 4]>(names::CONNS_V4, &mut found)?;
        self.masquerades_in::<[u8; 16]>(names::CONNS_V6, &mut found)?;
        Ok(found)
    }

    fn masquerades_in<A>(
        &self,
        name: &'static str,
        found: &mut BTreeMap<IpAddr, Masquerades>,
    ) -> Result<(), DatapathError>
    where
        A: Copy + Into<IpAddr>,
        ConnKey<A>: bytemuck::Pod,
        Conn<A>: bytemuck::Pod,
    {
        self.walk(name, |key: &ConnKey<A>, conn: &Conn<A>| {
            if conn.action == Action::Snat as u8 {
                let of = found.entry(conn.peer.into()).or_default();
                of.flows += 1;
                let backend = (key.destination.into(), key.destination_port, key.proto);
                *of.towards.entry(backend).or_default() += 1;
            }
        })
    }
}

/// A flow table with its name.
type Named<A> = (&'static str, Hash<ConnKey<A>, Conn<A>>);

/// The flow tables of one family.
struct Tables<'a, A>
where
    ConnKey<A>: bytemuck::Pod,
    Conn<A>: bytemuck::Pod,
{
    look: &'a Look,
    clock: &'a Clock,
    established: Named<A>,
    half_open: Named<A>,
}

impl<'a, A> Tables<'a, A>
where
    A: Copy + Into<IpAddr>,
    ConnKey<A>: bytemuck::Pod,
    Conn<A>: bytemuck::Pod,
{
    fn open<F: MapFamily<Addr = A>>(
        look: &'a Look,
        (established, half_open): (&'static str, &'static str),
        clock: &'a Clock,
    ) -> Result<Self, DatapathError> {
        Ok(Self {
            look,
            clock,
            established: (established, open_hash(&look.pins, established)?),
            half_open: (half_open, open_lru(look, half_open)?),
        })
    }

    /// Shows the flows of one of the two tables; true if nothing more is wanted.
    fn walk(&self, half_open: bool, visitor: &mut dyn FlowVisitor) -> Result<bool, DatapathError> {
        let (name, _) = if half_open {
            &self.half_open
        } else {
            &self.established
        };
        let mut ends = false;
        self.look
            .walk_steps(name, |keys: &[ConnKey<A>], conns: &[Conn<A>]| {
                let now = self.clock.now()?;
                for (key, conn) in keys.iter().zip(conns) {
                    if ends || conn.action != Action::Dnat as u8 || key.hook != Hook::Ingress as u8
                    {
                        continue;
                    }
                    // While a flow is established it is in both tables for a moment.
                    if half_open && find(&self.established, key)?.is_some() {
                        continue;
                    }
                    if visitor.meets(conn.service, conn.backend, half_open) {
                        ends = !visitor.takes(self.flow(key, conn, half_open, now)?);
                    }
                }
                Ok(())
            })?;
        Ok(ends)
    }

    fn flow(
        &self,
        key: &ConnKey<A>,
        conn: &Conn<A>,
        half_open: bool,
        now: u32,
    ) -> Result<Flow, DatapathError> {
        let reply = self.find_either(&conn.pair_key(key))?;
        let masquerade = self.masquerade(key, conn)?;
        let seen = conn.state() | reply.map_or(0, |reply| reply.state());
        let state = match seen {
            _ if half_open => FlowState::HalfOpen,
            seen if seen & ConnState::RESET != 0 => FlowState::Reset,
            seen if ConnState::is_over(seen) => FlowState::Closed,
            seen if seen & ConnState::CLOSED != 0 => FlowState::Closing,
            _ => FlowState::Established,
        };
        let age = |stamp| age_secs(now, stamp, self.clock.hz);
        let idle = age(conn.last_seen);
        Ok(Flow {
            proto: key.proto,
            client: (key.source.into(), key.source_port),
            frontend: (key.destination.into(), key.destination_port),
            backend: (conn.peer.into(), conn.peer_port),
            masquerade,
            state,
            service: conn.service,
            sent: (conn.packets.into(), conn.byte_count()),
            received: reply.map_or((0, 0), |reply| (reply.packets.into(), reply.byte_count())),
            idle_secs: reply.map_or(idle, |reply| idle.min(age(reply.last_seen))),
            age_secs: age(conn.opened),
        })
    }

    /// What the backend sees in the place of the client, which egress has chosen by itself.
    fn masquerade(
        &self,
        key: &ConnKey<A>,
        conn: &Conn<A>,
    ) -> Result<Option<(IpAddr, u16)>, DatapathError> {
        if conn.flags & ConnFlags::MASQUERADED == 0 {
            return Ok(None);
        }
        let client = (key.source, conn.client_port);
        let backend = (conn.peer, conn.peer_port);
        let found = self.find_either(&ConnKey::new(client, backend, key.proto, Hook::Egress))?;
        let chosen = found.filter(|found| {
            found.action == Action::Snat as u8 && found.flags & ConnFlags::PENDING == 0
        });
        Ok(chosen.map(|chosen| (chosen.peer.into(), chosen.peer_port)))
    }

    fn find_either(&self, key: &ConnKey<A>) -> Result<Option<Conn<A>>, DatapathError> {
        match find(&self.established, key)? {
            Some(found) => Ok(Some(found)),
            None => find(&self.half_open, key),
        }
    }
}

/// The entry of a key in one table.
fn find<A: Copy>((name, map): &Named<A>, key: &ConnKey<A>) -> Result<Option<Conn<A>>, DatapathError>
where
    ConnKey<A>: bytemuck::Pod,
    Conn<A>: bytemuck::Pod,
{
    match map.get(&Raw(*key), 0) {
        Ok(Raw(conn)) => Ok(Some(conn)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(failed("read", name)(error)),
    }
}

/// Opens a hash whose oldest entries give way; it is read as any other, which makes none younger.
fn open_lru<K, V>(look: &Look, name: &'static str) -> Result<Hash<K, V>, DatapathError>
where
    K: bytemuck::Pod,
    V: bytemuck::Pod,
{
    aya::maps::MapData::from_pin(look.pins.map(name))
        .map(aya::maps::Map::LruHashMap)
        .and_then(Hash::try_from)
        .map_err(failed("open", name))
}
