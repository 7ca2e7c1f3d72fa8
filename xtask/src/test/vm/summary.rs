// SPDX-License-Identifier: MIT OR Apache-2.0
//! What all machines have said, as one table; for those that failed, the end of what they said.
//!
//! Read next: report.rs.

use std::fs;
use std::time::Duration;

use super::machines::{Machine, Ran, Which};
use super::record::features;
use super::report::{Report, TOGETHER, Verdict};
use super::suites::{Chosen, Row, Test};
use crate::table::{duration, render};

/// Lines of a failed machine's log that are shown.
const LOG_TAIL_LINES: usize = 60;

/// Shows the end of the logs of failed machines, then the table of all.
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
            show(machine, &failures);
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

/// The end of a failed machine's log, and what is wrong.
fn show(machine: &Machine, failures: &[String]) {
    let text = fs::read_to_string(&machine.log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let (kernel, suite) = (machine.which.name(), machine.suite);
    eprintln!("\nLinux {kernel}, {suite}: FAILED; the end of its serial line:");
    for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
        eprintln!("  | {line}");
    }
    for failure in failures {
        eprintln!("  {failure}");
    }
    eprintln!("  all of it: {}", machine.log.display());
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
    time.map_or_else(|| "ok".to_owned(), |time| format!("ok, {}", duration(time)))
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

    const RIGHT: [&str; 4] = [
        "VM-UP 1.0 6.12",
        "VM-RESULT vm sctp::a 0 1.0 2.0",
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
        assert_eq!(cell(&RIGHT[..2], &tests), "1 WITHOUT RESULT");
        let failed = ["VM-RESULT vm sctp::a 1 1.0 2.0"];
        assert_eq!(cell(&failed, &tests), "1 FAILED");
        assert_eq!(
            cell(&["VM-LACKS vm sctp::a SCTP"], &tests[..1]),
            "no SCTP here"
        );
    }
}
