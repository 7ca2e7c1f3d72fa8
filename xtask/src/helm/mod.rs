// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask helm lint|test`: the chart, as helm, Kubernetes' schemas and the agent's flags see it.
//!
//! **Invariant:** no cluster is asked, and every check runs, also after one that failed; what a
//! check compares with is a committed file. The lab runs the agent as the renderings say
//! (lb-lab/tests/e2e/chart.rs).
//! Read next: rendering.rs, cases.rs, keys.rs.

mod cases;
mod keys;
mod rendering;
pub(crate) mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

use crate::doctor::{self, Scope};
use crate::process::root;

/// Looks at the chart: `lint` by helm alone, `test` with all that needs no cluster.
#[derive(clap::Args)]
pub(crate) struct Helm {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// `helm lint --strict` with the default values and with every example
    Lint,
    /// Lint; render, compare with helm/lb-agent/tests/golden, validate every object; wrong values
    /// must fail with their sentence; values must be the agent's flags
    Test,
}

impl Helm {
    pub(crate) fn run(&self) -> Result<()> {
        doctor::prepare(Scope::Helm)?;
        let mut checks = Checks::default();
        let chart = Chart::find()?;
        rendering::lint(&chart, &mut checks)?;
        if matches!(self.what, What::Test) {
            the_rest(&chart, &mut checks)?;
        }
        checks.report();
        match checks.failures.len() {
            0 => Ok(()),
            failed => bail!("{failed} of {} checks of the chart failed", checks.count()),
        }
    }
}

/// Everything, for `cargo xtask test`: how many checks passed and failed.
pub(crate) fn test() -> Result<(u64, u64)> {
    let mut checks = Checks::default();
    let chart = Chart::find()?;
    rendering::lint(&chart, &mut checks)?;
    the_rest(&chart, &mut checks)?;
    checks.report();
    let failed = u64::try_from(checks.failures.len())?;
    Ok((checks.passed, failed))
}

fn the_rest(chart: &Chart, checks: &mut Checks) -> Result<()> {
    rendering::compare(chart, checks, false)?;
    rendering::validate(chart, checks)?;
    cases::refuse(chart, checks)?;
    keys::compare(chart, checks)
}

/// Takes today's renderings as the expected ones.
pub(crate) fn bless() -> Result<()> {
    doctor::prepare(Scope::Helm)?;
    rendering::compare(&Chart::find()?, &mut Checks::default(), true)
}

/// What was found out.
#[derive(Default)]
struct Checks {
    passed: u64,
    failures: Vec<String>,
}

impl Checks {
    /// Notes a check; what is wrong says everything that a person must know.
    fn note(&mut self, wrong: Option<String>) {
        match wrong {
            None => self.passed += 1,
            Some(what) => self.failures.push(what),
        }
    }

    fn count(&self) -> u64 {
        self.passed + self.failures.len() as u64
    }

    fn report(&self) {
        for failure in &self.failures {
            eprintln!("FAILED: {failure}");
        }
        let failed = self.failures.len();
        eprintln!("chart: {} checks passed, {failed} failed", self.passed);
    }
}

/// Where the chart is, and what looks at it.
struct Chart {
    folder: PathBuf,
    helm: PathBuf,
    python: PathBuf,
}

/// What a program said.
struct Said {
    success: bool,
    out: String,
    error: String,
}

impl Chart {
    fn find() -> Result<Self> {
        let hint = "is not here; `cargo xtask doctor --fix --for helm` gets it";
        Ok(Self {
            folder: root().join("helm/lb-agent"),
            helm: tools::helm().with_context(|| format!("helm {hint}"))?,
            python: tools::python().with_context(|| format!("kubernetes-validate {hint}"))?,
        })
    }

    fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        self.folder.join(path)
    }

    /// helm with a verb, the chart and further arguments, in the chart's folder.
    fn helm(&self, words: &[&str]) -> Result<Said> {
        let mut helm = Command::new(&self.helm);
        helm.args(words).current_dir(&self.folder);
        // Nothing of a cluster that this user knows of, nor of plugins.
        helm.env("KUBECONFIG", "/dev/null")
            .env("HELM_NO_PLUGINS", "1");
        said(&mut helm)
    }

    /// The Python with the validator, with check.py and its arguments.
    fn python(&self, words: &[&str]) -> Result<Said> {
        let mut python = Command::new(&self.python);
        python
            .args(["-c", include_str!("check.py")])
            .args(words)
            .current_dir(&self.folder);
        said(&mut python)
    }
}

fn said(command: &mut Command) -> Result<Said> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {name}"))?;
    Ok(Said {
        success: done.status.success(),
        out: String::from_utf8_lossy(&done.stdout).into_owned(),
        error: String::from_utf8_lossy(&done.stderr).into_owned(),
    })
}
