// SPDX-License-Identifier: MIT OR Apache-2.0
//! What sockets of one family were told instead of what they asked for, and whether it is still true.
//!
//! **Invariant:** the rule is that of `may_continue` in `lb_ebpf::path::socket`, except silence. What
//! cannot be read is an error and makes nothing stale.

use std::sync::Arc;

use aya::maps::MapError;
use lb_common::Address;
use lb_common::abi::{
    Backend, Frontend, FrontendKey, Prefix, PrefixTable, SocketKey, SocketPeer, SourceRange, Way,
    names, proto,
};

use crate::datapath::error::DatapathError;
use crate::datapath::maps::{FamilyMaps, Hash, Raw, failed, is_missing, open_hash};
use crate::datapath::pins::Pins;
use crate::datapath::prefixes::{self, Trie};
use crate::datapath::written::{Shared, Store as _, lock};

/// What sockets of one family were told, and what they depend on.
pub(super) struct Peers<A>
where
    SocketKey<A>: bytemuck::Pod,
    SocketPeer<A>: bytemuck::Pod,
    FrontendKey<A>: bytemuck::Pod,
    Backend<A>: bytemuck::Pod,
    Prefix<A>: bytemuck::Pod,
    A: bytemuck::Pod,
{
    name: &'static str,
    sockets: Hash<SocketKey<A>, SocketPeer<A>>,
    // Those that are written, not their pins: maps that grow are replaced.
    frontends: Shared<Hash<FrontendKey<A>, Frontend>>,
    backends: Shared<Hash<u32, Backend<A>>>,
    prefixes: Trie<A>,
}

impl<A: Address + bytemuck::Pod + Send> Peers<A>
where
    SocketKey<A>: bytemuck::Pod,
    SocketPeer<A>: bytemuck::Pod,
    FrontendKey<A>: bytemuck::Pod,
    Backend<A>: bytemuck::Pod,
    SourceRange<A>: bytemuck::Pod,
    Prefix<A>: bytemuck::Pod,
{
    pub(super) fn open(
        pins: &Pins,
        (sockets, prefixes): (&'static str, &'static str),
        tables: &FamilyMaps<A>,
    ) -> Result<Self, DatapathError> {
        Ok(Self {
            name: sockets,
            sockets: open_hash(pins, sockets)?,
            frontends: Arc::clone(&tables.frontends),
            backends: Arc::clone(&tables.backends),
            prefixes: prefixes::open(pins, prefixes)?,
        })
    }

    /// True when a socket was led to `remote` in the place of a frontend, and would not be today.
    pub(super) fn is_stale(&self, cookie: u64, remote: (A, u16)) -> Result<bool, DatapathError> {
        let key = SocketKey::new(cookie, remote, proto::UDP, Way::Back);
        let peer = match self.sockets.get(&Raw(key), 0) {
            Ok(Raw(peer)) => peer,
            Err(error) if is_missing(&error) => return Ok(false),
            Err(error) => return Err(failed("read", self.name)(error)),
        };
        let backend = {
            let map = lock(&self.backends);
            let found = map.now().replaced(&peer.backend);
            found.map_err(failed("read", map.name))?
        };
        if !backend.is_some_and(|now| is_same_backend(&peer, &now)) {
            return Ok(true);
        }
        let Some(address) = self.frontend_address(peer.address)? else {
            return Ok(false);
        };
        let map = lock(&self.frontends);
        let key = FrontendKey::new(address, peer.port, proto::UDP);
        let found = map.now().replaced(&key);
        let frontend = found.map_err(failed("read", map.name))?;
        Ok(!frontend.is_some_and(|now| is_same_frontend(&peer, &now)))
    }

    /// Under which address the frontend is that was dialled at this one. None: nothing stands for
    /// loopback, which may be so while addresses of the node change, and says nothing of the frontend.
    fn frontend_address(&self, dialled: A) -> Result<Option<A>, DatapathError> {
        if !dialled.is_loopback_or_unspecified() {
            return Ok(Some(dialled));
        }
        let key = prefixes::whole(PrefixTable::LOOPBACK, dialled);
        match self.prefixes.get(&key, 0) {
            Ok(Raw(address)) => Ok(Some(address)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("read", prefixes_of(self.name))(error)),
        }
    }

    /// Removes the entry that leads back.
    pub(super) fn forget(&mut self, cookie: u64, remote: (A, u16)) -> Result<(), DatapathError> {
        let key = SocketKey::new(cookie, remote, proto::UDP, Way::Back);
        match self.sockets.remove(&Raw(key)) {
            Err(error) if !is_missing(&error) => Err(failed("write", self.name)(error)),
            _ => Ok(()),
        }
    }
}

fn prefixes_of(sockets: &'static str) -> &'static str {
    if sockets == names::SOCKETS_V4 {
        names::PREFIXES_V4
    } else {
        names::PREFIXES_V6
    }
}

fn is_same_backend<A>(peer: &SocketPeer<A>, now: &Backend<A>) -> bool {
    now.epoch == peer.epoch && now.service == peer.service
}

fn is_same_frontend<A>(peer: &SocketPeer<A>, now: &Frontend) -> bool {
    now.generation == peer.generation && now.service == peer.service
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::BackendState;

    #[test]
    fn service_and_stamp_must_be_the_same_and_nothing_else() {
        let mut peer = SocketPeer::new(([10, 96, 0, 10], 53));
        (peer.service, peer.generation, peer.epoch) = (1, 7, 3);
        let backend =
            |service, epoch, state| Backend::new(service, epoch, [10, 1, 0, 5], 53, state);
        let same = |now: &Backend<[u8; 4]>| is_same_backend(&peer, now);
        assert!(same(&backend(1, 3, BackendState::Active)));
        assert!(same(&backend(1, 3, BackendState::Terminating)));
        assert!(!same(&backend(2, 3, BackendState::Active)));
        assert!(!same(&backend(1, 4, BackendState::Active)));
        let frontend = |service, generation, cluster_count| Frontend {
            service,
            generation,
            cluster_count,
            ..Frontend::default()
        };
        assert!(is_same_frontend(&peer, &frontend(1, 7, 0)));
        assert!(is_same_frontend(&peer, &frontend(1, 7, 5)));
        assert!(!is_same_frontend(&peer, &frontend(2, 7, 5)));
        assert!(!is_same_frontend(&peer, &frontend(1, 8, 5)));
    }
}
