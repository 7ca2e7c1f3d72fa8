// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves what is still in the older tables of flows, while programs do the same with what they need.
//!
//! **Invariant:** an entry is in the new table before it leaves the old one, a newer one there is
//! never replaced, and one that a program removes does not come back.

use aya::maps::{MapData, MapError};
use lb_common::abi::older::OldConn;
use lb_common::abi::{Conn, ConnKey, names};
use lb_common::{Address, V4, V6};
use nix::errno::Errno;

use super::super::batch::Batches;
use super::super::error::{DatapathError, os_error};
use super::super::maps::{Hash, Raw, failed, is_missing, open_hash};
use super::super::pins::Pins;
use super::super::written::Store as _;
use super::incoming;

/// Entries read in one call of the kernel.
const STEP_ENTRIES: usize = 512;
/// `BPF_NOEXIST`.
const NEW_ONLY: u64 = 1;
/// Walks after which what is left is left: each one finds nothing but what has come during the one
/// before it, and nothing comes after the first.
const WALKS: usize = 4;

/// Moves all flows of the maps named; tells how many entries that were.
pub(super) fn carry_all(pins: &Pins, maps: &[&'static str]) -> Result<usize, DatapathError> {
    let mut moved = 0;
    for name in maps {
        moved += match *name {
            names::CONNS_V4 | names::HALF_OPEN_V4 => {
                carry::<<V4 as lb_common::Family>::Addr>(pins, name)?
            }
            names::CONNS_V6 | names::HALF_OPEN_V6 => {
                carry::<<V6 as lb_common::Family>::Addr>(pins, name)?
            }
            _ => 0,
        };
    }
    Ok(moved)
}

fn carry<A>(pins: &Pins, name: &'static str) -> Result<usize, DatapathError>
where
    A: Address + Send + 'static,
    ConnKey<A>: bytemuck::Pod + Send,
    Conn<A>: bytemuck::Pod + Send + PartialEq,
    OldConn<A>: bytemuck::Pod + Send,
{
    let data = MapData::from_pin(pins.map(name)).map_err(failed("open", name))?;
    let mut tables = Tables::<A> {
        name,
        older: open_hash(pins, name)?,
        newer: Hash::open(&incoming(pins, name)).map_err(failed("open", name))?,
    };
    let mut moved = 0;
    for _ in 0..WALKS {
        let mut met = false;
        let mut batches = Batches::<ConnKey<A>, OldConn<A>>::new(&data, STEP_ENTRIES);
        let unread = |source| DatapathError::Batch { map: name, source };
        while let Some((keys, conns)) = batches.next().map_err(unread)? {
            for (key, conn) in keys.iter().zip(conns) {
                met = true;
                moved += usize::from(tables.carry(key, conn)?);
            }
        }
        if !met {
            return Ok(moved);
        }
    }
    tracing::warn!(
        map = name,
        "some flows found no room in the table of the new layout and end"
    );
    Ok(moved)
}

/// A table of the older layout and the one that takes its place.
struct Tables<A>
where
    ConnKey<A>: bytemuck::Pod,
    Conn<A>: bytemuck::Pod,
    OldConn<A>: bytemuck::Pod,
{
    name: &'static str,
    older: Hash<ConnKey<A>, OldConn<A>>,
    newer: Hash<ConnKey<A>, Conn<A>>,
}

impl<A: Address> Tables<A>
where
    ConnKey<A>: bytemuck::Pod,
    Conn<A>: bytemuck::Pod + PartialEq,
    OldConn<A>: bytemuck::Pod,
{
    /// Moves one entry; false when a program had done so, had removed it, or there is no room.
    fn carry(&mut self, key: &ConnKey<A>, older: &OldConn<A>) -> Result<bool, DatapathError> {
        let mut conn: Conn<A> = bytemuck::Zeroable::zeroed();
        conn.take_over_older(older);
        match self.newer.insert(Raw(*key), Raw(conn), NEW_ONLY) {
            Ok(()) => {}
            Err(error) => {
                return match os_error(&error).map(Errno::from_raw) {
                    Some(Errno::EEXIST) => self.drop_old(key).map(|_| false),
                    Some(Errno::E2BIG) => Ok(false),
                    _ => Err(failed("write", self.name)(error)),
                };
            }
        }
        if self.drop_old(key)? {
            return Ok(true);
        }
        // It was removed between the reading and now; what has been put there since is another one.
        if matches!(self.newer.get(&Raw(*key), 0), Ok(Raw(now)) if now == conn) {
            ignore_missing(self.newer.remove(&Raw(*key))).map_err(failed("write", self.name))?;
        }
        Ok(false)
    }

    /// Removes an entry from the older table; false when it was gone.
    fn drop_old(&mut self, key: &ConnKey<A>) -> Result<bool, DatapathError> {
        ignore_missing(self.older.remove(&Raw(*key))).map_err(failed("write", self.name))
    }
}

/// Whether something was there to be removed.
fn ignore_missing(removed: Result<(), MapError>) -> Result<bool, MapError> {
    match removed {
        Ok(()) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
