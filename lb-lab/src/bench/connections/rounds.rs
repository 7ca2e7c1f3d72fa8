// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rounds: every case has its turn in each, and its ratios are those of that round.
//!
//! **Invariant:** the order is another one in each round, and in every second one reversed, so no case
//! is always the first, or always behind the same one; the first and the last Service are neighbours.
//! Read next: `report`.

use super::Options;
use super::contestant::{Contestant, Way};
use super::load;
use super::report::Measured;
use super::stage::Case;
use crate::bench::numbers::{float, median, percentile, rounded};
use crate::bench::progress::Progress;
use crate::error::LabError;

/// What one turn gave.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    p50: f64,
    per_second: f64,
}

/// One case in all rounds.
#[derive(Debug, Default)]
struct Series {
    samples: Vec<Sample>,
    connections: u64,
    failed: u64,
    error: Option<String>,
}

/// Measures all cases that lead somewhere; the others come back with their reason.
pub(super) fn measure(
    options: &Options,
    services: u32,
    cases: &[Case],
    progress: &Progress,
    of: &str,
) -> Result<Vec<Measured>, LabError> {
    let mut all: Vec<_> = cases.iter().map(|_| Series::default()).collect();
    for round in 0..options.rounds {
        progress.step(of, &format!("round {} of {}", round + 1, options.rounds));
        for at in order(cases.len(), round) {
            let (case, series) = (&cases[at], &mut all[at]);
            let Ok(goal) = &case.goal else { continue };
            let turn = load::run(&case.client, goal, options.turn, options.cpu)?;
            let count = turn.nanos.len() as u64;
            series.samples.push(Sample {
                p50: float(percentile(&turn.nanos, 50)),
                per_second: float(count) / turn.elapsed.as_secs_f64(),
            });
            series.connections += count;
            series.failed += turn.failed;
            series.error = series.error.take().or(turn.error);
        }
    }
    let find = |contestant, way| {
        let is_it = |case: &&Case| case.contestant == contestant && case.way == way;
        let at = cases.iter().position(|case| is_it(&case));
        at.map_or(&[][..], |at| all[at].samples.as_slice())
    };
    let floor = find(Contestant::Clean, Way::Pods);
    let measured = cases.iter().zip(&all).map(|(case, series)| {
        let same_way = find(Contestant::Clean, case.way.direct());
        series.summary(services, case, floor, same_way)
    });
    Ok(measured.collect())
}

/// In which order the cases have their turns.
fn order(count: usize, round: u32) -> Vec<usize> {
    let first = (round as usize * count) / 3;
    let mut order: Vec<_> = (0..count).map(|at| (first + at) % count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

impl Series {
    fn summary(
        &self,
        services: u32,
        case: &Case,
        floor: &[Sample],
        same_way: &[Sample],
    ) -> Measured {
        let all: Vec<_> = self.samples.iter().map(|sample| sample.p50).collect();
        let least = all.iter().copied().min_by(f64::total_cmp);
        let some = |value: f64, digits| (!all.is_empty()).then(|| rounded(value, digits));
        let per_second = median(self.samples.iter().map(|sample| sample.per_second));
        Measured {
            name: name(services, case.contestant, case.way),
            services,
            contestant: case.contestant,
            way: case.way,
            min_ns: least,
            median_ns: some(median(all.iter().copied()), 0),
            ratio_to_floor: some(median(ratios(&self.samples, floor)), 3),
            ratio_to_same_way: some(median(ratios(&self.samples, same_way)), 3),
            per_second: some(per_second, 0),
            connections: self.connections,
            failed: self.failed,
            error: self
                .error
                .clone()
                .or_else(|| case.goal.as_ref().err().cloned()),
            rounds_ns: all,
        }
    }
}

/// What a case is called in the results.
pub(super) fn name(services: u32, contestant: Contestant, way: Way) -> String {
    format!("{services}/{}/{}", contestant.name(), way.name())
}

/// Round by round, one by the other.
fn ratios(of: &[Sample], by: &[Sample]) -> Vec<f64> {
    let pairs = of.iter().zip(by);
    pairs.map(|(of, by)| of.p50 / by.p50.max(1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_turn_in_every_round_and_begins_some_round() {
        let rounds: Vec<_> = (0..6).map(|round| order(27, round)).collect();
        for round in &rounds {
            let mut sorted = round.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..27).collect::<Vec<_>>());
        }
        assert_eq!((rounds[0][0], rounds[1][0], rounds[2][0]), (0, 8, 18));
        assert_ne!(rounds[0], rounds[3]);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let series = |values: [f64; 3]| {
            values.map(|p50| Sample {
                p50,
                per_second: 0.0,
            })
        };
        let (slow, quick) = (series([20.0, 30.0, 90.0]), series([10.0, 10.0, 30.0]));
        assert_eq!(ratios(&slow, &quick), [2.0, 3.0, 3.0]);
        assert!(ratios(&slow, &[]).is_empty());
    }
}
