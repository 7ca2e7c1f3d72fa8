// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which room may name what: the dependency rules between modules, as a table.
//!
//! **Invariant:** each rule says why, in the sentence that a violation prints. Tests may name what
//! they like: they look at a room from outside.
//! Read next: manifest.rs, the same between crates.

use super::Violation;
use super::source::{Line, Source};

/// Words that may be named only in, or nowhere in, some files.
struct Rule {
    /// Paths that start so are under the rule.
    scope: &'static [&'static str],
    /// Paths that start so are exempt.
    except: &'static [&'static str],
    /// Identifiers, or paths like `crate::source`.
    words: &'static [&'static str],
    why: &'static str,
}

const PURE: &[&str] = &[
    "lb-agent/src/model",
    "lb-agent/src/plan",
    "lb-agent/src/diff",
];

const RULES: &[Rule] = &[
    Rule {
        scope: &["lb-agent/src/"],
        except: &["lb-agent/src/source"],
        words: &["kube", "k8s_openapi"],
        why: "only lb-agent/src/source speaks Kubernetes; take a plain type from model",
    },
    Rule {
        scope: &["lb-agent/src/"],
        except: &["lb-agent/src/datapath"],
        words: &[
            "aya",
            "aya_obj",
            "rtnetlink",
            "netlink_sys",
            "netlink_packet_core",
            "netlink_packet_route",
        ],
        why: "only lb-agent/src/datapath touches the kernel",
    },
    Rule {
        scope: PURE,
        except: &[],
        words: &[
            "tokio",
            "tracing",
            "Instant",
            "SystemTime",
            "HashMap",
            "HashSet",
        ],
        why: "model, plan and diff are pure and ordered: no clock, no runtime, no log, no hash order",
    },
    Rule {
        scope: &["lb-agent/src/model"],
        except: &[],
        words: &[
            "crate::source",
            "crate::plan",
            "crate::diff",
            "crate::datapath",
            "crate::config",
        ],
        why: "model is at the bottom and sees none of the rooms that use it",
    },
    Rule {
        scope: &["lb-agent/src/plan", "lb-agent/src/diff"],
        except: &[],
        words: &[
            "crate::source",
            "crate::datapath",
            "crate::config",
            "crate::cli",
            "std::fs",
            "std::env",
        ],
        why: "plan and diff see only model and lb_common, and do nothing but compute",
    },
    Rule {
        scope: &["lb-agent/src/source"],
        except: &[],
        words: &["crate::plan", "crate::diff", "crate::datapath"],
        why: "source knows objects and model, not what becomes of them",
    },
    Rule {
        scope: &["lb-agent/src/datapath"],
        except: &[],
        words: &["crate::source", "crate::cli"],
        why: "datapath carries out writes and does not know where they come from",
    },
    Rule {
        scope: &["lb-agent/src/"],
        except: &[
            "lb-agent/src/reconcile",
            "lb-agent/src/main.rs",
            "lb-agent/src/cli",
            "lb-agent/src/run",
        ],
        words: &["crate::reconcile"],
        why: "reconcile sees every room and no room sees it",
    },
    Rule {
        scope: &["lb-ebpf/src/"],
        except: &[
            "lb-ebpf/src/main.rs",
            "lb-ebpf/src/kernel",
            "lb-ebpf/src/bench",
        ],
        words: &["aya_ebpf"],
        why: "the packet path is host-testable: the kernel is named in main.rs and kernel, and in bench, which is no part of it",
    },
    Rule {
        scope: &["lb-ebpf/src/"],
        except: &[
            "lb-ebpf/src/kernel/maps.rs",
            "lb-ebpf/src/kernel/parse.rs",
            "lb-ebpf/src/kernel/edit.rs",
            "lb-ebpf/src/kernel/sock.rs",
            "lb-ebpf/src/kernel/counters.rs",
            "lb-ebpf/src/kernel/fragment.rs",
            "lb-ebpf/src/kernel/reject.rs",
            "lb-ebpf/src/kernel/whole.rs",
        ],
        words: &["unsafe"],
        why: "unsafe lives in lb-ebpf/src/kernel/{maps,parse,edit,sock,counters,fragment,reject,whole}.rs only",
    },
    Rule {
        scope: &["lb-common/", "lb-ebpf/", "lb-agent/", "lb-lab/"],
        except: &[],
        words: &["xtask"],
        why: "no crate knows of the tasks",
    },
];

/// Every place of the file that names what its room may not.
pub(super) fn check(source: &Source<'_>) -> Vec<Violation> {
    let starts = |prefixes: &[&str]| {
        prefixes
            .iter()
            .any(|prefix| source.path.starts_with(prefix))
    };
    let rules = RULES
        .iter()
        .filter(|rule| starts(rule.scope) && !starts(rule.except));
    let mut violations = Vec::new();
    for rule in rules {
        // `#[unsafe(no_mangle)]` names a symbol; nothing is dereferenced there.
        let looked_at =
            |line: &&Line<'_>| !line.is_test && !line.code.trim_start().starts_with("#[unsafe(");
        for line in source.lines.iter().filter(looked_at) {
            violations.extend(broken(rule, line).map(|sentence| Violation {
                path: source.path.to_owned(),
                line: line.number,
                sentence,
            }));
        }
    }
    violations
}

fn broken(rule: &Rule, line: &Line<'_>) -> Option<String> {
    let word = rule.words.iter().find(|word| line.names(word))?;
    Some(format!("`{word}` is named here: {}", rule.why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(&Source::read(path, text))
            .into_iter()
            .map(|violation| violation.line)
            .collect()
    }

    #[test]
    fn aya_is_named_in_the_datapath_only() {
        assert_eq!(lines("lb-agent/src/main.rs", "use aya::Ebpf;\n"), [1]);
        assert_eq!(
            lines("lb-agent/src/datapath/loader.rs", "use aya::Ebpf;\n"),
            [0; 0]
        );
    }

    #[test]
    fn a_pure_room_has_no_clock_and_no_hash_order() {
        let text = "use std::time::Duration;\nuse std::time::Instant;\n// HashMap\n";
        assert_eq!(lines("lb-agent/src/plan/mod.rs", text), [2]);
        assert_eq!(
            lines("lb-agent/src/diff.rs", "use std::collections::HashMap;\n"),
            [1]
        );
    }

    #[test]
    fn unsafe_stays_in_its_five_files() {
        assert_eq!(
            lines("lb-ebpf/src/kernel/maps.rs", "unsafe { *p }\n"),
            [0; 0]
        );
        assert_eq!(lines("lb-ebpf/src/path/mod.rs", "unsafe { *p }\n"), [1]);
        assert_eq!(
            lines("lb-ebpf/src/path/mod.rs", "#![deny(unsafe_code)]\n"),
            [0; 0]
        );
    }

    #[test]
    fn tests_look_from_outside() {
        let text = "#[cfg(test)]\nmod tests {\n    use std::collections::HashMap;\n}\n";
        assert_eq!(lines("lb-agent/src/plan/mod.rs", text), [0; 0]);
    }
}
