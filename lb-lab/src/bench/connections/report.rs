// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the bench found, and as JSON for programs.
//!
//! **Invariant:** a case without numbers is there with its reason. Read next: `table`, `targets`.

use serde::{Serialize, Serializer};

use super::Options;
use super::contestant::{Contestant, Way};
use super::targets::{self, Target};
use crate::bench::numbers::{median, rounded};
use crate::bench::report::{Machine, json};
use crate::error::LabError;

/// Everything that was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) rounds: u32,
    pub(super) turn_millis: u64,
    pub(super) cpu: usize,
    /// A connection between two pods by the clean router: the median of all labs.
    pub(super) floor_ns: Option<f64>,
    pub(super) cases: Vec<Measured>,
    pub(super) setups: Vec<Setup>,
    pub(super) targets: Vec<Target>,
}

/// One way through one contestant with one number of Services.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Measured {
    pub(super) name: String,
    pub(super) services: u32,
    pub(super) contestant: Contestant,
    pub(super) way: Way,
    /// Of the rounds' medians, the least and the middle one; none of them where nothing was measured.
    pub(super) min_ns: Option<f64>,
    pub(super) median_ns: Option<f64>,
    /// By the clean router between two pods, and by the clean router on the same way.
    pub(super) ratio_to_floor: Option<f64>,
    pub(super) ratio_to_same_way: Option<f64>,
    /// Whole connections, making the socket and closing it included.
    pub(super) per_second: Option<f64>,
    pub(super) connections: u64,
    pub(super) failed: u64,
    /// The first failure, or why nothing was measured.
    pub(super) error: Option<String>,
    /// The median of each round.
    pub(super) rounds_ns: Vec<f64>,
}

/// How a contestant came to its Services.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Setup {
    pub(super) services: u32,
    pub(super) contestant: Contestant,
    /// From the first byte of its input until everything was in force.
    pub(super) millis: Option<f64>,
    /// Connections that conntrack held at the end; none where the kernel has no conntrack.
    pub(super) conntrack_entries: Option<u64>,
    /// Why it did not take part.
    pub(super) error: Option<String>,
}

impl Serialize for Contestant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Serialize for Way {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Report {
    pub(super) fn new(
        machine: Machine,
        options: &Options,
        cases: Vec<Measured>,
        setups: Vec<Setup>,
    ) -> Self {
        let is_floor =
            |case: &&Measured| (case.contestant, case.way) == (Contestant::Clean, Way::Pods);
        let floors = cases.iter().filter(is_floor);
        let floors: Vec<_> = floors.filter_map(|case| case.median_ns).collect();
        let targets = targets::judge(&cases);
        Self {
            machine,
            rounds: options.rounds,
            turn_millis: u64::try_from(options.turn.as_millis()).unwrap_or(u64::MAX),
            cpu: options.cpu,
            floor_ns: (!floors.is_empty()).then(|| rounded(median(floors), 0)),
            cases,
            setups,
            targets,
        }
    }

    /// As JSON, for programs.
    pub(super) fn json(&self) -> Result<String, LabError> {
        json(self)
    }
}
