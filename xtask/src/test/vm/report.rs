// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a machine says on its serial line, as results.
//!
//! **Invariant:** only what was said counts: whatever is missing has failed.
//! Read next: run.sh and init.sh, which write the lines.

use std::collections::BTreeMap;
use std::time::Duration;

use super::suites::Test;

/// Stands for the tests of a program that one process runs.
pub(super) const TOGETHER: &str = "-";

/// How libtest sums up a process whose one test has passed: what the test itself prints may stand
/// between its name and its result, but not in here.
const ONE_PASSED: &str = "test result: ok. 1 passed;";

/// What a machine has said so far.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Report {
    /// Time since the kernel's start at which tests could begin, and the kernel's version.
    pub(super) up: Option<(Duration, String)>,
    /// What the agent's doctor found, as JSON.
    pub(super) doctor: Option<String>,
    /// What the verifier gate measured: kernel, program, numbers.
    pub(super) budget: Vec<String>,
    /// Tests that have ended, as `program name`: whether they passed.
    results: BTreeMap<String, bool>,
    /// How long a process took, as `program name` or `program -`.
    times: BTreeMap<String, Duration>,
    /// What this kernel has not got, by test.
    lacks: BTreeMap<String, String>,
    /// What a test wants said beside its result.
    notes: BTreeMap<String, String>,
    /// What is wrong beside the tests.
    pub(super) broken: Vec<String>,
    /// When the last process ended, since the kernel's start.
    pub(super) last: Duration,
    /// It has come to its end.
    pub(super) ended: bool,
    /// The process that is running.
    section: Option<Section>,
}

/// What a process with tests has said so far.
#[derive(Debug, PartialEq)]
struct Section {
    /// `program name`, or `program -`.
    full: String,
    program: String,
    together: bool,
    /// Whether libtest's own summary says that its one test has run and passed.
    one_passed: bool,
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed,
    /// The kernel has not got what the test is about.
    Lacks(String),
    Missing,
}

/// What a line tells the person who waits.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Up,
    /// A process with tests begins.
    Begin(String),
    /// One test of many in a process.
    One,
    /// A process with tests has ended.
    End {
        name: String,
        passed: bool,
        time: Duration,
    },
}

impl Report {
    /// Takes in a line of the serial line.
    pub(super) fn read(&mut self, line: &str) -> Option<News> {
        let line = line.trim_end();
        if line.contains("Kernel panic") {
            self.broken.push(line.to_owned());
        }
        self.budget.extend(budget(line));
        if let Some(section) = &mut self.section {
            section.one_passed |= line.contains(ONE_PASSED);
            if section.together
                && let Some((name, passed)) = libtest(line)
            {
                let full = format!("{} {name}", section.program);
                self.results.insert(full, passed);
                return Some(News::One);
            }
        }
        // Something else may have written to the line without ending it.
        let start = line.find("VM-")?;
        let (word, rest) = line[start..].split_once(' ')?;
        let fields: Vec<&str> = rest.split(' ').collect();
        match (word, fields.as_slice()) {
            ("VM-UP", [time, version]) => {
                self.up = seconds(time).map(|time| (time, (*version).to_owned()));
                return Some(News::Up);
            }
            ("VM-DOCTOR", _) => self.doctor = Some(rest.to_owned()),
            ("VM-BEGIN", [program, name]) => {
                self.leave_section();
                self.section = Some(Section {
                    full: rest.to_owned(),
                    program: (*program).to_owned(),
                    together: *name == TOGETHER,
                    one_passed: false,
                });
                return Some(News::Begin(rest.to_owned()));
            }
            ("VM-RESULT", [program, name, code, begin, end]) => {
                return self.end([program, name], *code == "0", begin, end);
            }
            ("VM-LACKS", [program, name, what]) => {
                self.lacks
                    .insert(format!("{program} {name}"), (*what).to_owned());
            }
            ("VM-NOTE", _) => {
                if let Some(section) = &self.section {
                    self.notes.insert(section.full.clone(), rest.to_owned());
                }
            }
            ("VM-BROKEN", _) => self.broken.push(rest.to_owned()),
            ("VM-END", [_]) => {
                self.leave_section();
                self.ended = true;
            }
            _ => {}
        }
        None
    }

    /// Whatever comes next, a process without a result has not ended well; tests that it ran with others
    /// do not miss it.
    fn leave_section(&mut self) {
        let section = self.section.take();
        if let Some(section) = section.filter(|section| section.together) {
            let program = section.program;
            self.broken.push(format!("{program} has no result"));
        }
    }

    fn end(
        &mut self,
        [program, name]: [&str; 2],
        exited_well: bool,
        begin: &str,
        end: &str,
    ) -> Option<News> {
        self.last = seconds(end)?;
        let time = self.last.saturating_sub(seconds(begin)?);
        let full = format!("{program} {name}");
        let section = self.section.take().filter(|section| section.full == full);
        self.times.insert(full.clone(), time);
        let passed = if name == TOGETHER {
            let failed = self
                .results
                .iter()
                .any(|(of, passed)| !passed && of.starts_with(&format!("{program} ")));
            if !exited_well && !failed {
                self.broken.push(format!("{program} did not end well"));
            }
            exited_well
        } else {
            // A program whose test is ignored, or not there, exits well, too.
            let passed = exited_well && section.is_some_and(|section| section.one_passed);
            self.results.insert(full.clone(), passed);
            passed
        };
        Some(News::End {
            name: full,
            passed,
            time,
        })
    }

    /// What became of a test.
    pub(super) fn of(&self, test: &Test) -> Verdict {
        let name = test.full_name();
        match (self.lacks.get(&name), self.results.get(&name)) {
            (Some(what), None) => Verdict::Lacks(what.clone()),
            (_, Some(true)) => Verdict::Passed,
            (_, Some(false)) => Verdict::Failed,
            (None, None) => Verdict::Missing,
        }
    }

    /// What a test wants said beside its result.
    pub(super) fn note(&self, test: &Test) -> Option<&str> {
        self.notes.get(&test.full_name()).map(String::as_str)
    }

    /// How long a test took, or the process that ran it with others.
    pub(super) fn time(&self, program: &str, name: &str) -> Option<Duration> {
        self.times.get(&format!("{program} {name}")).copied()
    }
}

/// The row in a line `BUDGET kernel program verified states stack`, wherever that begins.
fn budget(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("BUDGET ")?;
    let fields: Vec<&str> = rest.split_whitespace().take(5).collect();
    let numbers = fields.get(2..5)?;
    let is_row = numbers.iter().all(|number| number.parse::<u32>().is_ok());
    is_row.then(|| fields.join(" "))
}

/// The name and the result in a line `test NAME ... ok`.
fn libtest(line: &str) -> Option<(&str, bool)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    match result {
        "ok" => Some((name, true)),
        "FAILED" => Some((name, false)),
        _ => None,
    }
}

fn seconds(text: &str) -> Option<Duration> {
    text.parse()
        .ok()
        .and_then(|secs| Duration::try_from_secs_f64(secs).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.read(line);
        }
        report
    }

    fn test(name: &str) -> Test {
        Test {
            suite: "vm",
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_test_without_a_result_has_none() {
        let said = report(&[
            "VM-UP 4.50 6.12.1\r",
            "VM-BEGIN vm a",
            "test a ... some words of its own, and then ok",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
            "VM-RESULT vm a 0 5.00 7.50",
            "VM-BEGIN vm b",
        ]);
        assert_eq!(
            said.up,
            Some((Duration::from_millis(4_500), "6.12.1".to_owned()))
        );
        assert_eq!(said.of(&test("a")), Verdict::Passed);
        assert_eq!(said.time("vm", "a"), Some(Duration::from_millis(2_500)));
        assert_eq!(said.of(&test("b")), Verdict::Missing);
        assert!(!said.ended && said.broken.is_empty());
    }

    #[test]
    fn exiting_well_is_not_enough_for_a_single_test() {
        let [begin, summary, end] = [
            "VM-BEGIN vm a",
            "test result: ok. 1 passed; 0 failed",
            "VM-RESULT vm a 0 1.0 2.0",
        ];
        let ignored = "test result: ok. 0 passed; 0 failed; 1 ignored";
        let verdict = |lines: &[&str]| report(lines).of(&test("a"));
        assert_eq!(verdict(&[begin, summary, end]), Verdict::Passed);
        assert_eq!(verdict(&[begin, end]), Verdict::Failed);
        assert_eq!(verdict(&[begin, ignored, end]), Verdict::Failed);
        assert_eq!(verdict(&[summary, end]), Verdict::Failed, "of no process");
        let of_another = ["VM-BEGIN vm b", summary, end];
        assert_eq!(verdict(&of_another), Verdict::Failed);
        let code = "VM-RESULT vm a 101 1.0 2.0";
        assert_eq!(verdict(&[begin, summary, code]), Verdict::Failed);
    }

    #[test]
    fn rows_of_the_budget_stand_anywhere_and_notes_belong_to_their_test() {
        let said = report(&[
            "VM-NOTE of nobody",
            "VM-BEGIN vm a",
            "[ 1.0] a deviceBUDGET 6.1 lb_clock 2 0 32",
            "BUDGET 6.1 lb_tc 20 1 64 [ 2.0] more",
            "no line of the gate (BUDGET kernel program ...)",
            "BUDGET 6.1 cut",
            "[ 3.0] wordsVM-NOTE no budget for 6.1 yet",
            "VM-RESULT vm a 0 1.0 2.0",
        ]);
        assert_eq!(said.budget, ["6.1 lb_clock 2 0 32", "6.1 lb_tc 20 1 64"]);
        assert_eq!(said.note(&test("a")), Some("no budget for 6.1 yet"));
        assert_eq!(said.note(&test("b")), None);
    }

    #[test]
    fn tests_that_passed_together_do_not_hide_that_their_process_said_nothing_of_its_end() {
        let mut lines = vec![
            "VM-BEGIN vm -",
            "test a ... ok",
            "[ 9.0] eth0: renamedVM-RES",
            "VM-END 9.0",
        ];
        assert_eq!(report(&lines).broken, ["vm has no result"]);
        lines[2] = "[ 9.0] eth0: renamedVM-RESULT vm - 0 1.0 9.0";
        let said = report(&lines);
        assert!(said.broken.is_empty() && said.of(&test("a")) == Verdict::Passed);
    }

    #[test]
    fn failures_and_what_is_broken_are_read() {
        let said = report(&[
            "some words VM-RESULT vm a 101 1.0 2.0",
            "VM-BROKEN insmod veth.ko",
            "[ 1.0] Kernel panic - not syncing: no init",
            "VM-LACKS vm b sctp",
            "VM-END 9.0",
        ]);
        assert_eq!(said.of(&test("a")), Verdict::Failed);
        assert_eq!(said.of(&test("b")), Verdict::Lacks("sctp".to_owned()));
        assert_eq!(said.broken.len(), 2);
        assert!(said.ended);
    }

    #[test]
    fn tests_of_one_process_are_told_apart_by_what_it_prints() {
        let lines = [
            "VM-BEGIN vm -",
            "test a ... ok",
            "test b ... FAILED",
            "VM-RESULT vm - 101 1.0 9.0",
            "test c ... ok",
        ];
        let said = report(&lines);
        assert_eq!(said.of(&test("a")), Verdict::Passed);
        assert_eq!(said.of(&test("b")), Verdict::Failed);
        assert_eq!(said.of(&test("c")), Verdict::Missing, "of no process");
        assert_eq!(said.time("vm", TOGETHER), Some(Duration::from_secs(8)));
        assert!(said.broken.is_empty());
        // Killed before a test could fail.
        let said = report(&[lines[0], lines[1], "VM-RESULT vm - 137 1.0 9.0"]);
        assert_eq!(said.broken, ["vm did not end well"]);
    }
}
