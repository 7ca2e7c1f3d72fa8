// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel says of a program that it does not take, at a length that fits into a log.
//!
//! **Invariant:** the verifier's own words stand on lines of their own, as it wrote them: a reader
//! compares them with the kernel's sources.

use std::error::Error;
use std::fmt;

use aya::programs::ProgramError;

/// Lines of the verifier that are shown. What it objects to is at the end, and what it knew of the
/// registers right before; all of it may be megabytes.
const LINES: usize = 40;

/// Why the kernel has not taken a program.
#[derive(Debug)]
pub struct Refusal(ProgramError);

impl From<ProgramError> for Refusal {
    fn from(error: ProgramError) -> Self {
        Self(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProgramError::LoadError {
            io_error,
            verifier_log,
        } = &self.0
        else {
            return self.0.fmt(f);
        };
        write!(f, "the kernel refuses it: {io_error}")?;
        let said = verifier_log.to_string();
        let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(LINES)..];
        if !last.is_empty() {
            write!(f, "; the last lines of the verifier:")?;
        }
        last.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // That of a load is in the message, in front of the verifier's lines.
        let in_message = matches!(self.0, ProgramError::LoadError { .. });
        if in_message { None } else { self.0.source() }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::datapath::DatapathError;
    use crate::error_chain;
    use aya_obj::VerifierLog;

    fn refused(log: &str) -> String {
        let error = ProgramError::LoadError {
            io_error: std::io::Error::from_raw_os_error(13),
            verifier_log: VerifierLog::new(log.to_owned()),
        };
        error_chain(&DatapathError::refused("lb_clock", error))
    }

    #[test]
    fn the_words_of_the_verifier_stand_on_lines_of_their_own() {
        assert_eq!(
            refused("0: R1=ctx() R10=fp0\n0: (95) exit\nR0 !read_ok\n"),
            "load program lb_clock: the kernel refuses it: Permission denied (os error 13); the \
             last lines of the verifier:\n    0: R1=ctx() R10=fp0\n    0: (95) exit\n    R0 !read_ok"
        );
    }

    #[test]
    fn of_a_long_log_the_end_is_shown() {
        let mut log = String::new();
        for line in 0..100_000 {
            writeln!(log, "{line}: r0 = 0").unwrap();
        }
        let shown = refused(&(log + "R0 !read_ok\n"));
        assert_eq!(shown.lines().count(), 1 + LINES);
        assert!(shown.ends_with("\n    99999: r0 = 0\n    R0 !read_ok"));
    }

    #[test]
    fn without_words_of_the_verifier_the_error_number_is_all() {
        let shown = refused("");
        assert!(shown.ends_with("the kernel refuses it: Permission denied (os error 13)"));
    }

    #[test]
    fn other_errors_are_told_as_they_are() {
        let error = DatapathError::refused("lb_clock", ProgramError::NotLoaded);
        let told = ProgramError::NotLoaded.to_string();
        assert_eq!(
            error_chain(&error),
            format!("load program lb_clock: {told}")
        );
    }
}
