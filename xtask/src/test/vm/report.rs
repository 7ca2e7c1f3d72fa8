// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a machine says of itself on its serial line, and what becomes of its tests by that.
//!
//! **Invariant:** a test has passed only if its own line says so; whatever is missing has failed.
//! Read next: init.sh, which writes the lines.

use std::time::Duration;

/// What a machine has said so far.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Report {
    /// Time since the kernel's start at which tests could begin, and the kernel's version.
    pub(super) up: Option<(Duration, String)>,
    /// Tests that have ended: name as `program name`, whether it passed, how long it took.
    pub(super) results: Vec<(String, bool, Duration)>,
    /// What is wrong beside the tests.
    pub(super) broken: Vec<String>,
    /// It has come to its end.
    pub(super) ended: bool,
}

impl Report {
    /// Takes in a line of the serial line.
    pub(super) fn read(&mut self, line: &str) {
        let line = line.trim_end();
        if line.contains("Kernel panic") {
            self.broken.push(line.to_owned());
        }
        // Something else may have written to the line without ending it.
        let Some(start) = line.find("VM-") else {
            return;
        };
        let Some((word, rest)) = line[start..].split_once(' ') else {
            return;
        };
        let fields: Vec<&str> = rest.split(' ').collect();
        match (word, fields.as_slice()) {
            ("VM-UP", [time, version]) => {
                self.up = seconds(time).map(|time| (time, (*version).to_owned()));
            }
            ("VM-RESULT", [program, name, code, begin, end]) => {
                let (Some(begin), Some(end)) = (seconds(begin), seconds(end)) else {
                    return;
                };
                let took = end.saturating_sub(begin);
                self.results
                    .push((format!("{program} {name}"), *code == "0", took));
            }
            ("VM-BROKEN", _) => self.broken.push(rest.to_owned()),
            ("VM-END", [_]) => self.ended = true,
            _ => {}
        }
    }

    /// Whether a test has passed, and how long it took; `None` for one without a result.
    pub(super) fn of(&self, name: &str) -> Option<(bool, Duration)> {
        let mut results = self.results.iter();
        results
            .find(|result| result.0 == name)
            .map(|result| (result.1, result.2))
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

    #[test]
    fn a_test_without_a_result_has_none() {
        let said = report(&[
            "VM-UP 4.50 6.12.1\r",
            "VM-BEGIN vm a",
            "VM-RESULT vm a 0 5.00 7.50",
            "VM-BEGIN vm b",
        ]);
        assert_eq!(
            said.up,
            Some((Duration::from_millis(4_500), "6.12.1".to_owned()))
        );
        assert_eq!(said.of("vm a"), Some((true, Duration::from_millis(2_500))));
        assert_eq!(said.of("vm b"), None);
        assert!(!said.ended && said.broken.is_empty());
    }

    #[test]
    fn failures_and_what_is_broken_are_read() {
        let said = report(&[
            "some words VM-RESULT vm a 101 1.0 2.0",
            "VM-BROKEN insmod veth.ko",
            "[ 1.0] Kernel panic - not syncing: no init",
            "VM-END 9.0",
        ]);
        assert_eq!(said.of("vm a"), Some((false, Duration::from_secs(1))));
        assert_eq!(said.broken.len(), 2);
        assert!(said.ended);
    }
}
