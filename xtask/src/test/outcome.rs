// SPDX-License-Identifier: MIT OR Apache-2.0
//! What became of stages, and the table of them.
//!
//! **Invariant:** the table is shown whatever a stage ended with, and is an error where anything failed.
//! Read next: mod.rs, the stages.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::doctor;
use crate::table::{duration, render};

/// Tests that ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: u64,
    pub(super) failed: u64,
}

impl Counts {
    pub(super) const fn add(&mut self, part: Self) {
        self.passed += part.passed;
        self.failed += part.failed;
    }
}

/// What became of a stage.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) counts: Counts,
    pub(super) time: Duration,
    pub(super) note: String,
}

impl Outcome {
    /// What the counts of a stage mean: a stage that nobody filtered has tests.
    pub(super) fn of(mut counts: Counts, filter: Option<&str>) -> Self {
        let note = if counts == Counts::default() && filter.is_none() {
            counts.failed = 1;
            "FAILED: no test was found"
        } else if counts.failed > 0 {
            "FAILED"
        } else {
            ""
        };
        Self {
            counts,
            note: note.to_owned(),
            ..Self::default()
        }
    }

    /// What became of a stage, and how long it took. One that breaks off has failed, and says why: the
    /// others are still run and shown.
    pub(super) fn from_run(run: impl FnOnce() -> Result<Self>) -> Self {
        let start = Instant::now();
        let outcome = run().unwrap_or_else(|error| {
            eprintln!("\nFAILED: {error:#}");
            Self {
                counts: Counts {
                    passed: 0,
                    failed: 1,
                },
                note: "FAILED: it broke off, see above".to_owned(),
                ..Self::default()
            }
        });
        Self {
            time: start.elapsed(),
            ..outcome
        }
    }

    /// A stage that cannot run here, which is a failure where everything has to.
    pub(super) fn not_run(why: &str) -> Self {
        let required = std::env::var_os("LB_REQUIRE_BPF").is_some_and(|value| value == "1");
        Self {
            counts: Counts {
                passed: 0,
                failed: u64::from(required),
            },
            note: format!("NOT RUN: {why}"),
            ..Self::default()
        }
    }

    pub(super) fn after(start: Instant) -> Self {
        Self {
            time: start.elapsed(),
            ..Self::default()
        }
    }
}

/// Whether no stage had a test for the filter; one that did not run may have had some.
pub(super) fn selected_nothing(rows: &[(&str, Outcome)]) -> bool {
    rows.iter()
        .all(|(_, outcome)| outcome.counts == Counts::default() && outcome.note.is_empty())
}

/// Says that a level cannot run here; `None` where it can.
pub(super) fn refused(name: &str) -> Option<Outcome> {
    let missing = doctor::missing_privileges();
    if missing.is_empty() {
        return None;
    }
    let missing = missing.join(", ");
    eprintln!();
    eprintln!("NOT RUN: the level `{name}`, because this process lacks {missing}.");
    eprintln!("         Run it as root: sudo -E env PATH=\"$PATH\" cargo xtask test {name}");
    Some(Outcome::not_run(&format!("lacks {missing}")))
}

pub(super) fn report(rows: &[(&str, Outcome)]) -> Result<()> {
    let mut cells = vec![
        ["stage", "passed", "failed", "time", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (name, outcome) in rows {
        let tests = !matches!(*name, "doctor" | "build");
        let count = |number: u64| {
            if tests {
                number.to_string()
            } else {
                String::new()
            }
        };
        cells.push(vec![
            (*name).to_owned(),
            count(outcome.counts.passed),
            count(outcome.counts.failed),
            duration(outcome.time),
            outcome.note.clone(),
        ]);
    }
    let passed: u64 = rows.iter().map(|(_, outcome)| outcome.counts.passed).sum();
    let failed: u64 = rows.iter().map(|(_, outcome)| outcome.counts.failed).sum();
    let time: Duration = rows.iter().map(|(_, outcome)| outcome.time).sum();
    println!();
    print!("{}", render(&cells));
    println!("\n{passed} passed, {failed} failed in {}", duration(time));
    if failed > 0 {
        bail!("{failed} failed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Counts = Counts {
        passed: 0,
        failed: 0,
    };
    const ONE: Counts = Counts {
        passed: 1,
        failed: 0,
    };

    #[test]
    fn a_level_without_any_test_is_a_failure_unless_a_filter_left_none() {
        assert_eq!(Outcome::of(NONE, None).counts.failed, 1);
        assert_eq!(Outcome::of(NONE, Some("word")).counts, NONE);
        assert_eq!(Outcome::of(ONE, None).counts, ONE);
    }

    #[test]
    fn a_stage_that_breaks_off_has_failed() {
        let broken = Outcome::from_run(|| bail!("no disk"));
        assert_eq!(broken.counts.failed, 1);
        assert!(broken.note.starts_with("FAILED"));
        let fine = Outcome::from_run(|| Ok(Outcome::of(ONE, None)));
        assert_eq!((fine.counts, fine.note.as_str()), (ONE, ""));
    }

    #[test]
    fn a_filter_must_select_a_test_in_some_stage_that_ran() {
        let row = |counts| ("a stage", Outcome::of(counts, Some("word")));
        assert!(selected_nothing(&[row(NONE), row(NONE)]));
        assert!(!selected_nothing(&[row(NONE), row(ONE)]));
        let refused = Outcome {
            note: "NOT RUN".to_owned(),
            ..Outcome::default()
        };
        assert!(!selected_nothing(&[row(NONE), ("bpf", refused)]));
    }
}
