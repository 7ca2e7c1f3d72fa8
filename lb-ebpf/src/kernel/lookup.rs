// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What packets and sockets ask alike, answered from the maps.
//!
//! **Invariant:** values that programs change in place are changed atomically: a program of tc may run
//! while one at a socket is interrupted on the same CPU.

use core::arch::asm;
use core::ptr;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use lb_common::abi::{
    Affinity, AffinityKey, Backend, Cursor, Frontend, FrontendKey, PREFIX_TABLE_BITS, Prefix,
    SOURCE_RANGE_SERVICE_BITS, SlotKey, SourceRange, version_index,
};
use lb_common::{Address as _, Reason};
use lb_ebpf::tables::{Dialled, Lookup};

use super::maps::{CURSORS, REASONS, SERVICE_STATS, SLOTS, VERSIONS};
use super::settings;
use super::socket::Socket;
use super::time::{jiffies, ticks};
use super::{Host, World};

/// Answers from the maps for a type that stands for a packet or a call. The trait is of another crate,
/// so there can be no `impl` for all of them.
macro_rules! answer {
    ($($asks:ty),*) => {$(
        impl<F: Host> Lookup<F> for $asks {
            #[inline(always)]
            fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<&Frontend> {
                // SAFETY: written by the agent only, which replaces elements as a whole.
                unsafe { F::frontends().get(key) }
            }

            #[inline(always)]
            fn slot(&self, key: &SlotKey) -> Option<u32> {
                // SAFETY: an aligned word is read whole.
                unsafe { SLOTS.get(key).copied() }
            }

            #[inline(always)]
            fn backend(&self, id: u32) -> Option<&Backend<F::Addr>> {
                // SAFETY: written by the agent only, which replaces elements as a whole. An element that
                // is removed while it is read may be used anew within nanoseconds; the service is checked
                // on the copy, which catches all but another backend of the same service.
                unsafe { F::backends().get(&id) }
            }

            #[inline(always)]
            fn advance_cursor(&mut self, service: u32) -> Cursor {
                let Some(cursor) = CURSORS.get_ptr_mut(service) else {
                    return 0;
                };
                if settings::has_fetch() {
                    return fetch_add(cursor, 1);
                }
                // SAFETY: an aligned word. Two processors may read the same, which is as far as a
                // kernel goes that cannot add and tell.
                let before = unsafe { ptr::read_volatile(cursor) };
                atomic_add(cursor, 1);
                before
            }

            #[inline(always)]
            fn version(&self, service: u32) -> u32 {
                let Some(version) = VERSIONS.get_ptr(version_index(service)) else {
                    return 0;
                };
                // SAFETY: an aligned word; volatile, because what is read after it must be read after it.
                unsafe { ptr::read_volatile(version) }
            }

            #[inline(always)]
            fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<&Affinity> {
                // SAFETY: words that are replaced as a whole; a mixture of two choices of one client is
                // refused by the epoch, or is one of them.
                unsafe { F::affinities().get(key) }
            }

            #[inline(always)]
            fn keep_affinity(&mut self, key: &AffinityKey<F::Addr>, affinity: &Affinity) {
                // The oldest entry gives way, so there is always room.
                F::affinities()
                    .insert(key, affinity, u64::from(BPF_ANY))
                    .ok();
            }

            #[inline(always)]
            fn admits(&self, service: u32, source: &F::Addr) -> bool {
                is_in_range::<F>(service, source)
            }

            #[inline(always)]
            fn prefix(&self, table: u32, address: &F::Addr) -> Option<&F::Addr> {
                find_prefix::<F>(table, address)
            }

            #[inline(always)]
            fn now(&self) -> u32 {
                jiffies()
            }

            #[inline(always)]
            fn ticks_per_second(&self) -> u32 {
                ticks()
            }

            #[inline(always)]
            fn random(&mut self) -> u32 {
                // SAFETY: the helper has no arguments.
                unsafe { bpf_get_prandom_u32() }
            }

            #[inline(always)]
            fn count(&mut self, reason: Reason) {
                if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
                    atomic_add(counter, 1);
                }
            }

            #[inline(always)]
            fn count_service(&mut self, service: u32, what: Dialled) {
                if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
                    // SAFETY: a valid element, which the programs change through here only.
                    let counter = unsafe {
                        match what {
                            Dialled::Opened => &raw mut (*stats).opened,
                            Dialled::Rejected => &raw mut (*stats).rejected,
                        }
                    };
                    atomic_add(counter, 1);
                }
            }
        }
    )*};
}

answer!(World, Socket);

/// Whether one of the service's source ranges holds the source.
///
/// VERIFIER: a function of its own, as is the next, so that the key is not on the caller's stack.
#[inline(never)]
fn is_in_range<F: Host>(service: u32, source: &F::Addr) -> bool {
    let range = SourceRange {
        service,
        address: F::Addr::from_words(source.words()),
    };
    let key = Key::new(SOURCE_RANGE_SERVICE_BITS + F::BITS, range);
    F::source_ranges().get(&key).is_some()
}

/// The longest prefix of a table that holds the address.
#[inline(never)]
fn find_prefix<F: Host>(table: u32, address: &F::Addr) -> Option<&'static F::Addr> {
    let prefix = Prefix {
        table,
        address: F::Addr::from_words(address.words()),
    };
    let key = Key::new(PREFIX_TABLE_BITS + F::BITS, prefix);
    F::prefixes().get(&key)
}

/// Adds to a word of a map and returns what it was before, as one step for all CPUs.
///
/// The compiler offers no read-modify-write for this target, because the first instruction set
/// had none that returns the old value.
#[inline(always)]
fn fetch_add(word: *mut u64, add: u64) -> u64 {
    let mut value = add;
    // SAFETY: `word` is an aligned element of a map that is only ever used through here.
    // KERNEL: >= 5.12 (BPF_FETCH, commit 5ffa25502b5a); the loader replaces it for those before.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            value = inout(reg) value,
            word = in(reg) word,
            options(nostack),
        );
    }
    value
}

/// Adds to a word of a map as one step for all CPUs.
#[inline(always)]
fn atomic_add(word: *mut u64, add: u64) {
    // SAFETY: `word` is an aligned element of a map.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) += {add}",
            add = in(reg) add,
            word = in(reg) word,
            options(nostack),
        );
    }
}
