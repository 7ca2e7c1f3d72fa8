// SPDX-License-Identifier: MIT OR Apache-2.0
//! Renderings of the chart: with the default values and with every file of values that is there.
//!
//! **Invariant:** the files in tests/golden are exactly the renderings of today; each object in them
//! is one that Kubernetes takes, unknown fields and unknown kinds not excepted.
//! Read next: check.py, which asks the schemas.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Chart, Checks};

/// The version of Kubernetes that is rendered for.
const VERSION: &str = "1.37";
/// One that has no field for profiles of `AppArmor`.
const OLD_VERSION: &str = "1.29";
/// Further versions whose schemas the renderings for [`VERSION`] must suit.
const ALSO: [&str; 2] = ["1.30", "1.34"];
/// The folder of stored renderings.
const GOLDEN: &str = "tests/golden";

/// One rendering.
struct Rendering {
    /// Of the stored file, without its end.
    name: String,
    /// The file of values, as helm is told.
    values: Option<PathBuf>,
    version: &'static str,
}

/// All of them: the default values, each example, each file of the tests.
fn all(chart: &Chart) -> Result<Vec<Rendering>> {
    let mut renderings = vec![Rendering {
        name: "default".to_owned(),
        values: None,
        version: VERSION,
    }];
    for folder in ["examples", "tests/values"] {
        let path = chart.file(folder);
        let entries = fs::read_dir(&path).with_context(|| format!("read {}", path.display()))?;
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        if files.is_empty() {
            bail!(
                "{} is empty: there are no values to render with",
                path.display()
            );
        }
        for file in files {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            renderings.push(Rendering {
                name: stem.into_owned(),
                values: Some(file),
                version: VERSION,
            });
        }
    }
    let everything = chart.file("tests/values/everything.yaml");
    renderings.push(Rendering {
        name: format!("everything-{OLD_VERSION}"),
        values: Some(everything),
        version: OLD_VERSION,
    });
    Ok(renderings)
}

impl Rendering {
    /// helm's arguments for it.
    fn words<'a>(&'a self, verb: &[&'a str]) -> Vec<&'a str> {
        let mut words = verb.to_vec();
        if let Some(values) = self.values.as_ref().and_then(|path| path.to_str()) {
            words.extend(["--values", values]);
        }
        words
    }

    /// What helm makes of it, without empty lines, which differ between its versions; or its error.
    fn render(&self, chart: &Chart) -> Result<Result<String, String>> {
        let version = format!("{}.0", self.version);
        let mut words = self.words(&["template", "lb-agent", ".", "--namespace", "kube-system"]);
        words.extend(["--kube-version", &version]);
        let said = chart.helm(&words)?;
        if !said.success {
            return Ok(Err(said.error));
        }
        Ok(Ok(without_empty_lines(&said.out)))
    }
}

fn without_empty_lines(text: &str) -> String {
    let lines = text.lines().map(str::trim_end).filter(|l| !l.is_empty());
    lines.fold(String::new(), |all, line| all + line + "\n")
}

/// `helm lint --strict` with all values.
pub(super) fn lint(chart: &Chart, checks: &mut Checks) -> Result<()> {
    for rendering in all(chart)? {
        let said = chart.helm(&rendering.words(&["lint", ".", "--strict", "--quiet"]))?;
        checks.note((!said.success).then(|| {
            let (name, out, error) = (&rendering.name, said.out.trim(), said.error.trim());
            format!("helm lint with the values {name}: {out} {error}")
        }));
    }
    Ok(())
}

/// Compares all renderings and the notes with the stored ones, or stores them.
pub(super) fn compare(chart: &Chart, checks: &mut Checks, bless: bool) -> Result<()> {
    let mut names = BTreeSet::new();
    for rendering in all(chart)? {
        let file = format!("{}.yaml", rendering.name);
        match rendering.render(chart)? {
            Ok(text) => checks.note(stored(chart, &file, &text, bless)?),
            Err(error) => checks.note(Some(format!("helm template: {file}: {}", error.trim()))),
        }
        names.insert(file);
    }
    for (file, values) in [
        ("default.txt", None),
        ("flannel.txt", Some("examples/flannel.yaml")),
        ("cleanup.txt", Some("tests/values/cleanup.yaml")),
    ] {
        let notes = notes(chart, values)?;
        checks.note(stored(chart, file, &notes, bless)?);
        names.insert(file.to_owned());
    }
    let golden = chart.file(GOLDEN);
    for entry in fs::read_dir(&golden).with_context(|| format!("read {}", golden.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !names.contains(&name) {
            checks.note(Some(format!(
                "{GOLDEN}/{name} is no rendering of any values; remove it"
            )));
        }
    }
    Ok(())
}

/// What is told after an installation; only a dry run of one renders it.
fn notes(chart: &Chart, values: Option<&str>) -> Result<String> {
    let mut words = vec!["install", "lb-agent", ".", "--namespace", "kube-system"];
    words.push("--dry-run=client");
    words.extend(values.map(|file| ["--values", file]).into_iter().flatten());
    let said = chart.helm(&words)?;
    let notes = said.out.split_once("NOTES:\n");
    let Some((_, notes)) = notes.filter(|_| said.success) else {
        bail!(
            "helm install --dry-run=client tells no notes: {}",
            said.error.trim()
        );
    };
    let lines = notes.trim_end().lines().map(str::trim_end);
    Ok(lines.fold(String::new(), |all, line| all + line + "\n"))
}

/// Compares a text with the stored one, or stores it; what differs, if anything does.
fn stored(chart: &Chart, file: &str, text: &str, bless: bool) -> Result<Option<String>> {
    let path = chart.file(GOLDEN).join(file);
    if bless {
        fs::create_dir_all(chart.file(GOLDEN)).context("make the folder of renderings")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        return Ok(None);
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    if known == text {
        return Ok(None);
    }
    let same = known.lines().zip(text.lines()).take_while(|(a, b)| a == b);
    let line = same.count();
    let of = |text: &str| text.lines().nth(line).unwrap_or("(nothing)").to_owned();
    Ok(Some(format!(
        "{GOLDEN}/{file}, line {}: expected `{}`, rendered `{}`; if that is meant, \
         `cargo xtask bless helm` takes it",
        line + 1,
        of(&known),
        of(text)
    )))
}

/// Validates every object of every stored rendering.
pub(super) fn validate(chart: &Chart, checks: &mut Checks) -> Result<()> {
    let mut words = vec![
        "validate".to_owned(),
        "tests/podmonitor.schema.json".to_owned(),
    ];
    for rendering in all(chart)? {
        let also = ALSO.iter().filter(|_| rendering.version == VERSION);
        for version in std::iter::once(&rendering.version).chain(also) {
            words.push((*version).to_owned());
            words.push(format!("{GOLDEN}/{}.yaml", rendering.name));
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = chart.python(&words)?;
    if !said.success {
        bail!("check.py validate failed: {}", said.error.trim());
    }
    let mut objects = 0;
    for line in said.out.lines() {
        let finding: Value = serde_json::from_str(line).context("read what check.py says")?;
        objects += 1;
        checks.note(finding["problem"].as_str().map(|problem| {
            let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
            let (file, object, version) = (text("file"), text("object"), text("version"));
            format!("{file}: {object} is none of Kubernetes {version}: {problem}")
        }));
    }
    // A ConfigMap and a DaemonSet in each at least.
    checks.note((objects < words.len()).then(|| format!("only {objects} objects were validated")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lines_and_spaces_at_the_end_do_not_count() {
        assert_eq!(
            without_empty_lines("\na: 1  \n\n---\nb: 2"),
            "a: 1\n---\nb: 2\n"
        );
    }
}
