// SPDX-License-Identifier: MIT OR Apache-2.0
//! The blessed numbers: one row per kernel release and program.
//!
//! What the verifier walks differs between kernels, so each has rows of its own; a kernel without
//! any is not compared.
//! **Invariant:** the file is sorted and written in one way only, so that a diff shows growth.

use std::collections::BTreeMap;
use std::fmt;

/// Verified instructions may grow by this much before somebody has to look.
const GROWTH_PERCENT: u64 = 10;

const HEADER: &str = "\
# What the programs cost on the kernels they were tried on: instructions the verifier walked, and
# bytes of stack along the deepest chain of calls. Written by the verifier test under LB_BLESS=1.
";

/// One program's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) program: String,
    pub(crate) verified: u32,
    pub(crate) stack: u32,
}

/// The whole file: (kernel, program) → (verified instructions, bytes of stack).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Budget(BTreeMap<(String, String), (u32, u32)>);

impl Budget {
    pub(crate) fn parse(text: &str) -> Self {
        let rows = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                let [kernel, program, verified, stack] = fields[..] else {
                    panic!("a row of the budget has four fields: {line:?}");
                };
                let number = |field: &str| field.parse().expect("a number in the budget");
                (
                    (kernel.to_owned(), program.to_owned()),
                    (number(verified), number(stack)),
                )
            });
        Self(rows.collect())
    }

    /// True when the kernel was ever blessed.
    pub(crate) fn knows(&self, kernel: &str) -> bool {
        self.0.keys().any(|(of, _)| of == kernel)
    }

    /// Replaces all rows of a kernel.
    pub(crate) fn bless(&mut self, kernel: &str, rows: &[Row]) {
        self.0.retain(|(of, _), _| of != kernel);
        for row in rows {
            let key = (kernel.to_owned(), row.program.clone());
            self.0.insert(key, (row.verified, row.stack));
        }
    }

    /// What is worse than blessed, one sentence each.
    pub(crate) fn compare(&self, kernel: &str, rows: &[Row]) -> Vec<String> {
        let mut wrong = Vec::new();
        for Row {
            program,
            verified,
            stack,
        } in rows
        {
            let Some((verified_then, stack_then)) =
                self.0.get(&(kernel.to_owned(), program.clone()))
            else {
                wrong.push(format!(
                    "{program} has no row in the budget (LB_BLESS=1 adds it)"
                ));
                continue;
            };
            if u64::from(*verified) * 100 > u64::from(*verified_then) * (100 + GROWTH_PERCENT) {
                wrong.push(format!(
                    "{program}: verified instructions grew from {verified_then} to {verified}"
                ));
            }
            if stack > stack_then {
                wrong.push(format!(
                    "{program}: stack grew from {stack_then} to {stack} bytes"
                ));
            }
        }
        for (of, program) in self.0.keys() {
            if of == kernel && !rows.iter().any(|row| row.program == *program) {
                wrong.push(format!("{program} is in the budget and not in the object"));
            }
        }
        wrong
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEADER)?;
        writeln!(
            f,
            "#{:<6} {:<20} {:>9} {:>6}",
            "kernel", "program", "verified", "stack"
        )?;
        for ((kernel, program), (verified, stack)) in &self.0 {
            writeln!(f, "{kernel:<7} {program:<20} {verified:>9} {stack:>6}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(program: &str, verified: u32, stack: u32) -> Row {
        Row {
            program: program.to_owned(),
            verified,
            stack,
        }
    }

    fn blessed() -> Budget {
        let mut budget = Budget::default();
        budget.bless("6.18", &[row("a", 1000, 320), row("b", 50, 32)]);
        budget
    }

    #[test]
    fn text_survives_writing_and_reading() {
        assert_eq!(Budget::parse(&blessed().to_string()), blessed());
    }

    #[test]
    fn ten_percent_more_instructions_pass_and_one_beyond_fails() {
        let fine = [row("a", 1100, 320), row("b", 50, 32)];
        assert!(blessed().compare("6.18", &fine).is_empty());
        let grown = [row("a", 1101, 320), row("b", 50, 32)];
        assert_eq!(blessed().compare("6.18", &grown).len(), 1);
    }

    #[test]
    fn any_growth_of_the_stack_fails_and_shrinking_does_not() {
        let grown = [row("a", 1000, 352), row("b", 50, 32)];
        assert_eq!(blessed().compare("6.18", &grown).len(), 1);
        let shrunk = [row("a", 10, 64), row("b", 50, 32)];
        assert!(blessed().compare("6.18", &shrunk).is_empty());
    }

    #[test]
    fn program_without_a_row_and_row_without_a_program_fail() {
        let other = [row("a", 1000, 320), row("c", 1, 32)];
        assert_eq!(blessed().compare("6.18", &other).len(), 2);
    }

    #[test]
    fn blessing_one_kernel_keeps_the_others() {
        let mut budget = blessed();
        budget.bless("6.1", &[row("a", 900, 320)]);
        assert!(budget.knows("6.18") && budget.knows("6.1") && !budget.knows("6.12"));
    }
}
