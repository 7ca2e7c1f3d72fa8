// SPDX-License-Identifier: MIT OR Apache-2.0
//! What runs in a machine: test programs, and which of their tests.
//!
//! **Invariant:** what a word selects is found by the program's own list, so a test that was renamed
//! or removed is an error here and not a test less.
//! Read next: report.rs, what machines say of these.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::builds::Build;
use crate::process::command;

/// A test program in a machine.
pub(super) struct Suite {
    pub(super) package: &'static str,
    /// The program.
    pub(super) name: &'static str,
    /// Which of its tests.
    pub(super) rows: &'static [Row],
    /// Whether one process runs them all: they share what takes long to load.
    pub(super) together: bool,
    /// How long a process may take, in seconds.
    pub(super) limit_secs: u32,
}

/// A row of the table: the tests whose names begin so.
pub(super) struct Row {
    pub(super) label: &'static str,
    begins: &'static str,
    when: When,
}

/// Where the tests of a row run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// Only where there is time for everything.
    Whole,
    /// Only where there is not.
    Quick,
}

const fn always(label: &'static str, begins: &'static str) -> Row {
    Row {
        label,
        begins,
        when: When::Always,
    }
}

const fn whole(label: &'static str, begins: &'static str) -> Row {
    Row {
        label,
        begins,
        when: When::Whole,
    }
}

const fn quick(label: &'static str, begins: &'static str) -> Row {
    Row {
        label,
        begins,
        when: When::Quick,
    }
}

/// In the order in which they run: what the others rest on comes first.
pub(super) const SUITES: [Suite; 5] = [
    Suite {
        package: "lb-agent",
        name: "verifier",
        rows: &[
            always("verifier gate", "every_program_loads"),
            always("what a refusal says", "refused::"),
            always("features are found", "features::"),
        ],
        together: false,
        limit_secs: 600,
    },
    Suite {
        package: "lb-agent",
        name: "packets",
        rows: &[quick("packets, one flow", "life::"), whole("packets", "")],
        together: true,
        limit_secs: 1200,
    },
    Suite {
        package: "lb-agent",
        name: "attach",
        rows: &[
            whole("clsact, beside others", "foreign::without_tcx"),
            whole(
                "clsact, growing maps",
                "grow::maps_grow_under_traffic_with_clsact",
            ),
            whole("clsact, cleanup", "cleanup::filters_go"),
            whole("a namespace learned", "sockets::a_namespace_is_learned"),
            whole("locked memory", "rights::memory_that_may_not"),
        ],
        together: false,
        limit_secs: 900,
    },
    Suite {
        package: "lb-lab",
        name: "e2e",
        rows: &[
            always("everything once, and a restart", "brief::"),
            whole(
                "ClusterIP, checksums, routed veths",
                "clusterip::routed_veths_by_routes::both_sides",
            ),
            whole(
                "NodePort with SNAT, bridge and vxlan",
                "nodeport::bridge_with_br_netfilter_by_vxlan::a_node_port",
            ),
            whole(
                "hairpin, bridge and vxlan",
                "nodeport::bridge_with_br_netfilter_by_vxlan::a_pod",
            ),
            whole(
                "reject, bridge and vxlan",
                "nodeport::bridge_with_br_netfilter_by_vxlan::clients_are",
            ),
            whole(
                "socket hooks, routed veths",
                "sockets::addresses::routed_veths_by_routes::",
            ),
            whole("socket hooks, pods", "pod_sockets::pods_are_led"),
        ],
        together: false,
        limit_secs: 900,
    },
    Suite {
        package: "lb-lab",
        name: "vm",
        rows: &[whole("SCTP", "sctp::"), whole("VLAN", "vlan::")],
        together: false,
        limit_secs: 900,
    },
];

/// A test that runs in a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) suite: &'static str,
    pub(super) name: String,
}

impl Test {
    /// As reports name it.
    pub(super) fn full_name(&self) -> String {
        format!("{} {}", self.suite, self.name)
    }
}

/// What is chosen of a suite.
pub(super) struct Chosen {
    pub(super) suite: &'static Suite,
    pub(super) program: PathBuf,
    /// The rows that its tests are shown in.
    pub(super) rows: Vec<&'static Row>,
    pub(super) tests: Vec<Test>,
}

/// Which tests.
#[derive(Clone, Copy)]
pub(super) struct Wish<'a> {
    /// Those for where time is short.
    pub(super) quick: bool,
    /// Only those whose names contain this.
    pub(super) only: Option<&'a str>,
}

/// The suites with a test for the wish.
pub(super) fn choose(build: &Build, wish: Wish<'_>) -> Result<Vec<Chosen>> {
    let mut chosen = Vec::new();
    for suite in &SUITES {
        let program = build.program(suite)?.to_path_buf();
        let tests = suite.select(&names(&program)?, wish)?;
        if !tests.is_empty() {
            chosen.push(Chosen {
                suite,
                program,
                rows: suite.rows_for(wish).collect(),
                tests,
            });
        }
    }
    match wish.only {
        Some(word) if chosen.is_empty() => {
            bail!("no test for machines has `{word}` in its name")
        }
        _ => Ok(chosen),
    }
}

impl Row {
    pub(super) fn has(&self, test: &Test) -> bool {
        test.name.starts_with(self.begins)
    }
}

impl Suite {
    fn rows_for(&'static self, wish: Wish<'_>) -> impl Iterator<Item = &'static Row> {
        let not_now = if wish.quick { When::Whole } else { When::Quick };
        self.rows.iter().filter(move |row| row.when != not_now)
    }

    fn select(&'static self, names: &[String], wish: Wish<'_>) -> Result<Vec<Test>> {
        for row in self.rows {
            if !names.iter().any(|name| name.starts_with(row.begins)) {
                bail!("no test of {} begins with `{}`", self.name, row.begins);
            }
        }
        let wanted = |name: &&String| {
            self.rows_for(wish).any(|row| {
                let fits = |word| name.contains(word) || self.name == word || row.label == word;
                name.starts_with(row.begins) && wish.only.is_none_or(fits)
            })
        };
        let tests = names.iter().filter(wanted).map(|name| Test {
            suite: self.name,
            name: name.clone(),
        });
        Ok(tests.collect())
    }
}

/// The tests that a program has, by its own list.
fn names(program: &Path) -> Result<Vec<String>> {
    let mut list = command(program);
    let output = list.args(["--list", "--format", "terse"]).output();
    let output = output.with_context(|| format!("start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = listed(&text);
    if names.is_empty() {
        bail!("{} lists no test", program.display());
    }
    Ok(names)
}

/// The names in lines `NAME: test`.
fn listed(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    static SUITE: Suite = Suite {
        package: "p",
        name: "s",
        rows: &[whole("A", "a::"), always("C", "b::c"), quick("D", "b::d")],
        together: false,
        limit_secs: 1,
    };
    const ALL: Wish<'_> = Wish {
        quick: false,
        only: None,
    };

    fn selected(wish: Wish<'_>) -> Vec<String> {
        let names = listed("a::x: test\na::y: test\nb::c: test\nb::d: test\n\n4 tests\n");
        let tests = SUITE.select(&names, wish).unwrap();
        tests.into_iter().map(|test| test.name).collect()
    }

    #[test]
    fn the_beginnings_of_names_and_a_word_select() {
        assert_eq!(selected(ALL), ["a::x", "a::y", "b::c"]);
        let short = Wish { quick: true, ..ALL };
        assert_eq!(selected(short), ["b::c", "b::d"]);
        let only = Wish {
            only: Some("y"),
            ..ALL
        };
        assert_eq!(selected(only), ["a::y"]);
        for (word, tests) in [("s", 3), ("A", 2), ("z", 0)] {
            let suite = Wish {
                only: Some(word),
                ..ALL
            };
            assert_eq!(selected(suite).len(), tests, "{word}");
        }
    }

    #[test]
    fn a_beginning_without_a_test_is_an_error() {
        let names = listed("a::x: test\n");
        let error = SUITE.select(&names, ALL).unwrap_err();
        assert!(error.to_string().contains("b::c"), "{error}");
    }
}
