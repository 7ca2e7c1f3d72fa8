// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the backends of one port to its lists and the lookup tables beside them.
//!
//! Weights make a list name a backend more than once, in `turns.rs`. Where a table chooses, it has
//! the weights, in `maglev.rs`, and the list has each backend once: it is what is tried when the
//! table's choice cannot be used.
//! **Invariant:** a list begins as the stable one of [`Ids::arrange`], and with equal weights that is
//! all of it.

use lb_common::abi::{Algorithm, List, SlotKey, limits};

use super::ServicePlan;
use super::encode::LIST_MAX;
use super::endpoints::EndpointAddress;
use super::ids::Ids;
use super::maglev::{populate, table_size};
use super::turns::further_turns;
use super::warning::Warning;
use crate::model::service::ServicePort;

/// A backend in a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) id: u32,
    pub(super) address: EndpointAddress,
    /// Its share of new flows, in relation to the others'.
    pub(super) weight: u8,
}

/// What a frontend has to say of its lists.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ListSizes {
    /// Slots in use, by [`List`].
    pub(super) counts: [u16; List::ALL.len()],
    /// Slots of each lookup table; 0: none.
    pub(super) table: u16,
}

impl ServicePlan {
    /// Adds the slots of the lists and tables of `port`, whose service id is `service`.
    pub(super) fn put_lists(
        &mut self,
        (port, service): (&ServicePort, u32),
        lists: &mut [Vec<Member>; List::ALL.len()],
        algorithm: Algorithm,
        ids: &mut Ids,
    ) -> ListSizes {
        let mut sizes = ListSizes::default();
        for list in List::ALL {
            let members = &mut lists[list as usize];
            self.shorten(port, members);
            members.sort_unstable_by_key(|member| member.address);
            for backend in arranged(service, list, members, algorithm, ids) {
                let count = &mut sizes.counts[list as usize];
                let slot = SlotKey::new(service, list, *count);
                self.tables.slots.insert(slot, backend);
                *count = count.saturating_add(1);
            }
        }
        if algorithm.has_table() {
            // One size for both, because a frontend has one.
            let most = lists.iter().map(Vec::len).max().unwrap_or_default();
            sizes.table = table_size(most);
            for list in List::ALL {
                self.put_table((service, list), &lists[list as usize], sizes.table);
            }
        }
        sizes
    }

    fn put_table(&mut self, (service, list): (u32, List), members: &[Member], size: u16) {
        if members.len() < 2 {
            return;
        }
        let named: Vec<_> = members.iter().map(|m| (m.address, m.weight)).collect();
        for (slot, at) in (0..size).zip(populate(&named, size)) {
            let slot = SlotKey::table(service, list, slot);
            self.tables.slots.insert(slot, members[at].id);
        }
    }

    fn shorten(&mut self, port: &ServicePort, list: &mut Vec<Member>) {
        if list.len() > LIST_MAX {
            self.warnings.insert(Warning::TooManyEndpoints {
                port: port.to_string(),
                count: list.len(),
                limit: limits::BACKENDS_PER_SERVICE,
            });
            list.truncate(LIST_MAX);
        }
    }
}

/// The backend ids of a list by slot.
///
/// ORDER: each backend has a slot among the first, where slots change as in a list without weights.
/// So none that stays is out of the list between two writes, though the rest is put in a new order.
fn arranged(
    service: u32,
    list: List,
    members: &[Member],
    algorithm: Algorithm,
    ids: &mut Ids,
) -> Vec<u32> {
    let wanted: Vec<u32> = members.iter().map(|member| member.id).collect();
    let mut slots = ids.arrange(service, list, &wanted);
    if !algorithm.has_table() {
        let weights: Vec<u8> = members.iter().map(|member| member.weight).collect();
        let further = further_turns(&weights).into_iter();
        slots.extend(further.map(|at| wanted[at]));
    }
    slots
}
