// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lookup tables of consistent hashing: which backend each slot names.
//!
//! The backends take turns; each claims the next free slot of an order of its own, which follows
//! from its address and port, until no slot is free (Maglev, NSDI 2016, section 3.4). A table for many
//! backends is made from the smaller one: each slot becomes [`FACTOR`], whoever has more than its
//! share gives some up, and turns are taken for these. So a Service that grows out of a table keeps
//! most of it, instead of having each flow thrown anew.
//! **Invariant:** depends on addresses, ports and weights only, so all nodes come to the same table,
//! and on nothing that happened before.

use std::net::IpAddr;

use lb_common::hash::{START, finish, mix, mix_address, table_slot};

use super::endpoints::EndpointAddress;

/// Slots of the smallest table. It is a power of two, and so are the others.
const SMALLEST: u16 = 512;
/// Slots of the largest table: the largest such number that a slot number can count.
const LARGEST: u16 = 32_768;
/// From one size of table to the next.
const FACTOR: u16 = 4;
/// Slots for each backend, as far as the largest table allows: shares are even within 1 in 100.
const SLOTS_PER_BACKEND: usize = 100;

/// The slots of the table for so many backends; 0, which is no table, below two.
pub(super) fn table_size(backends: usize) -> u16 {
    if backends < 2 {
        return 0;
    }
    let wanted = backends.saturating_mul(SLOTS_PER_BACKEND);
    let mut size = SMALLEST;
    while size < LARGEST && usize::from(size) < wanted {
        size *= FACTOR;
    }
    size
}

/// A backend as the table sees it.
#[derive(Debug)]
struct Claimant {
    hash: u64,
    weight: u32,
    /// Slots that it has.
    held: u32,
    /// How far it has come in its order.
    turn: u16,
}

/// For each of `size` slots the position in `members` of its backend; `members` are addresses with
/// weights, at least one, and a weight of 0 counts as 1. Beyond [`LARGEST`] they get no slot.
pub(super) fn populate(members: &[(EndpointAddress, u8)], size: u16) -> Vec<usize> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_unstable_by_key(|at| members[*at].0);
    order.truncate(usize::from(LARGEST));
    let sorted = order.iter().map(|at| members[*at]);
    let mut claimants: Vec<Claimant> = sorted
        .map(|(address, weight)| Claimant {
            hash: identity(address),
            weight: u32::from(weight).max(1),
            held: 0,
            turn: 0,
        })
        .collect();
    let mut slots: Vec<Option<u16>> = vec![None; usize::from(SMALLEST)];
    settle(&mut slots, &mut claimants, SMALLEST);
    let mut reached = SMALLEST;
    while reached < size {
        reached *= FACTOR;
        let divided = slots.iter().flat_map(|slot| [*slot; FACTOR as usize]);
        slots = divided.collect();
        settle(&mut slots, &mut claimants, reached);
    }
    let named = slots.into_iter().flatten();
    named.map(|at| order[usize::from(at)]).collect()
}

/// What decides about the order in which a backend claims slots.
fn identity((address, port): EndpointAddress) -> u64 {
    let state = match address {
        IpAddr::V4(a) => mix_address(START, a.octets()),
        IpAddr::V6(a) => mix_address(START, a.octets()),
    };
    finish(mix(state, port.into()))
}

/// Makes each backend have its share of the `size` slots, all of them named.
fn settle(slots: &mut [Option<u16>], claimants: &mut [Claimant], size: u16) {
    for claimant in &mut *claimants {
        (claimant.held, claimant.turn) = (0, 0);
    }
    for at in slots.iter().flatten() {
        claimants[usize::from(*at)].held += 1;
    }
    release(slots, claimants, size);
    let heaviest = claimants.iter().map(|c| c.weight).max().unwrap_or(1);
    let mut free = slots.iter().filter(|slot| slot.is_none()).count();
    let mut round = 0;
    while free > 0 {
        round += 1;
        for (at, claimant) in (0..).zip(&mut *claimants) {
            // The heaviest one takes a slot in each round, the others as their weights say.
            let due = (round * claimant.weight).div_ceil(heaviest);
            while claimant.held < due && free > 0 {
                let slot = claimant.next(size);
                if slots[usize::from(slot)].is_none() {
                    slots[usize::from(slot)] = Some(at);
                    claimant.held += 1;
                    free -= 1;
                }
            }
        }
    }
}

/// Frees what backends have beyond their share, rounded down: rounded up, most would keep one more
/// and a few go short of many. Which slots, each backend's own hash decides, so that they are about
/// the same when other backends have come or gone.
fn release(slots: &mut [Option<u16>], claimants: &mut [Claimant], size: u16) {
    let weights: u32 = claimants.iter().map(|c| c.weight).sum();
    let share = |c: &Claimant| u32::from(size) * c.weight / weights;
    let mut surplus: Vec<(u16, u64, u16)> = Vec::new();
    for (slot, at) in (0..).zip(slots.iter()) {
        let Some(at) = *at else {
            continue;
        };
        let claimant = &claimants[usize::from(at)];
        if claimant.held > share(claimant) {
            let rank = finish(mix(claimant.hash, slot.into()));
            surplus.push((at, rank, slot));
        }
    }
    surplus.sort_unstable();
    for (at, _, slot) in surplus {
        let claimant = &mut claimants[usize::from(at)];
        if claimant.held > share(claimant) {
            claimant.held -= 1;
            slots[usize::from(slot)] = None;
        }
    }
}

impl Claimant {
    /// The next slot in its order of all `size` slots: steps of an odd width visit every slot of a
    /// power of two once.
    fn next(&mut self, size: u16) -> u16 {
        let [.., high, low] = self.hash.to_be_bytes();
        let step = u16::from_be_bytes([high, low]) | 1;
        let slot = table_slot(self.hash, size).wrapping_add(self.turn.wrapping_mul(step));
        self.turn = self.turn.wrapping_add(1);
        slot % size
    }
}

#[cfg(test)]
#[path = "maglev_tests.rs"]
mod tests;
