// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Flows in tables of an older layout, while an agent moves them: what is not in the table of this
//! layout is looked for there, and moves over when it is found.
//!
//! The gates are what is attached meanwhile: they lead to the programs of the older layout until all
//! attach points have a gate, and to these from then on, for all of them at once.
//! **Invariant:** an entry that moves is in the new table before it leaves the old one, and one that
//! is removed leaves both, so none comes back.

use core::ptr;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use lb_common::abi::older::OldConn;
use lb_common::abi::{Conn, ConnKey};
use lb_common::{V4, V6};
use lb_ebpf::tables::Table;

use super::Host;

/// Not 0: tables of an older layout are there. A constant of the program, so that the kernel leaves
/// all of this out of one that is loaded without.
#[unsafe(no_mangle)]
static BRIDGING: u32 = 0;

/// The kinds of gates: as many programs as tc has of ours.
const KINDS: u32 = 4;

/// Programs of the older layout, by kind, and behind them those of this one.
#[btf_map]
static GATE_PROGRAMS: ProgramArray<{ 2 * KINDS as usize }> = ProgramArray::new();
/// 0 while the gates lead to the programs of the older layout.
#[btf_map]
static GATE_PHASE: Array<u32, 1> = Array::new();

// The loader puts the pinned maps in the place of these; one entry is enough without.
#[btf_map]
static OLD_CONNS_V4: HashMap<ConnKey<[u8; 4]>, OldConn<[u8; 4]>, 1> = HashMap::new();
#[btf_map]
static OLD_CONNS_V6: HashMap<ConnKey<[u8; 16]>, OldConn<[u8; 16]>, 1> = HashMap::new();
#[btf_map]
static OLD_HALF_V4: LruHashMap<ConnKey<[u8; 4]>, OldConn<[u8; 4]>, 1> = LruHashMap::new();
#[btf_map]
static OLD_HALF_V6: LruHashMap<ConnKey<[u8; 16]>, OldConn<[u8; 16]>, 1> = LruHashMap::new();
/// The entry that moves, not on the stack.
#[btf_map]
static MOVING_V4: PerCpuArray<Conn<[u8; 4]>, 1> = PerCpuArray::new();
#[btf_map]
static MOVING_V6: PerCpuArray<Conn<[u8; 16]>, 1> = PerCpuArray::new();

type Conns<A> = HashMap<ConnKey<A>, OldConn<A>, 1>;
type HalfOpen<A> = LruHashMap<ConnKey<A>, OldConn<A>, 1>;
type Moving<A> = PerCpuArray<Conn<A>, 1>;

/// A family with its tables of the older layout.
pub(crate) trait Older: lb_common::Family {
    fn old_conns() -> &'static Conns<Self::Addr>;
    fn old_half_open() -> &'static HalfOpen<Self::Addr>;
    fn moving() -> &'static Moving<Self::Addr>;
}

impl Older for V4 {
    #[inline(always)]
    fn old_conns() -> &'static Conns<[u8; 4]> {
        &OLD_CONNS_V4
    }
    #[inline(always)]
    fn old_half_open() -> &'static HalfOpen<[u8; 4]> {
        &OLD_HALF_V4
    }
    #[inline(always)]
    fn moving() -> &'static Moving<[u8; 4]> {
        &MOVING_V4
    }
}

impl Older for V6 {
    #[inline(always)]
    fn old_conns() -> &'static Conns<[u8; 16]> {
        &OLD_CONNS_V6
    }
    #[inline(always)]
    fn old_half_open() -> &'static HalfOpen<[u8; 16]> {
        &OLD_HALF_V6
    }
    #[inline(always)]
    fn moving() -> &'static Moving<[u8; 16]> {
        &MOVING_V6
    }
}

#[inline(always)]
fn is_bridging() -> bool {
    // SAFETY: a constant of the program, read volatile because the loader replaces it.
    unsafe { ptr::read_volatile(&raw const BRIDGING) != 0 }
}

/// Moves the entry of a key over if it is in the older table; true when it may be in the new one now.
#[inline(always)]
pub(super) fn carry_over<F: Host>(table: Table, key: &ConnKey<F::Addr>) -> bool {
    is_bridging() && pull::<F>(table as u8, key)
}

/// Removes the entry of a key from the older table, if it is there.
#[inline(always)]
pub(super) fn remove<F: Host>(table: Table, key: &ConnKey<F::Addr>) {
    if is_bridging() {
        drop_old::<F>(table as u8, key);
    }
}

/// VERIFIER: a function of its own, and with a number for the table, so that its callers differ in
/// nothing that the verifier must follow; asked for once, because it forgets what a number is not.
#[inline(never)]
fn pull<F: Host>(table: u8, key: &ConnKey<F::Addr>) -> bool {
    let flags = u64::from(BPF_NOEXIST);
    if table == Table::HalfOpen as u8 {
        let Some(moving) = renewed::<F>(F::old_half_open().get_ptr(key)) else {
            return false;
        };
        // Who moved it at the same time removes it, too.
        if F::half_open().insert(key, moving, flags).is_ok() {
            F::old_half_open().remove(key).ok();
        }
        return true;
    }
    let Some(moving) = renewed::<F>(F::old_conns().get_ptr(key)) else {
        return false;
    };
    if F::conns().insert(key, moving, flags).is_ok() {
        F::old_conns().remove(key).ok();
    }
    true
}

/// An older entry in this layout.
#[inline(always)]
fn renewed<F: Host>(older: Option<*const OldConn<F::Addr>>) -> Option<&'static Conn<F::Addr>> {
    let older = older?;
    let moving = F::moving().get_ptr_mut(0)?;
    // SAFETY: nobody writes entries of the older table any more, they are only removed; and the other
    // is this CPU's own, used by one packet at a time as `work` is.
    unsafe {
        (*moving).take_over_older(&*older);
        Some(&*moving)
    }
}

#[inline(never)]
fn drop_old<F: Host>(table: u8, key: &ConnKey<F::Addr>) {
    // One that is not there is as good as removed.
    if table == Table::HalfOpen as u8 {
        F::old_half_open().remove(key).ok();
    } else {
        F::old_conns().remove(key).ok();
    }
}

/// Leads to the program of this kind; the number of one that no program of tc has where there is
/// none.
#[inline(always)]
pub(crate) fn gate(ctx: &TcContext, kind: u32) -> i32 {
    let phase = GATE_PHASE.get_ptr(0).map_or(0, |phase| {
        // SAFETY: an aligned word, read volatile because the agent writes it while programs run.
        unsafe { ptr::read_volatile(phase) }
    });
    let program = if phase == 0 { kind } else { kind + KINDS };
    // SAFETY: it does not come back from a program, and there is nothing here to be dropped.
    unsafe { GATE_PROGRAMS.tail_call(ctx, program) };
    aya_ebpf::bindings::TC_ACT_UNSPEC
}
