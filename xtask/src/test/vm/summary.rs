// SPDX-License-Identifier: MIT OR Apache-2.0
//! What all machines have said, as one table; for those that failed, what they said.
//!
//! Read next: report.rs and excerpt.rs.

use std::fs;
use std::time::Duration;

use super::excerpt::{self, Part};
use super::machines::{Machine, Ran, Which};
use super::record::features;
use super::report::{Report, TOGETHER, Verdict};
use super::suites::{Chosen, Row, Test};
use crate::table::{duration, render};

/// What is wrong with a machine is listed up to here.
const FAILURES: usize = 10;

/// Shows why machines failed, then the table of all.
/// Gives how many tests passed, and what failed of tests and machines.
pub(super) fn finish(ran: &[Ran], chosen: &[Chosen]) -> (u64, u64) {
    let (mut passed, mut failed) = (0, 0);
    for machine in ran.iter().flat_map(|ran| &ran.machines) {
        let of_suite = chosen.iter().find(|c| c.suite.name == machine.suite);
        let tests = of_suite.map_or(&[][..], |chosen| &chosen.tests);
        let failures = failures(&machine.report, tests);
        let passes = |test: &&Test| machine.report.of(test) == Verdict::Passed;
        passed += tests.iter().filter(passes).count() as u64;
        failed += failures.len() as u64;
        if !failures.is_empty() {
            show(machine, of_suite, &failures);
        }
    }
    println!("\n{}", render(&table(ran, chosen)));
    match features(ran) {
        Ok(features) => println!("{}", render(&features)),
        Err(error) => {
            eprintln!("{error:#}");
            failed += 1;
        }
    }
    (passed, failed)
}

/// What is wrong with a machine, and what its log says of that.
fn show(machine: &Machine, chosen: Option<&Chosen>, failures: &[String]) {
    let (kernel, suite) = (machine.which.name(), machine.suite);
    eprintln!("\nLinux {kernel}, {suite}: FAILED");
    let text = fs::read_to_string(&machine.log).unwrap_or_default();
    for part in parts(&machine.report, chosen, &text) {
        eprintln!("  {}:", part.head);
        for line in part.lines {
            eprintln!("  | {line}");
        }
    }
    for failure in capped(failures) {
        eprintln!("  {failure}");
    }
    if !text.is_empty() {
        eprintln!("  all of it: {}", machine.log.display());
    }
}

/// What of a log says why: what failed tests said, and the end where that is not all of it.
fn parts<'a>(report: &Report, chosen: Option<&Chosen>, log: &'a str) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    if let Some(chosen) = chosen {
        let fails = |test: &&Test| report.of(test) == Verdict::Failed;
        let failed: Vec<&str> = chosen
            .tests
            .iter()
            .filter(fails)
            .map(|test| test.name.as_str())
            .collect();
        let program = chosen.suite.name;
        if chosen.suite.together {
            let first = failed.first();
            parts.extend(first.map(|name| excerpt::of_together(log, program, name)));
        } else {
            parts.extend(excerpt::of_each(log, program, &failed));
        }
    }
    if (!report.ended || parts.is_empty()) && !log.is_empty() {
        parts.extend(excerpt::oops(log));
        parts.push(excerpt::end_of_all(log));
    }
    parts
}

/// The first sentences, and how many there are more.
fn capped(failures: &[String]) -> Vec<String> {
    let mut shown: Vec<String> = failures.iter().take(FAILURES).cloned().collect();
    let more = failures.len().saturating_sub(FAILURES);
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown
}

/// What is wrong with a machine, in words.
fn failures(report: &Report, tests: &[Test]) -> Vec<String> {
    let mut failures: Vec<String> = report.broken.clone();
    if report.up.is_none() {
        failures.push("did not come up".to_owned());
    }
    for test in tests {
        let name = test.full_name();
        match report.of(test) {
            Verdict::Passed | Verdict::Lacks(_) => {}
            Verdict::Failed => failures.push(format!("failed: {name}")),
            Verdict::Missing => failures.push(format!("no result: {name}")),
        }
    }
    if !report.ended {
        failures.push("did not come to its end".to_owned());
    }
    failures
}

/// A line for each row of the suites, a column for each kernel.
pub(super) fn table(ran: &[Ran], chosen: &[Chosen]) -> Vec<Vec<String>> {
    let row = |name: &str, cell: &dyn Fn(&Ran) -> String| {
        let mut row = vec![name.to_owned()];
        row.extend(ran.iter().map(cell));
        row
    };
    let none = || "--".to_owned();
    let mut rows = vec![
        row("", &|ran| {
            let version = ran.up().map(|(_, version)| version.clone());
            version.unwrap_or_else(|| ran.which.name().to_owned())
        }),
        row("boot", &|ran| match ran.up() {
            Some((time, _)) if ran.which != Which::Own => duration(*time),
            _ => none(),
        }),
    ];
    for of_suite in chosen {
        for line in &of_suite.rows {
            let tests: Vec<&Test> = of_suite
                .tests
                .iter()
                .filter(|test| line.has(test))
                .collect();
            if !tests.is_empty() {
                let label = label(line, tests.len());
                rows.push(row(&label, &|ran| {
                    let report = ran.of(of_suite.suite.name);
                    report.map_or_else(none, |r| cell(r, &tests, of_suite.suite.together))
                }));
            }
        }
    }
    rows.push(row("all of it", &|ran| duration(ran.time())));
    rows
}

fn label(row: &Row, tests: usize) -> String {
    if tests == 1 {
        return row.label.to_owned();
    }
    format!("{} ({tests} tests)", row.label)
}

/// What became of the tests of a row, and how long they took.
fn cell(report: &Report, tests: &[&Test], together: bool) -> String {
    let verdicts: Vec<Verdict> = tests.iter().map(|test| report.of(test)).collect();
    let count = |wanted: Verdict| {
        verdicts
            .iter()
            .filter(|verdict| **verdict == wanted)
            .count()
    };
    let (failed, missing) = (count(Verdict::Failed), count(Verdict::Missing));
    if failed > 0 {
        return format!("{failed} FAILED");
    }
    if missing > 0 {
        return format!("{missing} WITHOUT RESULT");
    }
    if let Some(Verdict::Lacks(what)) = verdicts.first() {
        return format!("no {what} here");
    }
    let time: Option<Duration> = if together {
        tests
            .first()
            .and_then(|test| report.time(test.suite, TOGETHER))
    } else {
        tests
            .iter()
            .map(|test| report.time(test.suite, &test.name))
            .sum()
    };
    let mut words = vec!["ok".to_owned()];
    words.extend(time.map(duration));
    for note in tests.iter().filter_map(|test| report.note(test)) {
        if !words.iter().any(|word| word == note) {
            words.push(note.to_owned());
        }
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::suites::SUITES;
    use super::*;

    fn chosen() -> Vec<Chosen> {
        let suite = SUITES.iter().find(|suite| suite.name == "vm").unwrap();
        let test = |name: &str| Test {
            suite: "vm",
            name: name.to_owned(),
        };
        vec![Chosen {
            suite,
            program: "/t/vm".into(),
            rows: suite.rows.iter().collect(),
            tests: vec![test("sctp::a"), test("vlan::b")],
        }]
    }

    fn said(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.read(line);
        }
        report
    }

    const RIGHT: [&str; 8] = [
        "VM-UP 1.0 6.12",
        "VM-BEGIN vm sctp::a",
        "test result: ok. 1 passed; 0 failed",
        "VM-RESULT vm sctp::a 0 1.0 2.0",
        "VM-BEGIN vm vlan::b",
        "test result: ok. 1 passed; 0 failed",
        "VM-RESULT vm vlan::b 0 2.0 3.0",
        "VM-END 4.0",
    ];

    #[test]
    fn a_machine_is_right_only_when_every_test_says_so_and_it_ends() {
        let chosen = chosen();
        let tests = &chosen[0].tests;
        assert!(failures(&said(&RIGHT), tests).is_empty());
        for missing in 0..RIGHT.len() {
            let mut lines = RIGHT.to_vec();
            lines.remove(missing);
            assert_eq!(failures(&said(&lines), tests).len(), 1, "{missing}");
        }
        let mut with_warning = RIGHT.to_vec();
        with_warning.push("VM-BROKEN WARNING: x");
        assert_eq!(failures(&said(&with_warning), tests).len(), 1);
    }

    #[test]
    fn a_cell_says_what_failed_what_is_missing_and_what_the_kernel_lacks() {
        let chosen = chosen();
        let tests: Vec<&Test> = chosen[0].tests.iter().collect();
        let cell = |lines: &[&str], tests: &[&Test]| cell(&said(lines), tests, false);
        assert_eq!(cell(&RIGHT, &tests), "ok, 2.0 s");
        assert_eq!(cell(&RIGHT[..4], &tests), "1 WITHOUT RESULT");
        let failed = ["VM-RESULT vm sctp::a 1 1.0 2.0"];
        assert_eq!(cell(&failed, &tests), "1 FAILED");
        assert_eq!(
            cell(&["VM-LACKS vm sctp::a SCTP"], &tests[..1]),
            "no SCTP here"
        );
        let mut noted = RIGHT.to_vec();
        noted.insert(5, "VM-NOTE no budget for 6.12 yet");
        assert_eq!(cell(&noted, &tests), "ok, 2.0 s, no budget for 6.12 yet");
    }

    #[test]
    fn the_end_of_the_log_is_shown_only_where_a_failed_test_is_not_all_of_it() {
        let chosen = chosen();
        let failed = [
            "VM-UP 1.0 6.12",
            "VM-BEGIN vm sctp::a",
            "why",
            "VM-RESULT vm sctp::a 101 1.0 2.0",
            "VM-END 4.0",
        ];
        let heads = |lines: &[&str]| -> Vec<String> {
            let log = lines.join("\n");
            let parts = parts(&said(lines), chosen.first(), &log);
            parts.into_iter().map(|part| part.head).collect()
        };
        let (of_test, end) = (
            "the end of what vm sctp::a said",
            "the end of its serial line",
        );
        assert_eq!(heads(&failed), [of_test]);
        assert_eq!(heads(&failed[..4]), [of_test, end]);
        assert_eq!(heads(&failed[..1]), [end]);
        let broken = ["[ 2.1] Oops: int3: 0000 [#1] SMP NOPTI"];
        assert_eq!(heads(&broken), ["where its kernel broke", end]);
        assert!(heads(&[]).is_empty(), "nothing was said");
    }

    #[test]
    fn a_long_list_of_failures_is_cut() {
        let failures: Vec<String> = (0..12).map(|at| at.to_string()).collect();
        assert_eq!(capped(&failures).len(), FAILURES + 1);
        assert_eq!(capped(&failures)[FAILURES], "and 2 more");
        assert_eq!(capped(&failures[..10]), failures[..10]);
    }
}
