// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the bench found as tables for people: one for each number of Services, then the targets.
//!
//! **Invariant:** shows nothing that the JSON lacks; what was not measured is told with its reason.
//! Read next: `report`.

use std::fmt::Write as _;

use super::contestant::{Contestant, Way};
use super::report::{Measured, Report, Setup};
use crate::bench::report::aligned;
use crate::underlay::line;

const HEAD: [&str; 8] = [
    "",
    "pods",
    "first",
    "last",
    "node port",
    "outside",
    "last/s",
    "set-up",
];
const WAYS: [Way; 5] = [
    Way::Pods,
    Way::First,
    Way::Last,
    Way::NodePort,
    Way::Outside,
];

impl Report {
    /// As tables, for people.
    pub(super) fn table(&self) -> String {
        let mut text = self.machine.head();
        line!(
            text,
            "; {} rounds of {} ms, processor {}\n\nmedian of a connect and one line, over the clean \
             router on the same way; last/s are whole connections to the last Service",
            self.rounds,
            self.turn_millis,
            self.cpu
        );
        let mut sizes: Vec<_> = self.cases.iter().map(|case| case.services).collect();
        sizes.dedup();
        for services in sizes {
            line!(text, "\n{services} Services");
            let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
            rows.extend(Contestant::ALL.map(|contestant| self.row(services, contestant)));
            text.push_str(&aligned(&rows));
            for reason in self.reasons(services) {
                line!(text, "  {reason}");
            }
        }
        let mut rows = vec![
            ["target", "wanted", "measured", ""]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(self.targets.iter().map(|target| {
            let mark = if target.met { "✓" } else { "✗ MISSED" };
            let measured = target.measured.map_or_else(
                || "not served".to_owned(),
                |value| format!("{value} {}", target.unit).trim_end().to_owned(),
            );
            vec![
                target.name.clone(),
                target.wanted.clone(),
                measured,
                mark.to_owned(),
            ]
        }));
        text.push('\n');
        text.push_str(&aligned(&rows));
        text
    }

    fn find(&self, services: u32, contestant: Contestant, way: Way) -> Option<&Measured> {
        let is_it = |case: &&Measured| {
            (case.services, case.contestant, case.way) == (services, contestant, way)
        };
        self.cases.iter().find(is_it)
    }

    fn row(&self, services: u32, contestant: Contestant) -> Vec<String> {
        let mut row = vec![contestant.name().to_owned()];
        for way in WAYS {
            let case = self.find(services, contestant, way);
            row.push(case.map_or_else(String::new, cell));
        }
        let last = self.find(services, contestant, Way::Last);
        let per_second = last.and_then(|case| case.per_second);
        row.push(per_second.map_or_else(String::new, |count| format!("{count:.0}")));
        let is_its = |setup: &&Setup| (setup.services, setup.contestant) == (services, contestant);
        let millis = self
            .setups
            .iter()
            .find(is_its)
            .and_then(|setup| setup.millis);
        row.push(millis.map_or_else(String::new, |millis| format!("{:.2} s", millis / 1e3)));
        row
    }

    /// What went wrong or was left out, each reason once.
    fn reasons(&self, services: u32) -> Vec<String> {
        let mut reasons = Vec::new();
        for setup in self
            .setups
            .iter()
            .filter(|setup| setup.services == services)
        {
            let reason = setup.error.as_ref();
            reasons.extend(reason.map(|reason| format!("{}: {reason}", setup.contestant.name())));
        }
        let of_setups = reasons.len();
        for case in self.cases.iter().filter(|case| case.services == services) {
            let Some(error) = &case.error else { continue };
            let known = |reason: &String| reason.ends_with(error.as_str());
            if !reasons[..of_setups].iter().any(known) {
                let failed = match case.failed {
                    0 => String::new(),
                    failed => format!("{failed} failed: "),
                };
                reasons.push(format!("{}: {failed}{error}", case.name));
            }
        }
        reasons
    }
}

/// The clean router's cells are times, all others how many times as long.
fn cell(case: &Measured) -> String {
    let failed = if case.failed > 0 { " !" } else { "" };
    match (case.contestant, case.median_ns, case.ratio_to_same_way) {
        (Contestant::Clean, Some(nanos), _) => format!("{:.1} us{failed}", nanos / 1e3),
        (_, Some(_), Some(ratio)) => format!("{ratio:.2}x{failed}"),
        _ => "-".to_owned(),
    }
}
