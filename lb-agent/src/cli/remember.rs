// SPDX-License-Identifier: MIT OR Apache-2.0
//! Helps the state directory when it could not follow: the reconciler knows all objects.
//!
//! **Invariant:** only what has been taken in counts, so while an update is on its way nothing is
//! handed over.

use tokio::sync::mpsc::UnboundedReceiver;

use crate::model::snapshot::ObjectRef;
use crate::reconcile::Reconciler;
use crate::source::Delivery;
use crate::source::state::State;

/// The state directory, if there is one, and whether it is to be helped.
#[derive(Debug)]
pub(super) struct Memory {
    state: Option<State>,
    behind: bool,
}

impl Memory {
    pub(super) fn new(state: Option<State>) -> Self {
        Self {
            state,
            behind: false,
        }
    }

    /// Waits until the state directory asks for help. May be dropped and asked again.
    pub(super) async fn asks(&self) {
        match &self.state {
            Some(state) => state.is_behind().await,
            None => std::future::pending().await,
        }
    }

    /// It has asked.
    pub(super) fn note_asked(&mut self) {
        self.behind = true;
    }

    /// Hands over all objects if that is asked for and nothing of `updates` is to be taken in first.
    pub(super) fn help(&mut self, reconciler: &Reconciler, updates: &UnboundedReceiver<Delivery>) {
        if let Some(state) = &self.state
            && self.behind
        {
            let stay: Vec<ObjectRef> = reconciler.invalid().cloned().collect();
            let knows_all = || reconciler.is_listed() && updates.is_empty();
            self.behind = !state.catch_up(knows_all, reconciler.objects(), stay);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::sync::mpsc::unbounded_channel;
    use tokio::time::timeout;

    use super::*;
    use crate::model::service::Node;
    use crate::model::snapshot::{Object, Update};
    use crate::model::tables::TableContent;
    use crate::plan::ids::IdLimits;
    use crate::plan::node::PlanOptions;
    use crate::reconcile::Settings;

    /// For a test that fails.
    const LIMIT: Duration = Duration::from_secs(20);

    fn node(name: &str) -> Object {
        Object::Node(Node {
            leaving: false,
            name: name.to_owned(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            zone: None,
        })
    }

    fn delivery(update: Update) -> Delivery {
        let received = Instant::now();
        Delivery { received, update }
    }

    #[tokio::test]
    async fn all_objects_are_handed_over_when_nothing_is_to_be_taken_in_first() {
        let folder = tempfile::tempdir().unwrap();
        let (state, _) = State::open(folder.path()).unwrap();
        let settings = Settings {
            node_name: "a".to_owned(),
            options: PlanOptions::default(),
            id_limits: IdLimits::default(),
        };
        let mut reconciler = Reconciler::restore(settings, &TableContent::default(), 1);
        let (sender, mut updates) = unbounded_channel();
        let partial = Update::Partial {
            objects: vec![node("a")],
            unreadable: vec!["Node b".to_owned()],
        };
        for update in [partial, Update::Complete, Update::reset(vec![node("b")])] {
            drop(state.record(&update));
            sender.send(delivery(update)).unwrap();
        }
        let mut memory = Memory::new(Some(state));
        timeout(LIMIT, memory.asks()).await.unwrap();
        memory.note_asked();
        while let Ok(delivery) = updates.try_recv() {
            reconciler.receive(delivery.update);
            memory.help(&reconciler, &updates);
            assert_eq!(memory.behind, !updates.is_empty());
        }
        drop(memory);
        let end = Instant::now() + LIMIT;
        while State::open(folder.path()).unwrap().1 != [node("b")] {
            assert!(Instant::now() < end, "what is known is on disk");
        }
    }
}
