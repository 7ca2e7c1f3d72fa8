// SPDX-License-Identifier: MIT OR Apache-2.0
//! How often, and in which order, backends of different weights stand in one list.
//!
//! The list has each backend once, as any other list, and then the turns that are counted here.
//! **Invariant:** a backend's turns are at equal distances, and their order depends on the weights
//! alone.

/// Lists of at most so many slots keep exact weights, whatever they are.
const SLOTS_EXACT: u32 = 512;
/// Slots for each backend in a list that is longer.
const SLOTS_PER_BACKEND: u32 = 20;
/// Slots that a list may have, from the width of a slot number.
const SLOTS_MAX: u32 = 65_535;

/// The positions in `weights`, of which there are at most [`SLOTS_MAX`], in the order of the turns
/// that each has beyond its first; with equal weights there are none. A weight of 0 counts as 1.
pub(super) fn further_turns(weights: &[u8]) -> Vec<usize> {
    let mut order: Vec<(u64, usize)> = Vec::new();
    for (at, count) in counts(weights).into_iter().enumerate() {
        // In the middle of each of as many equal parts, in units of 2^-32.
        let further = u64::from(count - 1);
        let middles = (0..further).map(|n| ((2 * n + 1) << 32) / (2 * further));
        order.extend(middles.map(|middle| (middle, at)));
    }
    order.sort_unstable();
    order.into_iter().map(|(_, at)| at).collect()
}

/// How often each stands in the list, at least once.
fn counts(weights: &[u8]) -> Vec<u32> {
    let weights = weights.iter().map(|weight| u32::from(*weight).max(1));
    // Of no weights at all, whatever.
    let common = weights.clone().fold(0, gcd).max(1);
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

    /// The positions of all slots of the list, of which each backend's first come first.
    fn list(weights: &[u8]) -> Vec<usize> {
        (0..weights.len()).chain(further_turns(weights)).collect()
    }

    fn text(weights: &[u8]) -> String {
        let names = "ABCDEFGH".as_bytes();
        let list = list(weights).into_iter();
        list.map(|at| char::from(names[at])).collect()
    }

    #[test]
    fn equal_weights_need_no_further_turns() {
        for weights in [&[][..], &[7], &[1, 1], &[0, 0], &[100; 9]] {
            assert_eq!(further_turns(weights), Vec::<usize>::new());
        }
    }

    #[test]
    fn turns_of_heavy_backends_alternate() {
        assert_eq!(text(&[2, 1]), "ABA");
        assert_eq!(text(&[1, 2, 3]), "ABCCBC");
        assert_eq!(text(&[5, 5, 1]), "ABCABABABAB");
        assert_eq!(text(&[1, 7, 3]), "ABCBBCBBBCB");
    }

    #[test]
    fn a_common_divisor_costs_no_slots() {
        assert_eq!(text(&[100, 50]), "ABA");
        assert_eq!(text(&[30, 20, 10]), text(&[3, 2, 1]));
    }

    #[test]
    fn a_list_at_its_limit_has_every_backend_once() {
        let mut weights = vec![100; 65_535];
        weights[0] = 99;
        assert_eq!(further_turns(&weights), Vec::<usize>::new());
    }

    proptest! {
        #[test]
        fn turns_are_in_proportion_and_evenly_apart(
            weights in prop::collection::vec(1_u8..=100, 2..40),
        ) {
            let sum: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            let further = further_turns(&weights);
            let length = (weights.len() + further.len()) as f64;
            prop_assert!(length <= (weights.len() * 20).max(512) as f64);
            for (at, weight) in weights.iter().enumerate() {
                let places = further.iter().enumerate().filter(|(_, turn)| **turn == at);
                let places: Vec<usize> = places.map(|(place, _)| place).collect();
                let fair = f64::from(*weight) / f64::from(sum);
                let has = (1 + places.len()) as f64 / length;
                // One slot, and what the others were rounded by.
                prop_assert!((has - fair).abs() <= 0.05 * fair + 1.0 / length);
                let distance = further.len() as f64 / places.len() as f64;
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
