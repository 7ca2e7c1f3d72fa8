// SPDX-License-Identifier: MIT OR Apache-2.0
//! How often, and in which order, backends of different weights stand in one list.
//!
//! **Invariant:** each backend is there at least once, its turns are at equal distances, and the order
//! depends on the weights alone.

/// Lists of at most so many slots keep exact weights, whatever they are.
const SLOTS_EXACT: u32 = 512;
/// Slots for each backend in a list that is longer.
const SLOTS_PER_BACKEND: u32 = 20;
/// Slots that a list may have, from the width of a slot number.
const SLOTS_MAX: u32 = 65_535;

/// The positions in `weights`, of which there are at most [`SLOTS_MAX`], in the order of their
/// turns; none when all weights are equal, and each has one. A weight of 0 counts as 1.
pub(super) fn turns(weights: &[u8]) -> Option<Vec<usize>> {
    if weights.windows(2).all(|pair| pair[0] == pair[1]) {
        return None;
    }
    let counts = counts(weights);
    let mut order: Vec<(u64, usize)> = Vec::new();
    for (at, count) in counts.into_iter().enumerate() {
        // In the middle of each of as many equal parts of the list, in units of 2^-32.
        let middles = (0..u64::from(count)).map(|n| ((2 * n + 1) << 32) / (2 * u64::from(count)));
        order.extend(middles.map(|middle| (middle, at)));
    }
    order.sort_unstable();
    Some(order.into_iter().map(|(_, at)| at).collect())
}

/// How often each stands in the list.
fn counts(weights: &[u8]) -> Vec<u32> {
    let weights = weights.iter().map(|weight| u32::from(*weight).max(1));
    let common = weights.clone().fold(0, gcd);
    let sum: u32 = weights.clone().map(|weight| weight / common).sum();
    let backends = u32::try_from(weights.len()).unwrap_or(SLOTS_MAX);
    let most = backends
        .saturating_mul(SLOTS_PER_BACKEND)
        .clamp(SLOTS_EXACT, SLOTS_MAX);
    if sum <= most {
        return weights.map(|weight| weight / common).collect();
    }
    // Each has one, and what is left is divided.
    let sum = u64::from(sum);
    let left = u64::from(most - backends);
    let scaled = |weight: u32| {
        let share = u64::from(weight / common) * left / sum;
        u32::try_from(share).unwrap_or(SLOTS_MAX).max(1)
    };
    weights.map(scaled).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "lists are short")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(weights: &[u8]) -> String {
        let names = "ABCDEFGH".as_bytes();
        let turns = turns(weights).unwrap();
        turns.iter().map(|at| char::from(names[*at])).collect()
    }

    #[test]
    fn equal_weights_need_no_order() {
        for weights in [&[][..], &[7], &[1, 1], &[0, 0], &[100; 9]] {
            assert_eq!(turns(weights), None);
        }
    }

    #[test]
    fn heavy_backends_get_no_bursts() {
        assert_eq!(text(&[2, 1]), "ABA");
        assert_eq!(text(&[5, 1, 1]), "AAABCAA");
        assert_eq!(text(&[1, 2, 3]), "CBACBC");
    }

    #[test]
    fn a_common_divisor_costs_no_slots() {
        assert_eq!(text(&[100, 50]), "ABA");
        assert_eq!(text(&[30, 20, 10]), text(&[3, 2, 1]));
    }

    #[test]
    fn a_list_at_its_limit_has_every_backend() {
        let mut weights = vec![100; 65_535];
        weights[0] = 99;
        let turns = turns(&weights).unwrap();
        assert_eq!(turns.len(), 65_535);
        let mut seen = vec![false; weights.len()];
        for at in turns {
            seen[at] = true;
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    proptest! {
        #[test]
        fn turns_are_in_proportion_and_evenly_apart(
            weights in prop::collection::vec(1_u8..=100, 2..40),
        ) {
            let sum: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            let Some(turns) = turns(&weights) else {
                return Ok(());
            };
            let most = (weights.len() * 20).max(512);
            prop_assert!(turns.len() <= most);
            for (at, weight) in weights.iter().enumerate() {
                let places = turns.iter().enumerate().filter(|(_, turn)| **turn == at);
                let places: Vec<usize> = places.map(|(place, _)| place).collect();
                let fair = f64::from(*weight) / f64::from(sum);
                let has = places.len() as f64 / turns.len() as f64;
                // One slot, and what the others were rounded by.
                prop_assert!((has - fair).abs() <= 0.05 * fair + 1.0 / turns.len() as f64);
                let distance = turns.len() as f64 / places.len() as f64;
                for pair in places.windows(2) {
                    let apart = (pair[1] - pair[0]) as f64;
                    prop_assert!(
                        (apart - distance).abs() <= weights.len() as f64,
                        "{apart} and not {distance}"
                    );
                }
            }
        }
    }
}
