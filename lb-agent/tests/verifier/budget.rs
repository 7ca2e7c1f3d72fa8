// SPDX-License-Identifier: MIT OR Apache-2.0
//! The blessed numbers: one row per kernel release and program.
//!
//! What the verifier walks differs between kernels, so each has rows of its own. xtask includes this
//! file, too, and writes what tests in virtual machines print.
//! **Invariant:** the file is sorted and written in one way only, so that a diff shows growth.

use std::collections::BTreeMap;
use std::fmt;

/// What the verifier counts may grow by this much before somebody has to look.
const GROWTH_PERCENT: u64 = 10;
/// What a row begins with in the output of a test.
const PRINTED: &str = "BUDGET";
/// What to type when numbers have grown and that is meant.
const HOW: &str = "`cargo xtask bless verifier --reason \"...\"`, or, where that was in a virtual \
                   machine, `cargo xtask test vm --bless --reason \"...\"`";

// The verifier's own list of stacks (`stack depth 320+64+0`) names every function once, in the
// order of their code: not who calls whom, so it gives no depth; and how it rounds frames differs
// between kernels. The deepest chain is what the kernel limits, and is the same on all of them.
const HEADER: &str = "\
# What the programs cost on the kernels they were tried on: instructions that the verifier walked,
# states that it kept, and bytes of stack along the deepest chain of calls; then why they last grew.
# Written by `cargo xtask bless verifier`.
";

/// One program's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) program: String,
    pub(crate) verified: u32,
    pub(crate) states: u32,
    pub(crate) stack: u32,
}

/// The whole file: (kernel, program) → numbers, and why they last grew.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Budget(BTreeMap<(String, String), (Row, Option<String>)>);

impl Row {
    /// The row as a test prints it, on a line of its own.
    pub(crate) fn printed(&self, kernel: &str) -> String {
        let Self {
            program,
            verified,
            states,
            stack,
        } = self;
        format!("{PRINTED} {kernel} {program} {verified} {states} {stack}")
    }

    /// Kernel and numbers of `kernel program verified states stack`.
    fn parse(text: &str) -> Result<(String, Self), String> {
        let fields: Vec<_> = text.split_whitespace().collect();
        let [kernel, program, verified, states, stack] = fields[..] else {
            return Err(format!("a row of the budget has five fields: {text:?}"));
        };
        let number = |field: &str| {
            let error = |error| format!("{field:?} in the budget is no number: {error}");
            field.parse().map_err(error)
        };
        let row = Self {
            program: program.to_owned(),
            verified: number(verified)?,
            states: number(states)?,
            stack: number(stack)?,
        };
        Ok((kernel.to_owned(), row))
    }

    /// The smaller one of each number.
    fn least(&self, then: &Self) -> Self {
        Self {
            program: self.program.clone(),
            verified: self.verified.min(then.verified),
            states: self.states.min(then.states),
            stack: self.stack.min(then.stack),
        }
    }

    /// What has grown too much since `then`, one sentence each.
    fn growth(&self, then: &Self) -> Vec<String> {
        let grown =
            |then: u32, now: u32| u64::from(now) * 100 > u64::from(then) * (100 + GROWTH_PERCENT);
        let counts = [
            ("verified instructions", then.verified, self.verified),
            ("states", then.states, self.states),
        ];
        let mut sentences: Vec<_> = counts
            .into_iter()
            .filter(|(_, then, now)| grown(*then, *now))
            .map(|(what, then, now)| format!("{}: {what} grew from {then} to {now}", self.program))
            .collect();
        if self.stack > then.stack {
            sentences.push(format!(
                "{}: stack grew from {} to {} bytes",
                self.program, then.stack, self.stack
            ));
        }
        sentences
    }
}

/// Rows among other output, as `Row::printed` writes them, by kernel. Whatever is in front of them
/// on their lines is the serial line's or the test runner's.
pub(crate) fn printed_rows(output: &str) -> Result<BTreeMap<String, Vec<Row>>, String> {
    let mut rows: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for line in output.lines() {
        let words = line.split_whitespace();
        let after: Vec<_> = words.skip_while(|word| *word != PRINTED).skip(1).collect();
        if !after.is_empty() {
            let (kernel, row) = Row::parse(&after.join(" "))?;
            rows.entry(kernel).or_default().push(row);
        }
    }
    Ok(rows)
}

impl Budget {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut budget = Self::default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        for line in lines.filter(|line| !line.trim().is_empty()) {
            let (numbers, reason) = match line.split_once('#') {
                Some((numbers, reason)) => (numbers, Some(reason.trim().to_owned())),
                None => (line, None),
            };
            let (kernel, row) = Row::parse(numbers)?;
            let key = (kernel, row.program.clone());
            budget.0.insert(key, (row, reason));
        }
        Ok(budget)
    }

    /// True when the kernel was ever blessed.
    pub(crate) fn knows(&self, kernel: &str) -> bool {
        self.0.keys().any(|(of, _)| of == kernel)
    }

    fn row(&self, kernel: &str, program: &str) -> Option<&(Row, Option<String>)> {
        self.0.get(&(kernel.to_owned(), program.to_owned()))
    }

    /// Replaces all rows of a kernel. What has grown takes a reason, which stays with its row until
    /// the row grows again; less growth than takes one leaves the old numbers, so that many small steps
    /// are as much as a large one.
    pub(crate) fn bless(
        &mut self,
        kernel: &str,
        rows: &[Row],
        reason: Option<&str>,
    ) -> Result<(), String> {
        let reason = reason.map(str::trim).filter(|reason| !reason.is_empty());
        if reason.is_some_and(|reason| reason.contains('\n')) {
            return Err("a reason is one line".to_owned());
        }
        let mut blessed = Vec::new();
        let mut grown = Vec::new();
        for row in rows {
            let before = self.row(kernel, &row.program);
            let growth = before.map_or(Vec::new(), |(then, _)| row.growth(then));
            let key = (kernel.to_owned(), row.program.clone());
            let value = match before {
                Some((then, why)) if growth.is_empty() => (row.least(then), why.clone()),
                Some(_) => (row.clone(), reason.map(str::to_owned)),
                None => (row.clone(), None),
            };
            grown.extend(growth);
            blessed.push((key, value));
        }
        // One whose line was lost must not come back at any size.
        grown.extend(self.gone(kernel, rows));
        if reason.is_none() && !grown.is_empty() {
            return Err(format!(
                "not blessed without a reason, on Linux {kernel}:\n{}\nsay why that is worth it: {HOW}",
                grown.join("\n")
            ));
        }
        self.0.retain(|(of, _), _| of != kernel);
        self.0.extend(blessed);
        Ok(())
    }

    /// Programs of the budget without a row.
    fn gone(&self, kernel: &str, rows: &[Row]) -> Vec<String> {
        let blessed = self.0.keys().filter(|(of, _)| of == kernel);
        blessed
            .filter(|(_, program)| !rows.iter().any(|row| row.program == *program))
            .map(|(_, program)| format!("{program} is in the budget and was not measured"))
            .collect()
    }

    /// What is worse than blessed, one sentence each.
    pub(crate) fn compare(&self, kernel: &str, rows: &[Row]) -> Vec<String> {
        let mut wrong = Vec::new();
        for row in rows {
            match self.row(kernel, &row.program) {
                Some((then, _)) => wrong.extend(row.growth(then)),
                None => wrong.push(format!("{} has no row in the budget", row.program)),
            }
        }
        wrong.extend(self.gone(kernel, rows));
        if !wrong.is_empty() {
            wrong.push(format!("if that is meant, say why: {HOW}"));
        }
        wrong
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEADER)?;
        writeln!(
            f,
            "#{:<6} {:<20} {:>9} {:>7} {:>6}",
            "kernel", "program", "verified", "states", "stack"
        )?;
        for ((kernel, program), (row, reason)) in &self.0 {
            let Row {
                verified,
                states,
                stack,
                ..
            } = row;
            write!(
                f,
                "{kernel:<7} {program:<20} {verified:>9} {states:>7} {stack:>6}"
            )?;
            if let Some(reason) = reason {
                write!(f, "  # {reason}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(program: &str, verified: u32, states: u32, stack: u32) -> Row {
        Row {
            program: program.to_owned(),
            verified,
            states,
            stack,
        }
    }

    /// A budget in which `a` has 1000 instructions, 100 states and 320 bytes of stack.
    fn blessed() -> Budget {
        let mut budget = Budget::default();
        let rows = [row("a", 1000, 100, 320), row("b", 50, 5, 32)];
        budget.bless("6.18", &rows, None).unwrap();
        budget
    }

    fn with(a: Row) -> [Row; 2] {
        [a, row("b", 50, 5, 32)]
    }

    #[test]
    fn text_survives_writing_and_reading() {
        let mut budget = blessed();
        let grown = with(row("a", 2000, 100, 320));
        let reason = Some("SCTP is masqueraded, bug #7");
        budget.bless("6.18", &grown, reason).unwrap();
        let text = budget.to_string();
        assert!(text.contains(" 320  # SCTP is masqueraded, bug #7\n"));
        assert_eq!(Budget::parse(&text), Ok(budget));
    }

    #[test]
    fn text_that_is_no_row_is_an_error() {
        assert!(Budget::parse("6.18 a 1000 320").is_err());
        assert!(Budget::parse("6.18 a 1000 many 320").is_err());
    }

    #[test]
    fn ten_percent_more_pass_and_one_beyond_fails() {
        let fine = with(row("a", 1100, 110, 320));
        assert_eq!(blessed().compare("6.18", &fine), [""; 0]);
        for grown in [row("a", 1101, 100, 320), row("a", 1000, 111, 320)] {
            let wrong = blessed().compare("6.18", &with(grown));
            assert_eq!(wrong.len(), 2, "the growth, and what to type: {wrong:?}");
            assert!(wrong[1].contains(HOW));
        }
    }

    #[test]
    fn any_growth_of_the_stack_fails_and_shrinking_does_not() {
        let grown = blessed().compare("6.18", &with(row("a", 1000, 100, 352)));
        assert_eq!(grown[0], "a: stack grew from 320 to 352 bytes");
        let shrunk = blessed().compare("6.18", &with(row("a", 10, 1, 64)));
        assert_eq!(shrunk, [""; 0]);
    }

    #[test]
    fn program_without_a_row_and_row_without_a_program_fail() {
        let other = [row("a", 1000, 100, 320), row("c", 1, 1, 32)];
        assert_eq!(blessed().compare("6.18", &other).len(), 3);
    }

    #[test]
    fn growth_is_blessed_with_a_reason_only() {
        for grown in [
            row("a", 1101, 100, 320),
            row("a", 1000, 111, 320),
            row("a", 1000, 100, 321),
        ] {
            let rows = with(grown);
            for none in [None, Some(""), Some("  ")] {
                let mut budget = blessed();
                let refused = budget.bless("6.18", &rows, none).unwrap_err();
                assert!(refused.contains("a: ") && refused.contains(HOW));
                assert_eq!(budget, blessed(), "nothing is changed");
            }
            let mut budget = blessed();
            budget.bless("6.18", &rows, Some("more is done")).unwrap();
            assert_eq!(budget.compare("6.18", &rows), [""; 0]);
        }
    }

    #[test]
    fn what_has_not_grown_is_blessed_without_a_reason() {
        let mut budget = blessed();
        let mut rows = with(row("a", 1100, 110, 64)).to_vec();
        rows.push(row("c", 9000, 90, 448));
        budget.bless("6.18", &rows, None).unwrap();
        assert_eq!(budget.compare("6.18", &rows), [""; 0]);
    }

    #[test]
    fn many_small_steps_take_a_reason_like_a_large_one() {
        let mut budget = blessed();
        budget
            .bless("6.18", &with(row("a", 1090, 109, 320)), None)
            .unwrap();
        let further = with(row("a", 1180, 118, 320));
        assert!(budget.bless("6.18", &further, None).is_err());
        budget
            .bless("6.18", &with(row("a", 900, 120, 320)), Some("other paths"))
            .unwrap();
        let less = with(row("a", 950, 80, 320));
        budget.bless("6.18", &less, None).unwrap();
        assert_eq!(
            budget.row("6.18", "a").unwrap().0,
            row("a", 900, 80, 320),
            "what it once needed is enough"
        );
    }

    #[test]
    fn a_program_goes_with_a_reason_only() {
        let rows = [row("a", 1000, 100, 320)];
        let mut budget = blessed();
        let refused = budget.bless("6.18", &rows, None).unwrap_err();
        assert!(refused.contains("b is in the budget"), "{refused}");
        budget.bless("6.18", &rows, Some("b is no more")).unwrap();
        assert_eq!(budget.compare("6.18", &rows), [""; 0]);
    }

    #[test]
    fn a_reason_is_kept_until_the_row_grows_again() {
        let mut budget = blessed();
        let reason = |budget: &Budget, program| budget.row("6.18", program).unwrap().1.clone();
        let mut grow = |stack, why| {
            let rows = with(row("a", 1000, 100, stack));
            budget.bless("6.18", &rows, why).unwrap();
            budget
                .bless("6.1", &rows, Some("of another kernel"))
                .unwrap();
            budget = Budget::parse(&budget.to_string()).unwrap();
            (reason(&budget, "a"), reason(&budget, "b"))
        };
        assert_eq!(grow(352, Some("first")), (Some("first".to_owned()), None));
        assert_eq!(grow(352, None), (Some("first".to_owned()), None));
        assert_eq!(grow(384, Some("second")), (Some("second".to_owned()), None));
        assert!(budget.bless("6.18", &[], Some("two\nlines")).is_err());
    }

    #[test]
    fn blessing_one_kernel_keeps_the_others() {
        let mut budget = blessed();
        budget.bless("6.1", &[row("a", 900, 9, 320)], None).unwrap();
        assert!(budget.knows("6.18") && budget.knows("6.1") && !budget.knows("6.12"));
    }

    #[test]
    fn printed_rows_are_found_in_other_output() {
        let rows = with(row("a", 1000, 100, 320));
        let output = format!(
            "[    7.1] booted\r\nrunning 2 tests\n[    8.2] {}\r\n{}\ntest result: ok\n{}\n",
            rows[0].printed("6.1"),
            rows[1].printed("6.1"),
            rows[0].printed("7.0"),
        );
        let found = printed_rows(&output).unwrap();
        assert_eq!(found["6.1"], rows);
        assert_eq!(found["7.0"], rows[..1]);
        assert_eq!(found.len(), 2);
        assert!(printed_rows("BUDGET 6.1 cut off").is_err());
        assert_eq!(printed_rows("a budget\nBUDGET\n").unwrap().len(), 0);
    }
}
