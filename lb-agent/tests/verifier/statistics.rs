// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the verifier says about its own work, read from the end of its log.
//!
//! **Invariant:** numbers are found by the words beside them, because kernels add some and drop
//! others; one that is not there is an error.

/// How many lines a reader gets of the log of a program that is refused.
const LAST_LINES: usize = 40;

/// The verifier's work on one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Instructions that it walked, on all paths.
    pub(crate) verified: u32,
    /// States that it kept to compare others with.
    pub(crate) states: u32,
    /// Bytes of stack of each function: `320+64+0`. Not who calls whom.
    pub(crate) stacks: String,
}

impl Statistics {
    /// Reads the log of level `BPF_LOG_STATS`.
    pub(crate) fn parse(log: &str) -> Result<Self, String> {
        let number = |before: &str| {
            let words = log.split_whitespace();
            let mut after = words.skip_while(|word| *word != before).skip(1);
            let number = after.next().and_then(|word| word.parse().ok());
            number.ok_or_else(|| format!("the verifier tells no {before:?}:\n{log}"))
        };
        let stacks = log
            .lines()
            .find_map(|line| line.strip_prefix("stack depth "));
        Ok(Self {
            verified: number("processed")?,
            states: number("total_states")?,
            stacks: stacks.unwrap_or("?").trim().to_owned(),
        })
    }
}

/// The end of a log, where the verifier says what it objects to, one line each.
pub(crate) fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_logs_of_old_and_new_kernels() {
        let old = "verification time 123 usec\nstack depth 320+64+0\nprocessed 209013 insns \
                   (limit 1000000) max_states_per_insn 40 total_states 9000 peak_states 3000 \
                   mark_read 100\n";
        let read = Statistics {
            verified: 209_013,
            states: 9000,
            stacks: "320+64+0".to_owned(),
        };
        assert_eq!(Statistics::parse(old), Ok(read.clone()));
        let new = old
            .replace(" mark_read 100", "")
            .replace("stack", "jumps 7\nstack");
        assert_eq!(Statistics::parse(&new), Ok(read));
    }

    #[test]
    fn a_number_that_is_missing_is_an_error_with_the_log() {
        let error = Statistics::parse("processed many insns\n").unwrap_err();
        assert!(error.contains("processed") && error.contains("many insns\n"));
    }

    #[test]
    fn of_a_log_the_end_is_shown() {
        let lines: Vec<_> = (0..100).map(|line: u8| line.to_string()).collect();
        let log = lines.join("\n") + "\n";
        let shown = last_lines(&log);
        assert_eq!(shown.lines().count(), LAST_LINES);
        assert!(shown.starts_with("60\n") && shown.ends_with("\n99"));
        assert_eq!(last_lines("one"), "one");
    }
}
