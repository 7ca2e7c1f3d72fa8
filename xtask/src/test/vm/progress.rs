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

/// What all machines share: the last line of the terminal.
pub(super) struct Board {
    /// What is running, by kernel.
    running: Mutex<BTreeMap<&'static str, String>>,
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

    fn running(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what a kernel is at now, nothing if it has ended, and a line that stays, if there is one.
    fn show(&self, kernel: &'static str, now: Option<String>, line: Option<&str>) {
        let mut running = self.running();
        match now {
            Some(now) => drop(running.insert(kernel, now)),
            None => drop(running.remove(kernel)),
        }
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        if let Some(line) = line {
            eprintln!("  {kernel:<5} {line}");
        }
        if self.terminal && !running.is_empty() {
            let all: Vec<_> = running
                .iter()
                .map(|(of, now)| format!("{of}: {now}"))
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
    kernel: &'static str,
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
        let line = format!("{version}, {}: {tests} tests ...", suite.name);
        board.show(kernel, Some("boots".to_owned()), Some(&line));
        Self {
            board,
            kernel,
            processes: if suite.together { 1 } else { tests },
            begun: 0,
            ones: 0,
            running: String::new(),
        }
    }

    pub(super) fn tell(&mut self, news: Option<News>, line: &str) {
        if self.board.loud {
            eprintln!("  {:<5} | {line}", self.kernel);
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
            .show(self.kernel, Some(self.at()), line.as_deref());
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
        self.board.show(self.kernel, None, None);
    }
}
