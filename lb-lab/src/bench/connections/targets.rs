// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a connection is meant to cost, and whether it does.
//!
//! **Invariant:** two cases are compared round by round; a way that is not served meets no target.
//! Read next: lb-lab/README.md, which has the results with a date.

use serde::Serialize;

use super::contestant::{Contestant, Way};
use super::report::Measured;
use crate::bench::numbers::{float, median, rounded};

/// The number of Services of which the last may cost no more than the first.
const MANY: u32 = 10_000;
/// By how much they may differ, as a part of the first.
const DIFFERENCE: f64 = 0.03;

/// A target and what was measured.
#[derive(Debug, Serialize)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) wanted: String,
    /// None where there is nothing to compare.
    pub(super) measured: Option<f64>,
    pub(super) unit: &'static str,
    pub(super) met: bool,
}

/// Every target for which something was measured.
pub(super) fn judge(cases: &[Measured]) -> Vec<Target> {
    let mut targets = vec![failures(cases)];
    let of = |services, contestant, way| {
        let is_it = |case: &&Measured| {
            (case.services, case.contestant, case.way) == (services, contestant, way)
        };
        cases.iter().find(is_it)
    };
    let mut sizes: Vec<_> = cases.iter().map(|case| case.services).collect();
    sizes.dedup();
    if sizes.contains(&MANY) {
        let ratio = ratio(
            of(MANY, Contestant::Ours, Way::Last),
            of(MANY, Contestant::Ours, Way::First),
        );
        targets.push(Target {
            name: format!("the last of {MANY} Services by the first"),
            wanted: format!("1 +- {DIFFERENCE}"),
            measured: ratio,
            unit: "times",
            met: ratio.is_some_and(|ratio| (ratio - 1.0).abs() <= DIFFERENCE),
        });
    }
    for services in sizes {
        for way in [Way::First, Way::Last, Way::NodePort] {
            let peers = cases.iter();
            let peers = peers.filter(|case| case.services == services && case.way == way);
            targets.extend(peers.filter_map(|peer| {
                let rival = peer.contestant.rival()?;
                beside(rival, of(services, rival, way), peer)
            }));
        }
    }
    targets
}

fn failures(cases: &[Measured]) -> Target {
    let failed: u64 = cases.iter().map(|case| case.failed).sum();
    Target {
        name: "connections that failed".to_owned(),
        wanted: "0".to_owned(),
        measured: Some(float(failed)),
        unit: "",
        met: failed == 0,
    }
}

/// Ours by a peer's; none where the peer was not measured.
fn beside(rival: Contestant, ours: Option<&Measured>, peer: &Measured) -> Option<Target> {
    let over_clean = peer.ratio_to_same_way?;
    let ratio = ratio(ours, Some(peer));
    Some(Target {
        name: format!(
            "{} of {} Services, {} by {}",
            peer.way.name(),
            peer.services,
            rival.name(),
            peer.contestant.name()
        ),
        wanted: format!("< 1 ({over_clean:.2} of the clean router)"),
        measured: ratio,
        unit: "times",
        met: ratio.is_some_and(|ratio| ratio < 1.0),
    })
}

/// The median of the ratios of all rounds.
fn ratio(of: Option<&Measured>, by: Option<&Measured>) -> Option<f64> {
    let (of, by) = (&of?.rounds_ns, &by?.rounds_ns);
    if of.is_empty() || of.len() != by.len() {
        return None;
    }
    let ratios = of.iter().zip(by).map(|(of, by)| of / by.max(1.0));
    Some(rounded(median(ratios), 3))
}
