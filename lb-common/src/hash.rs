// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hash by which flows find their place in a lookup table, and backends theirs.
//!
//! Words are mixed in one after the other, then the state is finished once.
//! **Invariant:** it has no seed and the same value on every node, whatever the node's byte order
//! and version: nodes agree on where a flow goes only as long as nothing here changes.

use crate::Address;

/// An odd number without pattern: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Where hashing begins.
pub const START: u64 = SPREAD;

/// Mixes one word in.
#[inline(always)]
#[must_use]
pub const fn mix(state: u64, word: u32) -> u64 {
    let state = (state ^ word as u64).wrapping_mul(SPREAD);
    state ^ (state >> 32)
}

/// Mixes an address in, by its bytes in reading order.
#[inline(always)]
#[must_use]
pub fn mix_address<A: Address>(state: u64, address: A) -> u64 {
    let [a, b, c, d] = address.words().map(u32::from_be);
    let state = mix(state, a);
    if A::LEN == 4 {
        return state;
    }
    mix(mix(mix(state, b), c), d)
}

/// The hash of everything that was mixed in: each bit of it depends on each bit of that.
///
/// The constants are those of the finaliser of `SplitMix64`.
#[inline(always)]
#[must_use]
pub const fn finish(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// The slot of `hash` in a lookup table of `size` slots.
///
/// Each slot stands for a range of hashes, so that in a table with twice the slots the same hashes
/// lie in two that follow each other.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "less than size")]
pub const fn table_slot(hash: u64, size: u16) -> u16 {
    (((hash >> 32) * size as u64) >> 32) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that differ little, as addresses and ports do.
    fn words(sample: u32) -> [u32; 3] {
        [
            0x0af4_0000 | sample,
            (32_768 + sample) << 16 | 0x50,
            sample % 7,
        ]
    }

    fn hash(words: [u32; 3]) -> u64 {
        finish(words.into_iter().fold(START, mix))
    }

    #[test]
    fn each_bit_of_each_word_changes_half_of_the_hash() {
        const SAMPLES: u32 = if cfg!(miri) { 32 } else { 1_000 };
        for bit in 0..96 {
            let mut changed = 0;
            for sample in 0..SAMPLES {
                let mut other = words(sample);
                other[bit / 32] ^= 1 << (bit % 32);
                changed += (hash(words(sample)) ^ hash(other)).count_ones();
            }
            let of_all = f64::from(changed) / f64::from(SAMPLES * 64);
            assert!((0.45..0.55).contains(&of_all), "bit {bit}: {of_all}");
        }
    }

    #[test]
    fn hashes_of_neighbours_fall_evenly_into_slots() {
        const SIZE: u16 = 64;
        const SAMPLES: u32 = 64 * 1_000;
        if cfg!(miri) {
            return;
        }
        let mut hits = [0_u32; SIZE as usize];
        for sample in 0..SAMPLES {
            hits[usize::from(table_slot(hash(words(sample)), SIZE))] += 1;
        }
        // Five standard deviations of a fair draw.
        assert!(
            hits.iter().all(|hits| (840..1160).contains(hits)),
            "{hits:?}"
        );
    }

    #[test]
    fn every_slot_is_reached_and_none_beyond() {
        for size in [1, 2, 509, 512, 32_768, 65_535] {
            assert_eq!(table_slot(0, size), 0);
            assert_eq!(table_slot(u64::MAX, size), size - 1);
        }
    }

    #[test]
    fn a_larger_table_divides_the_slots_of_a_smaller_one() {
        for sample in 0..1_000 {
            let hash = hash(words(sample));
            assert_eq!(table_slot(hash, 2_048) / 4, table_slot(hash, 512));
        }
    }

    #[test]
    fn it_never_changes() {
        // Worked out by another program.
        let of = |address| finish(mix_address(START, address));
        assert_eq!(of([10, 244, 0, 1]), 0xfb3b_e743_781e_36d2);
        assert_eq!(
            finish(mix_address(START, [0xfd_u8; 16])),
            0xf722_7f0a_b7f4_69ae
        );
        assert_eq!(finish(mix(START, 1)), 0xf708_4f92_dd65_1b1d);
    }
}
