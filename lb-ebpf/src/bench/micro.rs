// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Single operations on maps, with keys and values as large as those of a flow of IPv4.
//!
//! Each program makes one key and does one thing with it; `micro_key` only makes the key, so the
//! difference is the operation's cost.
//! **Invariant:** keys come in a scrambled order, and none twice before all had their turn.

use core::hint::black_box;

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_COMMON_LRU, BPF_NOEXIST, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

use crate::layout::{Keys, Tuple};

/// As large as the entry of a flow of IPv4 may get.
type Value = [u64; 7];

/// Replaced at load.
const ENTRIES: usize = 262_144;

#[btf_map]
static KEYS: Array<Keys, 1> = Array::new();
#[btf_map]
static HASH: HashMap<Tuple, Value, ENTRIES, 0> = HashMap::new();
#[btf_map]
static LRU: LruHashMap<Tuple, Value, ENTRIES, 0> = LruHashMap::new();
#[btf_map]
static LRU_OWN: LruHashMap<Tuple, Value, ENTRIES, { BPF_F_NO_COMMON_LRU as usize }> =
    LruHashMap::new();

/// The next key.
#[inline(always)]
fn key() -> Option<Tuple> {
    let keys = KEYS.get_ptr_mut(0)?;
    // SAFETY: the only element; one processor runs the bench.
    let keys = unsafe { &mut *keys };
    let number = keys.next.wrapping_mul(keys.scramble) & keys.mask;
    keys.next = keys.next.wrapping_add(1);
    Some([number, 0x0a60_0001, number ^ 0x5bd1_e995, keys.salt])
}

#[inline(always)]
fn done(did: bool) -> i32 {
    if did { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

/// Makes a key.
#[classifier]
fn micro_key(_ctx: TcContext) -> i32 {
    done(black_box(key()).is_some())
}

/// Looks a key up; `TC_ACT_SHOT` where there is none.
#[classifier]
fn micro_lookup(_ctx: TcContext) -> i32 {
    let Some(key) = key() else {
        return TC_ACT_SHOT;
    };
    done(HASH.get_ptr(&key).is_some())
}

/// Looks a key up and reads the far end of its value.
#[classifier]
fn micro_read(_ctx: TcContext) -> i32 {
    let Some(key) = key() else {
        return TC_ACT_SHOT;
    };
    // SAFETY: nothing else uses the map.
    match unsafe { HASH.get(&key) } {
        Some(value) => done(value[6] == 0),
        None => TC_ACT_SHOT,
    }
}

/// Looks a key up in the LRU.
#[classifier]
fn micro_lru_lookup(_ctx: TcContext) -> i32 {
    let Some(key) = key() else {
        return TC_ACT_SHOT;
    };
    done(LRU.get_ptr(&key).is_some())
}

/// Inserts a new key; `TC_ACT_SHOT` when it is there or there is no room.
#[classifier]
fn micro_insert(_ctx: TcContext) -> i32 {
    let Some(key) = key() else {
        return TC_ACT_SHOT;
    };
    done(HASH.insert(&key, &[0; 7], u64::from(BPF_NOEXIST)).is_ok())
}

/// Replaces the value of a key, or inserts it.
#[classifier]
fn micro_replace(_ctx: TcContext) -> i32 {
    let Some(key) = key() else {
        return TC_ACT_SHOT;
    };
    done(HASH.insert(&key, &[0; 7], u64::from(BPF_ANY)).is_ok())
}

/// Removes a key.
#[classifier]
fn micro_remove(_ctx: TcContext) -> i32 {
    let Some(key) = key() else {
        return TC_ACT_SHOT;
    };
    done(HASH.remove(&key).is_ok())
}

/// Inserts into the LRU whose list all processors share.
#[classifier]
fn micro_lru_insert(_ctx: TcContext) -> i32 {
    let Some(key) = key() else {
        return TC_ACT_SHOT;
    };
    done(LRU.insert(&key, &[0; 7], u64::from(BPF_ANY)).is_ok())
}

/// Inserts into the LRU in which every processor has a list of its own.
#[classifier]
fn micro_lru_own_insert(_ctx: TcContext) -> i32 {
    let Some(key) = key() else {
        return TC_ACT_SHOT;
    };
    done(LRU_OWN.insert(&key, &[0; 7], u64::from(BPF_ANY)).is_ok())
}
