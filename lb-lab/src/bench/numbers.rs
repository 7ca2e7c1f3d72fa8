// SPDX-License-Identifier: MIT OR Apache-2.0
//! Medians, percentiles and their like.
//!
//! **Invariant:** a percentile is a value that was measured, never one between two.
//! Read next: `report`, which shows them.

use serde::Serialize;

/// The middle and the ends of what several runs gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self {
            median: percentile(&values, 50),
            min: percentile(&values, 0),
            max: percentile(&values, 100),
        }
    }
}

/// The median of what several runs gave.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(values).median
}

/// The value below which so many percent of the sorted values are; 0 if there are none.
pub(super) fn percentile<T: Copy + Default>(sorted: &[T], percent: usize) -> T {
    let last = sorted.len().saturating_sub(1);
    let at = (last * percent).div_ceil(100);
    sorted.get(at).copied().unwrap_or_default()
}

/// A number as it is, up to four thousand million.
pub(super) fn float(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// Rounds to as many digits as the measurement is good for.
pub(super) fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&values, 0), 1);
        assert_eq!(percentile(&values, 50), 51);
        assert_eq!(percentile(&values, 99), 100);
        assert_eq!(percentile(&values, 100), 100);
        assert_eq!(percentile::<u64>(&[], 50), 0);
        assert_eq!(percentile(&[7], 99), 7);
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "the values are taken over unchanged")]
    fn a_spread_sorts_what_it_is_given() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.0, 3.0));
        assert_eq!(rounded(0.123_45, 2), 0.12);
    }
}
