// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a person sees while machines run: a line for each process with tests that has ended, one now and
//! then for a process with many, and on a terminal what is running now.
//!
//! Read next: summary.rs, what is seen in the end.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::report::{News, TOGETHER};
use super::suites::Chosen;
use crate::table::duration;

/// Tests of one process between two lines.
const TESTS_PER_LINE: usize = 100;

/// A machine, as lines name it: its kernel and its suite.
type Place = (&'static str, &'static str);

/// What all machines share: the last line of the terminal.
pub(super) struct Board {
    /// What is running, by machine.
    running: Mutex<BTreeMap<Place, String>>,
    terminal: bool,
    loud: bool,
}

impl Board {
    pub(super) fn new(loud: bool) -> Self {
        Self {
            running: Mutex::default(),
            terminal: std::io::stderr().is_terminal() && !loud,
            loud,
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Place, String>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what a machine is at now, nothing if it has ended, and a line that stays, if there is one.
    fn show(&self, place: Place, now: Option<String>, line: Option<&str>) {
        let mut running = self.running();
        match now {
            Some(now) => drop(running.insert(place, now)),
            None => drop(running.remove(&place)),
        }
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        if let Some(line) = line {
            let (kernel, suite) = place;
            eprintln!("  {kernel:<5} {suite:<8} {line}");
        }
        if self.terminal && !running.is_empty() {
            let all: Vec<_> = running
                .iter()
                .map(|((kernel, suite), now)| format!("{kernel} {suite}: {now}"))
                .collect();
            eprint!("  {}", all.join("; "));
            // A terminal that is gone is no reason to stop.
            drop(std::io::stderr().flush());
        }
    }
}

/// Follows one machine.
pub(super) struct Progress<'a> {
    board: &'a Board,
    place: Place,
    /// Processes in all, and those that have begun.
    processes: usize,
    begun: usize,
    /// Tests that the process at hand has ended.
    ones: usize,
    running: String,
}

impl<'a> Progress<'a> {
    pub(super) fn new(
        board: &'a Board,
        kernel: &'static str,
        version: &str,
        chosen: &Chosen,
    ) -> Self {
        let (suite, tests) = (chosen.suite, chosen.tests.len());
        let line = format!("{version}: {tests} tests ...");
        let place = (kernel, suite.name);
        board.show(place, Some("boots".to_owned()), Some(&line));
        Self {
            board,
            place,
            processes: if suite.together { 1 } else { tests },
            begun: 0,
            ones: 0,
            running: String::new(),
        }
    }

    pub(super) fn tell(&mut self, news: Option<News>, line: &str) {
        if self.board.loud {
            let (kernel, suite) = self.place;
            eprintln!("  {kernel:<5} {suite:<8} | {line}");
        }
        let Some(news) = news else {
            return;
        };
        let line = match news {
            News::Up => None,
            News::Begin(name) => {
                self.begun += 1;
                self.ones = 0;
                name.strip_suffix(TOGETHER)
                    .unwrap_or(&name)
                    .trim_end()
                    .clone_into(&mut self.running);
                None
            }
            News::One => {
                self.ones += 1;
                {
                    let many = self.ones.is_multiple_of(TESTS_PER_LINE);
                    many.then(|| self.line("...", &self.at()))
                }
            }
            News::End { passed, time, .. } => {
                let result = if passed { "ok" } else { "FAILED" };
                let words = format!("{:>12}  {}", duration(time), self.running);
                Some(self.line(result, &words))
            }
        };
        self.board
            .show(self.place, Some(self.at()), line.as_deref());
    }

    fn line(&self, result: &str, words: &str) -> String {
        format!("{:>3}/{} {result:<6} {words}", self.begun, self.processes)
    }

    /// What runs now.
    fn at(&self) -> String {
        match self.ones {
            0 => self.running.clone(),
            ones => format!("{}, {ones} tests", self.running),
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.board.show(self.place, None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::super::suites::SUITES;
    use super::*;

    #[test]
    fn two_machines_of_one_kernel_do_not_erase_each_other() {
        let board = Board::new(true);
        let chosen = |at: usize| Chosen {
            suite: &SUITES[at],
            program: "/t".into(),
            rows: Vec::new(),
            tests: Vec::new(),
        };
        let one = Progress::new(&board, "6.1", "6.1.0", &chosen(0));
        let mut other = Progress::new(&board, "6.1", "6.1.0", &chosen(1));
        other.tell(Some(News::Begin("a b".to_owned())), "");
        drop(one);
        let running = board.running();
        let left: Vec<_> = running.iter().collect();
        assert_eq!(left, [(&("6.1", SUITES[1].name), &"a b".to_owned())]);
        drop(running);
        drop(other);
        assert!(board.running().is_empty());
    }
}
