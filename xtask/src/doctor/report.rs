// SPDX-License-Identifier: MIT OR Apache-2.0
//! Findings as a table for people and as JSON for programs.
//!
//! **Invariant:** both say the same; a missing thing always comes with what to do about it.
//! Read next: needs.rs.

use serde_json::{Value, json};

use super::needs::Fix;
use super::probe::Found;
use super::{Finding, Need};
use crate::process::{command, first_line};
use crate::table::render;

/// One line per finding: state, what, found where (version), needed for what.
pub(crate) fn table(findings: &[Finding]) -> String {
    let mut rows = vec![
        ["", "what", "found", "needed for"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for finding in findings {
        let (mark, found) = match &finding.found {
            Found::Program(path) => {
                let version = version(finding);
                ("ok", format!("{} ({version})", path.display()))
            }
            Found::Yes(words) => ("ok", words.clone()),
            Found::No(why) => ("--", format!("{why}: {}", remedy(finding.need.fix))),
        };
        let need = finding.need;
        rows.push(vec![
            mark.to_owned(),
            need.name.to_owned(),
            found,
            need.purpose.to_owned(),
        ]);
    }
    render(&rows)
}

/// The findings as one JSON array.
pub(crate) fn json(findings: &[Finding]) -> Value {
    let one = |finding: &Finding| {
        let need = finding.need;
        let (found, version, why) = match &finding.found {
            Found::Program(path) => (
                Some(path.display().to_string()),
                Some(version(finding)),
                None,
            ),
            Found::Yes(words) => (Some(words.clone()), None, None),
            Found::No(why) => (None, None, Some(why.clone())),
        };
        json!({
            "name": need.name,
            "present": why.is_none(),
            "found": found,
            "version": version,
            "neededFor": need.purpose,
            "missingBecause": why,
            "remedy": why.as_ref().map(|_| remedy(need.fix)),
        })
    };
    Value::Array(findings.iter().map(one).collect())
}

fn version(finding: &Finding) -> String {
    let Found::Program(path) = &finding.found else {
        return String::new();
    };
    let args: &[&str] = match finding.need.version {
        [] => &["--version"],
        args => args,
    };
    first_line(command(path).args(args)).map_or_else(|| "version unknown".to_owned(), |v| short(&v))
}

/// The version in a line like `curl 7.88.1 (x86_64-pc-linux-gnu) ...`: its first word with a digit
/// and a dot, without what stands around it.
fn short(line: &str) -> String {
    let versioned = |word: &&str| word.contains('.') && word.contains(|c: char| c.is_ascii_digit());
    let word = line
        .split_whitespace()
        .filter(|word| !word.starts_with('/'))
        .find(versioned);
    let edge = |c: char| !c.is_ascii_alphanumeric();
    word.map_or_else(
        || line.to_owned(),
        |word| word.trim_matches(edge).to_owned(),
    )
}

/// What gets a missing thing, in a few words.
fn remedy(fix: Fix) -> String {
    match fix {
        Fix::Apt(packages) => format!("apt-get install {}", packages.join(" ")),
        Fix::Cargo {
            package, version, ..
        } => {
            format!("cargo install --locked {package}@{version}")
        }
        Fix::BpfCore | Fix::StaticStd | Fix::Chart | Fix::Validator => "--fix".to_owned(),
        Fix::Person(sentence) => sentence.to_owned(),
    }
}

/// The remedy of a need, for a sentence elsewhere.
pub(crate) fn remedy_of(need: &Need) -> String {
    format!("{}: {}", need.name, remedy(need.fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_first_word_with_digit_and_dot() {
        assert_eq!(
            short("curl 7.88.1 (x86_64-pc-linux-gnu) libcurl/7.88.1"),
            "7.88.1"
        );
        assert_eq!(
            short("ip utility, iproute2-6.1.0, libbpf 1.1.2"),
            "iproute2-6.1.0"
        );
        assert_eq!(
            short("cc (Debian 12.2.0-14+deb12u1) 12.2.0"),
            "12.2.0-14+deb12u1"
        );
        assert_eq!(short("/usr/sbin/bpftool v7.1.0"), "v7.1.0");
        assert_eq!(short("unshare from util-linux"), "unshare from util-linux");
    }
}
