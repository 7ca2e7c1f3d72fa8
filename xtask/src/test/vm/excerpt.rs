// SPDX-License-Identifier: MIT OR Apache-2.0
//! What of a machine's log a person wants to see when something failed.
//!
//! **Invariant:** of a failed test its own words, not those of whatever ran last.
//! Read next: run.sh, which begins and ends the sections.

use super::report::TOGETHER;

/// Lines of each part that are shown: with what libtest says around it, as much of the verifier's words
/// as a refusal has.
const LINES: usize = 40;
/// Parts that are shown.
const PARTS: usize = 10;
/// How a kernel begins to tell that it broke, after the time; what is before that may be anybody's.
const MARKS: [&str; 6] = [
    "] BUG: ",
    "] kernel BUG at ",
    "] watchdog: BUG: ",
    "] Oops: ",
    // Older kernels name the trap alone.
    " [#1] ",
    "] Kernel panic ",
];

/// A part of a log, and what it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) head: String,
    pub(super) lines: Vec<&'a str>,
}

/// Where the kernel first says that it broke: what follows from that is often longer than the end.
pub(super) fn oops(log: &str) -> Option<Part<'_>> {
    let breaks = |line: &&str| MARKS.iter().any(|mark| line.contains(mark));
    let mut lines = log.lines().skip_while(|line| !breaks(line)).peekable();
    lines.peek()?;
    Some(Part {
        head: "where its kernel broke".to_owned(),
        lines: lines.take(LINES).collect(),
    })
}

/// The end of the whole log.
pub(super) fn end_of_all(log: &str) -> Part<'_> {
    Part {
        head: "the end of its serial line".to_owned(),
        lines: end(log.lines()),
    }
}

/// The ends of what failed tests of a program said, each in a process of its own.
pub(super) fn of_each<'a>(log: &'a str, program: &str, failed: &[&str]) -> Vec<Part<'a>> {
    let part = |name: &&str| Part {
        head: format!("the end of what {program} {name} said"),
        lines: end(section(log, program, name).into_iter()),
    };
    failed.iter().take(PARTS).map(part).collect()
}

/// The end of what a failed test said in a process with others: libtest shows that after all of them.
pub(super) fn of_together<'a>(log: &'a str, program: &str, failed: &str) -> Part<'a> {
    let lines = section(log, program, TOGETHER);
    let mark = format!("---- {failed} stdout ----");
    let Some(start) = lines.iter().position(|line| *line == mark) else {
        return Part {
            head: format!("the end of what {program} said, which shows nothing of {failed}"),
            lines: end(lines.into_iter()),
        };
    };
    let of_test = lines.into_iter().skip(start + 1);
    let of_test = of_test.take_while(|line| {
        let next = line.starts_with("---- ") && line.ends_with(" stdout ----");
        !next && *line != "failures:"
    });
    Part {
        head: format!("the end of what {program} {failed} said"),
        lines: end(of_test),
    }
}

/// The lines between the beginning and the result of a process.
fn section<'a>(log: &'a str, program: &str, name: &str) -> Vec<&'a str> {
    let (begin, result) = (
        format!("VM-BEGIN {program} {name}"),
        format!("VM-RESULT {program} {name} "),
    );
    // Something else may have written to these lines without ending them.
    let after = log.lines().skip_while(|line| !line.ends_with(&begin));
    after
        .skip(1)
        .take_while(|line| !line.contains(&result))
        .collect()
}

/// The last lines that say something; numbers that passed are not why a test failed.
fn end<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let says = |line: &&str| !line.trim().is_empty() && !line.contains("BUDGET ");
    let lines: Vec<&str> = lines.filter(says).collect();
    lines[lines.len().saturating_sub(LINES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_program_is_shown_in_the_words_of_the_verifier() {
        let verifier: Vec<String> = (0..30).map(|at| format!("{at}: (b7) r0 = 0")).collect();
        let log = format!(
            "VM-UP 1.0 6.1\nVM-BEGIN verifier a\nof another\nVM-RESULT verifier a 0 1.0 2.0\n\
             [ 2.0] a kernelVM-BEGIN verifier b\nearly\nBUDGET 6.1 lb_clock 2 0 32\n{}\n\
             R1 type=inv expected=map_ptr\n\ntest result: FAILED. 0 passed\n\
             VM-RESULT verifier b 101 2.0 3.0\nVM-BEGIN verifier c\n{}\n\
             VM-RESULT verifier c 0 3.0 4.0\nVM-END 5.0\n",
            verifier.join("\n"),
            "later\n".repeat(100)
        );
        let parts = of_each(&log, "verifier", &["b"]);
        assert_eq!(parts.len(), 1);
        let lines = &parts[0].lines;
        assert_eq!(lines[..2], ["early", "0: (b7) r0 = 0"]);
        assert!(lines.contains(&"R1 type=inv expected=map_ptr"));
        assert_eq!(lines.last(), Some(&"test result: FAILED. 0 passed"));
        assert_eq!(end_of_all(&log).lines.last(), Some(&"VM-END 5.0"));
        assert_eq!(end_of_all(&log).lines.len(), LINES);
    }

    #[test]
    fn a_broken_kernel_is_shown_from_where_it_broke() {
        let log = format!(
            "[ 1.0] x86: fine\nBooting from ROM..[ 2.1] Oops: int3: 0000 [#1] SMP NOPTI\n{}[ 2.3] Kernel panic - end\n",
            "[ 2.2]  a function\n".repeat(50)
        );
        let lines = oops(&log).unwrap().lines;
        assert_eq!(
            lines[0],
            "Booting from ROM..[ 2.1] Oops: int3: 0000 [#1] SMP NOPTI"
        );
        assert_eq!(lines.len(), LINES);
        let older = "[ 1.0] fine\n[ 2.1] int3: 0000 [#1] SMP NOPTI\n[ 2.3] Kernel panic - end\n";
        assert_eq!(oops(older).unwrap().lines.len(), 2);
        let short = "[ 2.3] Kernel panic - not syncing: no init\n[ 2.4] Rebooting\n";
        assert_eq!(oops(short).unwrap().lines.len(), 2);
        assert_eq!(oops("[ 1.0] fine\na test says BUG: none\n"), None);
    }

    #[test]
    fn of_many_failures_some_are_shown() {
        let log = "VM-BEGIN vm a\nwords\nVM-RESULT vm a 1 1.0 2.0\n";
        assert_eq!(of_each(log, "vm", &["a"; 30]).len(), PARTS);
        // A name that another one begins with is not that.
        assert!(of_each(log, "vm", &["aa"])[0].lines.is_empty());
    }

    #[test]
    fn of_a_process_with_many_tests_the_failed_one_is_shown() {
        let log = "VM-BEGIN packets -\ntest a ... FAILED\ntest b ... FAILED\n\nfailures:\n\n\
                   ---- a stdout ----\nof a\n\n---- b stdout ----\nof b\n\n\
                   failures:\n    a\n    b\n\nVM-RESULT packets - 101 1.0 2.0\n";
        assert_eq!(of_together(log, "packets", "a").lines, ["of a"]);
        assert_eq!(of_together(log, "packets", "b").lines, ["of b"]);
        let killed = "VM-BEGIN packets -\ntest a ... FAILED\nVM-RESULT packets - 137 1.0 2.0\n";
        let part = of_together(killed, "packets", "a");
        assert_eq!(part.lines, ["test a ... FAILED"]);
        assert!(part.head.contains("nothing"));
    }
}
