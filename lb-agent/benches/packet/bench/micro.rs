// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single operations on maps, with keys and values of the size that a flow of IPv4 has.
//!
//! **Invariant:** the cost of making the key is measured in the same round and taken off.

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::{Array, HashMap};

use super::clock::{Clock, Took};
use super::kernel::{DROP, PASS, classifier, load_program, load_tools};
use super::layout::Keys;
use super::report::{Micro, rounded};

/// Keys of one test run.
const BATCH: u32 = 4_096;
/// The order in which maps are filled, and the one in which keys are looked up: entries lie in memory
/// as they were inserted, and in that order the processor would fetch them ahead. 2^32 by the golden
/// ratio, and a prime.
const FILLING: u32 = 0x9e37_79b1;
const LATER: u32 = 0x85eb_ca6b;
const PROGRAMS: [&str; 10] = [
    "empty",
    "micro_key",
    "micro_lookup",
    "micro_read",
    "micro_lru_lookup",
    "micro_insert",
    "micro_replace",
    "micro_remove",
    "micro_lru_insert",
    "micro_lru_own_insert",
];

/// One operation on maps of one size.
struct Case {
    name: &'static str,
    program: &'static str,
    /// Last word of the keys; 0 are those that are in the maps.
    salt: u32,
    /// Whether all keys are new to the map.
    new: bool,
    /// Whether it is one key over and over.
    one: bool,
    /// Programs that run on the same keys before and after, and are not measured.
    around: [&'static str; 2],
    verdict: u32,
}

const fn case(name: &'static str, program: &'static str, salt: u32, verdict: u32) -> Case {
    Case {
        name,
        program,
        salt,
        new: false,
        one: false,
        around: ["", ""],
        verdict,
    }
}

const fn one(mut case: Case, name: &'static str) -> Case {
    case.one = true;
    case.name = name;
    case
}

const fn among(name: &'static str, program: &'static str, around: [&'static str; 2]) -> Case {
    Case {
        name,
        program,
        salt: 0,
        new: false,
        one: false,
        around,
        verdict: PASS,
    }
}

const fn new(name: &'static str, program: &'static str) -> Case {
    Case {
        name,
        program,
        salt: 2,
        new: true,
        one: false,
        around: ["", ""],
        verdict: PASS,
    }
}

const HIT: Case = case("hash, lookup that hits", "micro_lookup", 0, PASS);
const MISS: Case = case("hash, lookup that misses", "micro_lookup", 1, DROP);
const CASES: [Case; 12] = [
    one(HIT, "hash, lookup that hits, one key"),
    one(MISS, "hash, lookup that misses, one key"),
    HIT,
    MISS,
    case("hash, lookup that hits, value read", "micro_read", 0, PASS),
    case("LRU, lookup that hits", "micro_lru_lookup", 0, PASS),
    case("LRU, lookup that misses", "micro_lru_lookup", 1, DROP),
    case("hash, replace", "micro_replace", 0, PASS),
    new("LRU, insert and evict", "micro_lru_insert"),
    new(
        "LRU without common list, insert and evict",
        "micro_lru_own_insert",
    ),
    among("hash, insert", "micro_insert", ["micro_remove", ""]),
    among("hash, remove", "micro_remove", ["", "micro_insert"]),
];

/// Measures every operation on full maps of `entries` entries, a power of two.
pub(crate) fn measure(entries: u32, runs: usize) -> Result<Vec<Micro>> {
    let mut ebpf = load_tools(1, Some(entries))?;
    for name in PROGRAMS {
        load_program(&mut ebpf, name)?;
    }
    fill(&mut ebpf, entries)?;
    CASES
        .iter()
        .map(|case| measure_case(&mut ebpf, case, entries, runs))
        .collect()
}

fn set_keys(ebpf: &mut Ebpf, keys: Keys) -> Result<()> {
    let map = ebpf.map_mut("KEYS").context("the bench's own map")?;
    Array::<_, Keys>::try_from(map)?.set(0, keys, 0)?;
    Ok(())
}

/// Fills every map, by the programs themselves.
fn fill(ebpf: &mut Ebpf, entries: u32) -> Result<()> {
    let frame = [0; 64];
    for program in ["micro_insert", "micro_lru_insert", "micro_lru_own_insert"] {
        let keys = Keys {
            mask: entries - 1,
            scramble: FILLING,
            ..Keys::default()
        };
        set_keys(ebpf, keys)?;
        let clock = Clock::new(classifier(ebpf, "empty")?, &frame, 0)?;
        let (_, verdict) = clock.run(classifier(ebpf, program)?, entries)?;
        if verdict != PASS {
            bail!("{program} did not fill its map");
        }
    }
    let map = ebpf.map("HASH").context("the bench's own map")?;
    let filled = HashMap::<_, [u32; 4], [u64; 7]>::try_from(map)?
        .keys()
        .count();
    if u32::try_from(filled)? != entries {
        bail!("{filled} of {entries} keys are in the map");
    }
    Ok(())
}

fn measure_case(ebpf: &mut Ebpf, case: &Case, entries: u32, runs: usize) -> Result<Micro> {
    let frame = [0; 64];
    let clock = Clock::new(classifier(ebpf, "empty")?, &frame, 0)?;
    let mask = if case.new { u32::MAX } else { entries - 1 };
    let mut batch = Keys {
        next: 0,
        mask: if case.one { 0 } else { mask },
        salt: case.salt,
        scramble: LATER,
    };
    let (mut keys, mut all) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        set_keys(ebpf, batch)?;
        keys.push(clock.run(classifier(ebpf, "micro_key")?, BATCH)?.0);
        let [before, after] = case.around;
        for program in [before, case.program, after] {
            if program.is_empty() {
                continue;
            }
            set_keys(ebpf, batch)?;
            let (ns, verdict) = clock.run(classifier(ebpf, program)?, BATCH)?;
            if verdict != case.verdict {
                bail!("{}: {program} says {verdict}", case.name);
            }
            if program == case.program {
                all.push(ns);
            }
        }
        batch.next = batch.next.wrapping_add(BATCH);
    }
    let (keys, all) = (Took::of(keys), Took::of(all));
    Ok(Micro {
        name: case.name.to_owned(),
        entries,
        min_ns: rounded(all.min - keys.min),
        median_ns: rounded(all.median - keys.median),
    })
}
