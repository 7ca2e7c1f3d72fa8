// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where this machine gets its Debian packages from: release, mirror, settings.
//!
//! **Invariant:** the bare machine uses the archive that this machine uses, never one named here.
//! Read next: machine.rs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A release and the mirror that has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Archive {
    pub(crate) release: String,
    pub(crate) mirror: String,
    /// Files under /etc/apt that name this archive, and how it is reached.
    pub(super) files: Vec<PathBuf>,
}

impl Archive {
    /// The archive of this machine.
    pub(crate) fn of_this_machine() -> Result<Self> {
        let os = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
        if let Some(release) = value(&os, "VERSION_CODENAME")
            && let Some((list, mirror)) = mirror_of(&release)
        {
            let mut files = settings();
            files.push(list);
            return Ok(Self {
                release,
                mirror,
                files,
            });
        }
        bail!(
            "no mirror found under /etc/apt: machines are made from this machine's own archive, \
             so run this on Debian or Ubuntu"
        )
    }

    /// Whether it has Debian's own packages, where there is one.
    pub(crate) fn is_of_debian() -> bool {
        let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
        value(&os, "ID").is_some_and(|id| id == "debian")
    }

    /// The mirror of the release's security updates.
    pub(crate) fn security_mirror(&self) -> Result<String> {
        let suite = format!("{}-security", self.release);
        let found = mirror_of(&suite).map(|(_, mirror)| mirror);
        found.with_context(|| format!("no mirror of {suite} found under /etc/apt"))
    }
}

/// The first list of sources that has the suite, and its mirror.
fn mirror_of(suite: &str) -> Option<(PathBuf, String)> {
    let mut lists = vec![PathBuf::from("/etc/apt/sources.list")];
    lists.extend(entries(Path::new("/etc/apt/sources.list.d")));
    lists.into_iter().find_map(|list| {
        let text = fs::read_to_string(&list).unwrap_or_default();
        mirror(&text, suite).map(|mirror| (list, mirror))
    })
}

/// Files of apt's configuration that say how to reach the archive, and nothing else.
fn settings() -> Vec<PathBuf> {
    let only_acquire = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut lines = text
            .lines()
            .filter(|l| !l.trim().is_empty() && !l.starts_with(['#', '/']));
        lines.clone().next().is_some() && lines.all(|line| line.starts_with("Acquire::"))
    };
    entries(Path::new("/etc/apt/apt.conf.d"))
        .into_iter()
        .filter(only_acquire)
        .collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The value of a `KEY=value` line.
fn value(text: &str, key: &str) -> Option<String> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches('"').to_owned())
}

/// The first mirror in a list of sources, of either format, that has the suite.
fn mirror(text: &str, release: &str) -> Option<String> {
    let one_line = text
        .lines()
        .filter(|line| line.starts_with("deb "))
        .find_map(|line| {
            let words: Vec<&str> = line
                .split_whitespace()
                .filter(|w| !w.starts_with('['))
                .collect();
            (words.get(2) == Some(&release)).then(|| words[1].to_owned())
        });
    let stanza = || {
        text.split("\n\n").find_map(|stanza| {
            let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
            let suites = field("Suites:")?;
            let fits = suites.split_whitespace().any(|suite| suite == release);
            let uri = field("URIs:")?.split_whitespace().next()?;
            fits.then(|| uri.to_owned())
        })
    };
    one_line.or_else(stanza)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_of_the_release_is_found_in_both_formats() {
        let stanzas = "Types: deb\nURIs: http://s.example/security\nSuites: bookworm-security\n\n\
                       Types: deb\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\n";
        assert_eq!(
            mirror(stanzas, "bookworm").as_deref(),
            Some("http://m.example/debian")
        );
        let lines = "# x\ndeb [signed-by=/k] http://o.example/debian bookworm main\n";
        assert_eq!(
            mirror(lines, "bookworm").as_deref(),
            Some("http://o.example/debian")
        );
        assert_eq!(mirror(lines, "trixie"), None);
    }
}
