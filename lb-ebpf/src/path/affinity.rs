// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Keeping a client at its backend.
//!
//! By the client's address and the service port, whichever of its frontends was dialled, and for as
//! long as flows begin within the time-out of one another; kube-proxy's rules are the same.
//! **Invariant:** a backend counts only while it is the very one that was chosen, by its epoch, and
//! is in the list that this packet chooses from.

use lb_common::abi::{Affinity, AffinityKey, BackendFlags};
use lb_common::{Address as _, Family};

use super::select::Choice;
use crate::tables::Lookup;

/// Puts the backend that the client keeps into the work record; false when there is none.
#[inline(always)]
pub(super) fn kept_backend<F: Family, T: Lookup<F>>(
    tables: &T,
    choice: &mut Choice<F::Addr>,
    client: &F::Addr,
) -> bool {
    if choice.frontend.affinity_secs == 0 {
        return false;
    }
    choice.affinity_key = AffinityKey {
        service: choice.frontend.service,
        client: F::Addr::from_words(client.words()),
    };
    let Some(affinity) = tables.affinity(&choice.affinity_key) else {
        return false;
    };
    let age = tables.now().wrapping_sub(affinity.last_used);
    let timeout = choice
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
    let listed = backend.flags & (BackendFlags::IN_CLUSTER_LIST << (choice.list & 1)) != 0;
    if backend.epoch != epoch || backend.service != choice.frontend.service || !listed {
        return false;
    }
    choice.backend.take_over(backend);
    choice.backend_id = id;
    true
}

/// Notes that the client keeps the backend of the flow that has just begun.
#[inline(always)]
pub(super) fn keep<F: Family, T: Lookup<F>>(
    tables: &mut T,
    choice: &Choice<F::Addr>,
    (backend, epoch): (u32, u32),
) {
    if choice.frontend.affinity_secs == 0 {
        return;
    }
    let affinity = Affinity {
        backend,
        epoch,
        last_used: tables.now(),
    };
    tables.keep_affinity(&choice.affinity_key, &affinity);
}
