// SPDX-License-Identifier: MIT OR Apache-2.0
//! An agent without a kernel: the source, the reconciler and tables in memory.
//!
//! The test takes its updates in one by one, so that each state of the tables is seen.
//! **Invariant:** after every single write the tables have what `keep` names.

use std::path::Path;
use std::time::{Duration, Instant};

use lb_agent::model::snapshot::Update;
use lb_agent::model::tables::{Op, TableContent};
use lb_agent::reconcile::Reconciler;
use lb_agent::source::Delivery;
use lb_agent::source::kubernetes::events::EventRecorder;
use lb_agent::source::kubernetes::{Access, Outlet, Patience, connect, watch};
use lb_agent::source::state::State;
use lb_agent::tables::Memory;
use lb_common::abi::List;
use lb_lab::ApiServer;
use lb_lab::apiserver::FaultId;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::cases::KINDS;
use crate::world::{NODE, Reference, View, World, settings, text, view};

/// For a test that fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);
/// How long an update is waited for before something else is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Short waits, so that tests do not take long.
pub(crate) fn patience() -> Patience {
    Patience {
        list_quiet: Duration::from_millis(400),
        list_longest: Duration::from_secs(3),
        piece: Duration::from_millis(500),
        settle: Duration::from_millis(100),
        stream_secs: (20, 20),
        silence: Duration::from_millis(600),
        grace: Duration::from_millis(200),
    }
}

/// How long a bookmark needs to arrive.
const BOOKMARK: Duration = Duration::from_millis(60);

/// A server without objects that sends bookmarks often.
pub(crate) fn server() -> ApiServer {
    let server = ApiServer::start("127.0.0.1:0".parse().unwrap()).unwrap();
    server.bookmark_every(Duration::from_millis(100));
    server
}

/// What an agent starts with.
#[derive(Default)]
pub(crate) struct Start<'a> {
    /// What an earlier one left in the tables.
    pub(crate) content: TableContent,
    /// The state directory.
    pub(crate) state: Option<&'a Path>,
    /// Whether it tells people about Services.
    pub(crate) events: bool,
    pub(crate) patience: Option<Patience>,
}

/// The agent.
pub(crate) struct Agent {
    runtime: Runtime,
    updates: UnboundedReceiver<Delivery>,
    recorder: Option<EventRecorder>,
    state: Option<State>,
    reconciler: Reconciler,
    pub(crate) tables: Memory,
    /// The tables as they were after each write.
    shadow: TableContent,
    /// What must be in the tables at any time.
    pub(crate) keep: View,
    /// Writes until now.
    pub(crate) writes: usize,
    /// Updates until now.
    pub(crate) updates_taken: usize,
}

impl Agent {
    /// Starts on empty tables.
    pub(crate) fn start(url: &str) -> Self {
        Self::with(url, Start::default())
    }

    pub(crate) fn with(url: &str, start: Start<'_>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (sender, updates) = unbounded_channel();
        let access = Access {
            api_server: Some(url.to_owned()),
            kubeconfig: None,
        };
        Self::following(runtime, &access, sender, updates, start)
    }

    /// As `lb-agent run` does it.
    fn following(
        runtime: Runtime,
        access: &Access,
        sender: lb_agent::source::Updates,
        updates: UnboundedReceiver<Delivery>,
        start: Start<'_>,
    ) -> Self {
        let content = start.content;
        let (state, objects) = start.state.map(|path| State::open(path).unwrap()).unzip();
        let objects = objects.filter(|_| content.is_empty()).unwrap_or_default();
        let remembered = !objects.is_empty();
        if remembered {
            let update = Update::Partial {
                objects,
                unreadable: vec!["the API server".to_owned()],
            };
            let received = Instant::now();
            sender.send(Delivery { received, update }).unwrap();
        }
        let entered = runtime.enter();
        let client = runtime.block_on(connect(access)).unwrap();
        let recorder = start
            .events
            .then(|| EventRecorder::start(client.clone(), NODE));
        let outlet = Outlet {
            updates: sender,
            state: state.clone(),
            remembered,
            recorder: recorder.clone(),
        };
        watch(&client, NODE, outlet, start.patience.unwrap_or(patience()));
        drop(entered);
        Self {
            runtime,
            updates,
            recorder,
            state,
            reconciler: Reconciler::restore(settings(), &content, 1_000),
            shadow: content.clone(),
            tables: Memory::with_content(content),
            keep: View::new(),
            writes: 0,
            updates_taken: 0,
        }
    }

    /// As [`Self::start`], by a kubeconfig.
    pub(crate) fn by_kubeconfig(path: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (sender, updates) = unbounded_channel();
        let access = Access {
            api_server: None,
            kubeconfig: Some(path.to_owned()),
        };
        Self::following(runtime, &access, sender, updates, Start::default())
    }

    /// Takes one update in if one comes soon, and tries failed writes again.
    pub(crate) fn pump(&mut self) {
        let next = self
            .runtime
            .block_on(async { timeout(LOOK, self.updates.recv()).await });
        match next {
            Ok(Some(delivery)) => {
                self.updates_taken += 1;
                self.reconciler.receive(delivery.update);
                self.sync();
                self.remember();
            }
            Ok(None) => panic!("the source has ended"),
            Err(_) if self.reconciler.is_pending() => self.sync(),
            Err(_) => {}
        }
    }

    /// Helps the state directory if it could not follow.
    fn remember(&self) {
        if let Some(state) = &self.state {
            let stay = self.reconciler.invalid().cloned().collect();
            let knows_all = || self.reconciler.is_listed() && self.updates.is_empty();
            state.catch_up(knows_all, self.reconciler.objects(), stay);
        }
    }

    fn sync(&mut self) {
        self.reconciler.sync(&mut self.tables);
        for op in self.tables.take_log() {
            self.writes += 1;
            self.shadow.apply(&op);
            // Lookup tables are no part of the view, and have slots by the hundred.
            if let Op::PutSlot(key, _) | Op::DeleteSlot(key) = op
                && key.list >= List::TABLES
            {
                continue;
            }
            let there = view(&self.shadow);
            let lost: Vec<_> = self.keep.difference(&there).collect();
            assert!(lost.is_empty(), "{op} takes away {lost:?}");
        }
        assert_eq!(self.reconciler.content(), *self.tables.content(), "mirror");
        for news in self.reconciler.take_news() {
            if let Some(recorder) = &self.recorder {
                let message = news.warning.to_string();
                recorder.warn(&news.service, &news.uid, news.warning.reason(), &message);
            }
        }
    }

    pub(crate) fn text(&self) -> String {
        text(self.tables.content(), self.reconciler.ids())
    }

    pub(crate) fn view(&self) -> View {
        view(self.tables.content())
    }

    pub(crate) fn unreadable(&self) -> &[String] {
        self.reconciler.unreadable()
    }

    pub(crate) fn is_listed(&self) -> bool {
        self.reconciler.is_listed()
    }

    /// Goes on until something is so.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !is_so(self) {
            let text = self.text();
            assert!(
                Instant::now() < end,
                "waited for: {what}; there is:\n{text}"
            );
            self.pump();
        }
    }

    /// Goes on until something is so or the time is over.
    pub(crate) fn up_to(&mut self, time: Duration, mut is_so: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + time;
        while !is_so(self) && Instant::now() < end {
            self.pump();
        }
    }

    /// Goes on for a time in which nothing is to happen.
    pub(crate) fn go_on(&mut self, time: Duration) {
        self.up_to(time, |_| false);
    }

    /// Goes on until the tables are as they should be.
    #[track_caller]
    pub(crate) fn settle(&mut self, what: &str, wanted: &Reference) {
        let end = Instant::now() + LIMIT;
        while self.text() != wanted.text || self.reconciler.is_pending() {
            let (text, wanted) = (self.text(), &wanted.text);
            assert!(
                Instant::now() < end,
                "{what}: there is\n{text}\nwanted is\n{wanted}"
            );
            self.pump();
        }
    }

    /// Waits until the tables hold what the world leads to, and is followed by open watches.
    #[track_caller]
    pub(crate) fn settle_on(&mut self, what: &str, world: &World) {
        self.settle(what, &world.reference());
    }

    /// Goes on until there is one watch of each kind.
    #[track_caller]
    pub(crate) fn until_watched(&mut self, server: &ApiServer) {
        self.until("one watch of each kind", |_| {
            KINDS.iter().all(|kind| server.watches(*kind) == 1)
        });
        // A stream with a bookmark works, and its silence means something. Where this comes too
        // late, a test takes longer.
        server.bookmark();
        self.go_on(BOOKMARK);
    }

    /// Waits until a fault has happened so often.
    #[track_caller]
    pub(crate) fn until_fired(&mut self, server: &ApiServer, id: FaultId, times: u64) {
        let end = Instant::now() + LIMIT;
        while server.fired(id) < times {
            let watches = KINDS.map(|kind| server.watches(kind));
            let requests = server.requests();
            let latest = &requests[requests.len().saturating_sub(12)..];
            assert!(
                Instant::now() < end,
                "the fault has not happened; watches: {watches:?}, requests: {latest:#?}"
            );
            self.pump();
        }
    }
}
