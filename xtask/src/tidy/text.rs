// SPDX-License-Identifier: MIT OR Apache-2.0
//! How text is written: licence lines, headers, lengths, words.
//!
//! **Invariant:** patterns that this file forbids are written in two pieces here, so that the file
//! itself passes.
//! Read next: mod.rs.

use super::Violation;
use super::source::{Line, Source};

/// Lines of code that a file may have, tests and comments not counted.
const CODE_LINES_MAX: usize = 400;
/// Lines of the header that opens each file.
const HEADER_LINES_MIN: usize = 3;
/// The same of a file that is part of a test: one sentence says what it tests.
const TEST_HEADER_LINES_MIN: usize = 1;
/// Files with a licence line, by the ends of their names.
const LICENSED: [&str; 6] = [".rs", ".toml", ".yml", ".sh", ".cargo/cc", ".ci/run"];

/// Marks of unfinished work.
const UNFINISHED: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
];
/// Paths of one machine.
const PATHS: [&str; 3] = [
    concat!("/wo", "rk/"),
    concat!("/tmp/", "target"),
    concat!("/home/", "user"),
];
/// Words that mean something else here, with the word to use.
const WORDS: [(&str, &str); 5] = [
    (concat!("xl", "ate"), "rewrite"),
    (concat!("rev_", "nat"), "reverse DNAT"),
    (concat!("rev", "nat"), "reverse DNAT"),
    (concat!("sti", "cky"), "affinity"),
    (concat!("ups", "tream"), "backend"),
];

/// What every text file must keep to.
pub(super) fn check(path: &str, content: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut say = |line: usize, sentence: String| {
        violations.push(Violation {
            path: path.to_owned(),
            line,
            sentence,
        });
    };
    let licensed = LICENSED.iter().any(|end| path.ends_with(end));
    if licensed
        && !content
            .lines()
            .take(3)
            .any(|line| line.contains("SPDX-License-Identifier: "))
    {
        say(
            1,
            "no SPDX line: the licence stands at the top of each file".to_owned(),
        );
    }
    for (index, line) in content.lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| line.contains(*word)) {
            say(
                index + 1,
                format!("`{word}`: finish it, or say in a full sentence what is missing"),
            );
        }
        for word in PATHS.iter().filter(|word| line.contains(*word)) {
            say(index + 1, format!("`{word}` is a path of one machine"));
        }
        if line.ends_with(' ') || line.ends_with('\t') {
            say(index + 1, "white space at the end of the line".to_owned());
        }
    }
    if !content.is_empty() && !content.ends_with('\n') {
        say(
            content.lines().count(),
            "no newline at the end of the file".to_owned(),
        );
    }
    violations
}

/// What Rust files must keep to beyond that.
pub(super) fn check_source(source: &Source<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut say = |line: usize, sentence: String| {
        violations.push(Violation {
            path: source.path.to_owned(),
            line,
            sentence,
        });
    };
    let code_lines = source.code_lines();
    if code_lines > CODE_LINES_MAX {
        say(
            1,
            format!("{code_lines} lines of code: a file has at most {CODE_LINES_MAX}"),
        );
    }
    let header = source
        .lines
        .iter()
        .filter(|line| line.text.starts_with("//!"))
        .count();
    let front_page = source
        .lines
        .iter()
        .any(|line| line.text.starts_with("#![doc = include_str!"));
    let least = if source.is_test {
        TEST_HEADER_LINES_MIN
    } else {
        HEADER_LINES_MIN
    };
    if header < least && !front_page {
        let what = "say purpose, invariants, what to read next";
        say(
            1,
            format!("{header} lines of `//!`: at least {least} {what}"),
        );
    }
    for line in &source.lines {
        if let Some(sentence) = attribute(line) {
            say(line.number, sentence);
        }
        for (word, instead) in WORDS {
            let found = line.text.to_lowercase().contains(word);
            if found && !line.text.contains("://") {
                say(line.number, format!("`{word}`: the word here is {instead}"));
            }
        }
    }
    violations
}

fn attribute(line: &Line<'_>) -> Option<String> {
    let code = line.code.trim_start();
    if code.starts_with("#[ignore") {
        return Some("an ignored test is no test: assert what is true today".to_owned());
    }
    let bare = code.starts_with("#[allow(") || code.starts_with("#![allow(");
    bare.then(|| "`allow`: write #[expect(lint, reason = \"...\")]".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "// SPDX-License-Identifier: MIT\n//! a\n//! b\n//! c\n";

    fn sentences(text: &str) -> Vec<String> {
        let source = Source::read("a/src/b.rs", text);
        let both = check("a/src/b.rs", text)
            .into_iter()
            .chain(check_source(&source));
        both.map(|violation| violation.to_string()).collect()
    }

    #[test]
    fn a_file_in_order_breaks_nothing() {
        assert_eq!(sentences(HEADER), [""; 0]);
    }

    #[test]
    fn a_file_opens_with_licence_and_header() {
        let found = sentences("fn a() {}\n");
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("a/src/b.rs:1: no SPDX line"));
        assert!(found[1].starts_with("a/src/b.rs:1: 0 lines of `//!`"));
    }

    #[test]
    fn a_file_has_at_most_four_hundred_lines_of_code() {
        let code = "let a = 1;\n\n// comment\n".repeat(400);
        assert_eq!(sentences(&format!("{HEADER}{code}")), [""; 0]);
        let found = sentences(&format!("{HEADER}{code}let b = 2;\n"));
        assert_eq!(
            found,
            ["a/src/b.rs:1: 401 lines of code: a file has at most 400"]
        );
    }

    #[test]
    fn ignored_tests_and_bare_allows_are_named_by_line() {
        let text = format!("{HEADER}#[ignore]\n#[allow(dead_code)]\nlet a = \"#[allow(x)]\";\n");
        let found = sentences(&text);
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("a/src/b.rs:5: an ignored test"));
        assert!(found[1].starts_with("a/src/b.rs:6: `allow`"));
    }

    #[test]
    fn unfinished_work_and_paths_of_one_machine_are_found() {
        let text = format!(
            "{HEADER}// {}: later\n// see {}x\n",
            UNFINISHED[0], PATHS[0]
        );
        assert_eq!(sentences(&text).len(), 2);
    }
}
