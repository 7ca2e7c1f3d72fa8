// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scenarios of this folder as values: objects, flags and addresses of the node.
//!
//! Comments at the top of a scenario choose what manifests cannot say: `# flags:` takes the flags
//! of `lb-agent plan`, `# addresses:` the addresses that the devices of the node have.
//! **Invariant:** flags are parsed by the code that parses those of the program.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lb_agent::cli::{PlanText, planning_options};
use lb_agent::model::snapshot::{Object, Update};
use lb_agent::model::tables::TableContent;
use lb_agent::reconcile::Settings;
use lb_agent::source::manifests::{self, Problem};

use crate::support::{Bench, settings};

/// One scenario.
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) flags: Vec<String>,
    pub(crate) objects: Vec<Object>,
    problems: Vec<Problem>,
    pub(crate) settings: Settings,
    pub(crate) addresses: Option<BTreeSet<IpAddr>>,
}

/// All scenarios, in the order of their names.
pub(crate) fn scenarios() -> &'static [Scenario] {
    static ALL: LazyLock<Vec<Scenario>> = LazyLock::new(read_all);
    &ALL
}

fn read_all() -> Vec<Scenario> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let paths = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = paths.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "yaml"));
    paths.sort();
    assert!(paths.len() >= 60, "the scenarios are there");
    paths.into_iter().map(Scenario::read).collect()
}

impl Scenario {
    fn read(path: PathBuf) -> Self {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let words = |label: &str| -> Option<Vec<String>> {
            let comments = text.lines().take_while(|line| line.starts_with('#'));
            let mut found = comments.filter_map(|line| line.strip_prefix(label));
            Some(
                found
                    .next()?
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect(),
            )
        };
        let flags = words("# flags:").unwrap_or_default();
        let words_of_flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let options = planning_options(&words_of_flags);
        let folder = tempfile::tempdir().unwrap();
        fs::copy(&path, folder.path().join("scenario.yaml")).unwrap();
        let (objects, problems) = manifests::load(folder.path()).unwrap();
        let addresses = words("# addresses:");
        Self {
            objects,
            problems,
            settings: Settings {
                options: options.unwrap(),
                ..settings()
            },
            addresses: addresses.map(|all| all.iter().map(|ip| ip.parse().unwrap()).collect()),
            flags,
            name,
            path,
        }
    }

    /// What could not be read.
    pub(crate) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// A node of this scenario that starts on `content` and knows of no object.
    pub(crate) fn start(&self, content: TableContent, stamp: u32) -> Bench {
        let mut bench = Bench::with(self.settings.clone(), content, stamp);
        if let Some(addresses) = &self.addresses {
            bench.reconciler.receive_addresses(addresses.clone());
        }
        bench
    }

    /// A node that knows all objects.
    pub(crate) fn listed(&self) -> Bench {
        let mut bench = self.start(TableContent::default(), 1);
        bench.take(Update::reset(self.objects.clone()));
        bench
    }

    /// The plan and the tables of `bench`, and what could not be read.
    pub(crate) fn text(&self, bench: &Bench) -> String {
        let mut plan = PlanText::new(&bench.reconciler, true);
        for problem in &self.problems {
            plan.warn(problem.subject(), problem.detail());
        }
        let mut text = format!("{}\nTABLES\n{}", plan.to_table(), bench.text());
        for problem in &self.problems {
            writeln!(text, "{:?}: {problem}", problem.severity).unwrap();
        }
        text
    }
}
