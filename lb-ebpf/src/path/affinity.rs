// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Keeping a client at its backend.
//!
//! By the client's address and the service port, whichever of its frontends was dialled, and for as
//! long as flows begin within the time-out of one another; kube-proxy's rules are the same.
//! **Invariant:** a backend counts only while it is the very one that was chosen, by its epoch, and
//! is in the list that this packet chooses from.

use lb_common::abi::{Affinity, AffinityKey, BackendFlags};
use lb_common::{Address as _, Family};

use super::Work;
use crate::tables::Tables;

/// Puts the backend that the client keeps into the work record; false when there is none.
#[inline(always)]
pub(super) fn kept_backend<F: Family, T: Tables<F>>(tables: &T, work: &mut Work<F::Addr>) -> bool {
    if work.frontend.affinity_secs == 0 {
        return false;
    }
    work.affinity_key = AffinityKey {
        service: work.frontend.service,
        client: F::Addr::from_words(work.packet.source.words()),
    };
    let Some(affinity) = tables.affinity(&work.affinity_key) else {
        return false;
    };
    let age = tables.now().wrapping_sub(affinity.last_used);
    let timeout = work
        .frontend
        .affinity_secs
        .wrapping_mul(tables.ticks_per_second());
    if age >= timeout {
        return false;
    }
    let (id, epoch) = (affinity.backend, affinity.epoch);
    let Some(backend) = tables.backend(id) else {
        return false;
    };
    // The bit of a list is one more than its number.
    let listed = backend.flags & (BackendFlags::IN_CLUSTER_LIST << (work.list & 1)) != 0;
    if backend.epoch != epoch || backend.service != work.frontend.service || !listed {
        return false;
    }
    work.backend.take_over(backend);
    work.backend_id = id;
    true
}

/// Notes that the client keeps the backend of the flow that has just begun.
#[inline(always)]
pub(super) fn keep<F: Family, T: Tables<F>>(tables: &mut T, work: &Work<F::Addr>) {
    if work.frontend.affinity_secs == 0 {
        return;
    }
    let affinity = Affinity {
        backend: work.conn.backend,
        epoch: work.conn.epoch,
        last_used: tables.now(),
    };
    tables.keep_affinity(&work.affinity_key, &affinity);
}
