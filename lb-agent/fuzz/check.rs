// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must hold for any text whatsoever: from documents to objects, plan and tables.
//!
//! The fuzz targets call [`check`] with what they make up, the scenarios' tests with texts that are
//! near to real ones.
//! **Invariant:** no file system and no kernel; the same text always takes the same way.

use std::sync::LazyLock;

use lb_agent::cli::{PlanText, planning_options, table_text};
use lb_agent::model::snapshot::{Object, Update};
use lb_agent::model::tables::TableContent;
use lb_agent::plan::ids::IdLimits;
use lb_agent::plan::node::PlanOptions;
use lb_agent::reconcile::{Reconciler, Settings};
use lb_agent::source::manifests;
use lb_agent::tables::Memory;

const FLAGS: [&[&str]; 5] = [
    &[],
    &["--parity=kube-proxy"],
    &["--masquerade-all", "--nodeport-addresses=primary"],
    &[
        "--detect-local-mode=NodeCIDR",
        "--nodeport-addresses=10.0.0.0/8,::/0",
    ],
    &[
        "--detect-local-mode=ClusterCIDR",
        "--cluster-cidr=10.0.0.0/8",
    ],
];

/// Parsed once, because that takes longer than a plan.
static OPTIONS: LazyLock<Vec<PlanOptions>> = LazyLock::new(|| {
    let parsed = FLAGS.iter().map(|flags| planning_options(flags));
    parsed.map(Result::unwrap_or_default).collect()
});

fn settings(choice: u8) -> Settings {
    Settings {
        node_name: "node-a".to_owned(),
        options: OPTIONS[usize::from(choice) % OPTIONS.len()].clone(),
        id_limits: IdLimits::default(),
    }
}

fn listed(choice: u8, content: TableContent, objects: Vec<Object>) -> (Reconciler, Memory) {
    let mut reconciler = Reconciler::restore(settings(choice), &content, 1_000);
    let mut tables = Memory::with_content(content);
    reconciler.receive(Update::reset(objects));
    let outcome = reconciler.sync(&mut tables);
    assert_eq!(outcome.pending, 0, "every write works");
    assert_eq!(
        reconciler.content(),
        *tables.content(),
        "the mirror is true"
    );
    (reconciler, tables)
}

/// Reads `text` as the file `name` would be read and plans what is in it; `choice` picks flags.
/// Answers with the number of objects that were understood.
pub(crate) fn check(name: &str, text: &str, choice: u8) -> usize {
    let (objects, problems) = manifests::parse(name, text);
    for problem in &problems {
        assert!(!problem.to_string().is_empty());
    }
    let (mut reconciler, mut tables) = listed(choice, TableContent::default(), objects.clone());
    let plan = PlanText::new(&reconciler, true);
    assert!(serde_json::to_string(&plan).is_ok() && !plan.to_table().is_empty());
    let mut shown = String::new();
    for frontend in table_text(tables.content(), reconciler.ids()) {
        frontend.write_to(&mut shown);
    }
    assert!(
        !shown.contains("missing"),
        "each slot has its backend: {shown}"
    );

    let content = tables.content().clone();
    let (_, mut restarted) = listed(choice, content, objects.clone());
    assert_eq!(restarted.take_log(), [], "a restart writes nothing");
    reconciler.receive(Update::reset(Vec::new()));
    reconciler.sync(&mut tables);
    assert!(tables.content().is_empty(), "ends empty");
    objects.len()
}
