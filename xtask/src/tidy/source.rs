// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Rust file, line by line: what is code, what is comment, what is test.
//!
//! **Invariant:** a reading by lines, not a parser: string contents and comments are taken out of
//! code, a `#[cfg(test)]` module in rustfmt's layout ends at a lone `}`, and files under `tests` are tests.
//! Read next: rooms.rs and text.rs, which look at these lines.

/// A Rust file.
pub(super) struct Source<'a> {
    pub(super) path: &'a str,
    /// The whole file is test: it lies under `tests`, or is the body of a module of tests.
    pub(super) is_test: bool,
    pub(super) lines: Vec<Line<'a>>,
}

/// A line of a Rust file.
pub(super) struct Line<'a> {
    /// Counts from 1.
    pub(super) number: usize,
    pub(super) text: &'a str,
    /// The text without comments and without what stands in strings.
    pub(super) code: String,
    pub(super) is_test: bool,
}

impl<'a> Source<'a> {
    pub(super) fn read(path: &'a str, content: &'a str) -> Self {
        let test_file = path
            .split('/')
            .any(|part| part == "tests" || part == "benches")
            || path.ends_with("/tests.rs")
            || path.ends_with("_tests.rs");
        let all: Vec<&str> = content.lines().collect();
        let mut in_tests = false;
        let mut lines = Vec::with_capacity(all.len());
        for (index, text) in all.iter().copied().enumerate() {
            let opens = text == "#[cfg(test)]"
                && all
                    .get(index + 1)
                    .is_some_and(|l| l.contains("mod ") && l.ends_with('{'));
            in_tests |= opens;
            let is_test = test_file || in_tests;
            lines.push(Line {
                number: index + 1,
                text,
                code: code_of(text),
                is_test,
            });
            in_tests &= text != "}";
        }
        Self {
            path,
            is_test: test_file,
            lines,
        }
    }

    /// Lines of code outside tests, and in files of tests all lines of code.
    pub(super) fn code_lines(&self) -> usize {
        let counts =
            |line: &&Line<'_>| !line.code.trim().is_empty() && (self.is_test || !line.is_test);
        self.lines.iter().filter(counts).count()
    }
}

impl Line<'_> {
    /// Whether the code names this identifier, as a whole word.
    pub(super) fn names(&self, word: &str) -> bool {
        let boundary = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        self.code.match_indices(word).any(|(at, _)| {
            boundary(self.code[..at].chars().next_back())
                && boundary(self.code[at + word.len()..].chars().next())
        })
    }
}

/// A line without its comment and without what stands in its strings.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut in_string = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                chars.next();
            }
            '"' => {
                in_string = !in_string;
                code.push(c);
            }
            _ if in_string => {}
            // A character literal of a quote or a slash is not the start of anything.
            '\'' if chars.peek().is_some_and(|next| ['"', '/'].contains(next)) => {
                chars.next();
                chars.next_if_eq(&'\'');
            }
            '/' if chars.peek() == Some(&'/') => break,
            _ => code.push(c),
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        assert_eq!(
            code_of("let a = \"unsafe // \\\" x\"; // unsafe"),
            "let a = \"\"; "
        );
        assert_eq!(code_of("    /// unsafe").trim(), "");
        assert_eq!(code_of("split('/') // x").trim(), "split()");
    }

    #[test]
    fn a_module_of_tests_ends_at_its_brace() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
        let source = Source::read("lb-common/src/a.rs", text);
        let tests: Vec<bool> = source.lines.iter().map(|line| line.is_test).collect();
        assert_eq!(tests, [false, true, true, true, true, false]);
        assert_eq!(source.code_lines(), 2);
    }

    #[test]
    fn a_word_is_named_only_as_a_whole() {
        let source = Source::read("a.rs", "#![forbid(unsafe_code)]\nunsafe { x() }\n");
        assert!(!source.lines[0].names("unsafe"));
        assert!(source.lines[1].names("unsafe"));
    }
}
