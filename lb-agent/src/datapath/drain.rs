// SPDX-License-Identifier: MIT OR Apache-2.0
//! Taking lb out of service without cutting flows: no new ones begin, those that are there go on.
//!
//! Every frontend gets a mark by which the programs begin nothing for it: what would begin a flow
//! passes to whatever else serves the address. Deleting frontends would do that for TCP too, but a
//! SYN that is sent twice and a datagram after a change of its Service ask for the frontend again, and
//! the next agent takes its ids from there.
//! **Invariant:** whatever happens on the way, flows that are there are translated; the next agent
//! takes the marks off. Read next: `cleanup.rs`, which comes after it, and the README.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use aya::maps::MapData;
use lb_common::abi::{
    Action, Conn, ConnKey, Frontend, FrontendFlags, FrontendKey, SocketKey, SocketPeer, Way, names,
    proto,
};
use serde::Serialize;

use super::batch::Batches;
use super::cleanup::{Cleanup, is_upgrading};
use super::error::DatapathError;
use super::loader::Clock;
use super::maps::{Flows, Hash, KernelTables, Raw, failed, is_missing, open_hash};
use super::pins::Pins;
use super::sweep::{Moment, STEP_ENTRIES, Sweeper, Timeouts, age_secs, is_done, pair_of};
use super::written::Store as _;

/// A flow that has ended is waited for as long as its last acknowledgement, and a FIN that is sent
/// again, may be under way.
const OVER_SECS: u32 = 2;
/// A connection that is being opened is waited for as long as an answer that was lost twice takes
/// (Linux sends it again after one second and after three). After that the client's own SYN comes
/// again, and may as well begin anew.
const OPENING_SECS: u32 = 5;
/// `BPF_EXIST`: an entry that has gone meanwhile does not come back.
const EXIST: u64 = 2;

/// Flows that are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Living {
    /// Connections of TCP, also those that are being opened.
    pub tcp: usize,
    /// Flows of UDP that are not silent.
    pub udp: usize,
    /// Associations of SCTP.
    pub sctp: usize,
    /// Peers that sockets of this node send to without being connected, and are not silent.
    pub sockets: usize,
}

impl Living {
    /// All of them.
    pub const fn total(&self) -> usize {
        self.tcp + self.udp + self.sctp + self.sockets
    }

    fn add(&mut self, protocol: u8) {
        match protocol {
            proto::TCP => self.tcp += 1,
            proto::UDP => self.udp += 1,
            _ => self.sctp += 1,
        }
    }
}

impl fmt::Display for Living {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.total() {
            0 => return f.write_str("no flow"),
            1 => f.write_str("1 flow")?,
            n => write!(f, "{n} flows")?,
        }
        let kinds = [
            (self.tcp, "TCP"),
            (self.udp, "UDP"),
            (self.sctp, "SCTP"),
            (self.sockets, "of sockets"),
        ];
        let kinds = kinds.into_iter().filter(|(count, _)| *count > 0);
        let kinds: Vec<_> = kinds.map(|(n, what)| format!("{n} {what}")).collect();
        write!(f, " ({})", kinds.join(", "))
    }
}

/// A data plane that begins no flows any more. Flows that end are removed for as long as it lives.
pub struct Drain {
    sweeper: Sweeper,
    clock: Clock,
    timeouts: Timeouts,
    half_open: (Flows<[u8; 4]>, Flows<[u8; 16]>),
    established: (Flows<[u8; 4]>, Flows<[u8; 16]>),
    sockets: [MapData; 2],
}

impl Drain {
    /// Marks all frontends; from here on no flow begins. None when nothing is there to drain.
    pub fn begin(cleanup: &Cleanup) -> Result<Option<Self>, DatapathError> {
        let pins = match Pins::open(cleanup.root()) {
            Err(DatapathError::NothingPinned { .. }) => return Ok(None),
            other => other?,
        };
        if is_upgrading(&pins)? {
            let path = cleanup.root().to_owned();
            return Err(DatapathError::Upgrading { path });
        }
        let timeouts = Timeouts::default();
        let tables = KernelTables::open_pins(&pins)?;
        let drain = Self {
            clock: Clock::open(&pins)?,
            timeouts,
            half_open: (
                Flows::open_table(&pins, names::HALF_OPEN_V4)?,
                Flows::open_table(&pins, names::HALF_OPEN_V6)?,
            ),
            established: (Flows::open_v4(&pins)?, Flows::open_v6(&pins)?),
            sockets: [
                open::<[u8; 4]>(&pins, names::SOCKETS_V4)?,
                open::<[u8; 16]>(&pins, names::SOCKETS_V6)?,
            ],
            sweeper: Sweeper::start(&pins, timeouts, tables.meters())?,
        };
        mark_all(&pins, Mark::Drain)?;
        Ok(Some(drain))
    }

    /// The flows that are there now.
    pub fn count(&self) -> Result<Living, DatapathError> {
        let at = Moment {
            now: self.clock.now()?,
            hz: self.clock.hz,
            timeouts: self.timeouts,
            over_secs: OVER_SECS,
            port_secs: OVER_SECS,
        };
        let mut living = Living::default();
        // ORDER: a flow is in the table of established ones before it leaves the other one.
        add_flows(&self.half_open.0, at, true, &mut living)?;
        add_flows(&self.half_open.1, at, true, &mut living)?;
        add_flows(&self.established.0, at, false, &mut living)?;
        add_flows(&self.established.1, at, false, &mut living)?;
        let [v4, v6] = &self.sockets;
        living.sockets += peers::<[u8; 4]>(v4, names::SOCKETS_V4, at)?;
        living.sockets += peers::<[u8; 16]>(v6, names::SOCKETS_V6, at)?;
        Ok(living)
    }

    /// Flows that have ended and were removed.
    pub fn swept(&self) -> u64 {
        self.sweeper.removed()
    }
}

/// Adds the flows of one table. Of a masqueraded one the entry counts that replaces the destination;
/// of one that rules of others have marked, the only one there is.
fn add_flows<A: Copy + Into<IpAddr>>(
    flows: &Flows<A>,
    at: Moment,
    opening: bool,
    living: &mut Living,
) -> Result<(), DatapathError>
where
    ConnKey<A>: bytemuck::Pod + PartialEq,
    Conn<A>: bytemuck::Pod,
{
    let mut batches = flows.batches(STEP_ENTRIES);
    while let Some((keys, conns)) = batches.next().map_err(|error| flows.unread(error))? {
        for (key, conn) in keys.iter().zip(conns) {
            let marked = conn.action == Action::Snat as u8 && conn.service == 0;
            if conn.action != Action::Dnat as u8 && !marked {
                continue;
            }
            let done = if opening && key.proto != proto::UDP {
                age_secs(at.now, conn.last_seen, at.hz) > OPENING_SECS
            } else {
                is_over(flows, (key, conn), at)?
            };
            if !done {
                living.add(key.proto);
            }
        }
    }
    Ok(())
}

fn is_over<A: Copy + Into<IpAddr>>(
    flows: &Flows<A>,
    (key, conn): (&ConnKey<A>, &Conn<A>),
    at: Moment,
) -> Result<bool, DatapathError>
where
    ConnKey<A>: bytemuck::Pod + PartialEq,
    Conn<A>: bytemuck::Pod,
{
    // The young majority needs no look at the other entry.
    if !is_done(key, conn, None, at) && !is_done(key, conn, Some(conn), at) {
        return Ok(false);
    }
    let pair = pair_of(key, conn, flows.lookup(&conn.pair_key(key))?);
    let pair = pair.as_ref().map(|(_, pair)| pair);
    Ok(is_done(key, conn, pair, at))
}

/// Peers that datagrams are sent to by their frontend, as recently as the programs keep a backend for
/// them. A socket that is connected knows its backend itself and needs us no more.
fn peers<A: Copy>(map: &MapData, name: &'static str, at: Moment) -> Result<usize, DatapathError>
where
    SocketKey<A>: bytemuck::Pod,
    SocketPeer<A>: bytemuck::Pod,
{
    let mut count = 0;
    let mut batches = Batches::<SocketKey<A>, SocketPeer<A>>::new(map, STEP_ENTRIES);
    let unread = |source| DatapathError::Batch { map: name, source };
    while let Some((keys, peers)) = batches.next().map_err(unread)? {
        let entries = keys.iter().zip(peers);
        let sent = entries.filter(|(key, peer)| {
            let age = age_secs(at.now, peer.last_used, at.hz);
            key.way == Way::There as u8 && age < at.timeouts.udp_stream
        });
        count += sent.count();
    }
    Ok(count)
}

/// What becomes of frontends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Drain,
    Serve,
}

/// Takes the marks off that a drain which was not brought to its end has left.
pub(super) fn reopen(pins: &Pins) -> Result<(), DatapathError> {
    let marked = mark_all(pins, Mark::Serve)?;
    if marked > 0 {
        tracing::info!("{marked} frontends begin flows again; they had been drained");
    }
    Ok(())
}

/// True when some frontend begins no flows, as far as that can be read.
pub(super) fn is_draining(pins: &Pins) -> bool {
    let (v4, v6) = (names::FRONTENDS_V4, names::FRONTENDS_V6);
    let v4 = frontends::<[u8; 4]>(&pins.map(v4), v4, Mark::Serve).map(|(_, found)| found.len());
    let v6 = frontends::<[u8; 16]>(&pins.map(v6), v6, Mark::Serve).map(|(_, found)| found.len());
    v4.is_ok_and(|marked| marked > 0) || v6.is_ok_and(|marked| marked > 0)
}

/// Marks all frontends, also in the maps that are to take the place of others: an agent that ended
/// while it exchanged them has left devices with programs of both kinds. Tells how many had to be.
fn mark_all(pins: &Pins, mark: Mark) -> Result<usize, DatapathError> {
    let mut marked = 0;
    for name in [names::FRONTENDS_V4, names::FRONTENDS_V6] {
        for path in [pins.map(name), pins.next(name)] {
            if !path.exists() {
                continue;
            }
            marked += if name == names::FRONTENDS_V4 {
                mark_map::<[u8; 4]>(&path, name, mark)?
            } else {
                mark_map::<[u8; 16]>(&path, name, mark)?
            };
        }
    }
    Ok(marked)
}

fn mark_map<A: Copy>(path: &Path, name: &'static str, mark: Mark) -> Result<usize, DatapathError>
where
    FrontendKey<A>: bytemuck::Pod + Send,
{
    // ORDER: all are read first. An entry that is written moves to the front of its bucket, and a walk
    // would meet it again.
    let (mut map, found) = frontends::<A>(path, name, mark)?;
    for (key, mut frontend) in found.iter().copied() {
        frontend.flags ^= FrontendFlags::DRAINING;
        match map.insert(Raw(key), Raw(frontend), EXIST) {
            Err(error) if is_missing(&error) => {}
            other => other.map_err(failed("write", name))?,
        }
    }
    Ok(found.len())
}

type Frontends<A> = Hash<FrontendKey<A>, Frontend>;
type Entries<A> = Vec<(FrontendKey<A>, Frontend)>;

/// The frontends whose mark is to change, and the map that they are in.
fn frontends<A: Copy>(
    path: &Path,
    name: &'static str,
    mark: Mark,
) -> Result<(Frontends<A>, Entries<A>), DatapathError>
where
    FrontendKey<A>: bytemuck::Pod + Send,
{
    // ORDER: it checks the sizes of keys and values, which the walk counts on.
    let map = Frontends::open(path).map_err(failed("open", name))?;
    let data = MapData::from_pin(path).map_err(failed("open", name))?;
    let mut found = Vec::new();
    let mut batches = Batches::new(&data, STEP_ENTRIES);
    let unread = |source| DatapathError::Batch { map: name, source };
    while let Some((keys, frontends)) = batches.next().map_err(unread)? {
        let entries = keys.iter().copied().zip(frontends.iter().copied());
        found.extend(entries.filter(|(_, frontend): &(_, Frontend)| {
            frontend.is_draining() == (mark == Mark::Serve)
        }));
    }
    Ok((map, found))
}

/// Opens a table of what sockets were told.
fn open<A>(pins: &Pins, name: &'static str) -> Result<MapData, DatapathError>
where
    SocketKey<A>: bytemuck::Pod,
    SocketPeer<A>: bytemuck::Pod,
{
    // ORDER: as above.
    drop(open_hash::<SocketKey<A>, SocketPeer<A>>(pins, name)?);
    MapData::from_pin(pins.map(name)).map_err(failed("open", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_by_kind() {
        let mut living = Living::default();
        assert_eq!(living.to_string(), "no flow");
        living.add(proto::UDP);
        assert_eq!(living.to_string(), "1 flow (1 UDP)");
        living.add(proto::TCP);
        living.add(proto::TCP);
        living.sockets = 4;
        assert_eq!(living.to_string(), "7 flows (2 TCP, 1 UDP, 4 of sockets)");
    }
}
