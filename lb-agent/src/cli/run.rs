// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent run`: gives the reconciler its clock, its source and the kernel.
//!
//! One loop on one thread, sources on others: an update is written at once; what comes in while a write is in flight
//! is taken in together afterwards. SIGTERM ends the agent and leaves the forwarding in place.
//! **Invariant:** nothing is decided here about Services.

mod ready;

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tracing::{debug, info};

use super::audits::{Audits, Due};
use super::flags::RunArgs;
use super::health::HealthServers;
use super::kernel::pod_source;
use super::path_counters::PathCounters;
use super::per_service::PerService;
use super::remember::Memory;
use super::source::Source;
use super::surfaces::Surfaces;
use crate::datapath::{Datapath, DatapathConfig, Learner, Managed, Patterns, SocketConfig};

use crate::model::cluster::NodeFacts;
use crate::notify::Supervisor;
use crate::plan::ids::IdLimits;
use crate::reconcile::{Outcome, Reconciler, Settings};
use crate::source::Delivery;
use crate::source::kubernetes::events::EventRecorder;
use crate::tables::Tables;
use crate::{config, error_chain, memory};

/// A pass over so many Services leaves much memory free.
const MANY_SERVICES: usize = 500;
/// How long to wait before the first retry of a failed write; doubled for each further one.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two retries.
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// Where benchmarks listen for how long things took.
const LATENCY: &str = "lb_agent::latency";

pub(super) fn run(args: &RunArgs) -> Result<(), String> {
    if let Some(path) = &args.config {
        info!("settings of {}", path.display());
    }
    if let Some(path) = &args.manifests {
        config::manifests(path).map_err(|e| error_chain(&e))?;
    }
    let node_name = config::node_name(args.node.as_deref()).map_err(|e| error_chain(&e))?;
    let cgroup = config::cgroup(args.cgroup.as_deref()).map_err(|e| error_chain(&e))?;
    let settings = Settings {
        node_name,
        options: args.planning.options()?,
        id_limits: IdLimits::default(),
    };
    // The loop runs on this thread; what a source decodes and what devices do, on two others.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| format!("start the runtime: {e}"))?;
    let sockets = SocketConfig {
        mode: args.socket_lb.into(),
        cgroup,
    };
    runtime.block_on(serve(args, settings, sockets))
}

async fn serve(args: &RunArgs, settings: Settings, sockets: SocketConfig) -> Result<(), String> {
    let mut stop = Stop::new().map_err(|e| format!("catch signals: {e}"))?;
    let supervisor = Supervisor::from_environment();
    let surfaces = Surfaces::start(args);
    let source = Source::find(args).await?;
    let mut datapath = Datapath::start(&configured(args, &settings, sockets))
        .await
        .map_err(|e| error_chain(&e))?;
    let content = datapath.tables().dump().map_err(|e| error_chain(&e))?;
    info!(
        "node {}, {} entries from an earlier run",
        settings.node_name,
        content.len()
    );
    let (sender, updates) = unbounded_channel();
    let listing_since = Instant::now();
    debug!(target: LATENCY, "the list begins");
    let started = source.start(args, &settings.node_name, content.is_empty(), sender)?;
    datapath.tables().keep_services(&content.services());
    let counters = datapath.counters().map_err(|e| error_chain(&e))?;
    let counters = PerService::new(counters, datapath.traffic(), args.metrics_services_max);
    surfaces.metrics.show(counters.clone());
    let reasons = datapath.reasons().map_err(|e| error_chain(&e))?;
    surfaces.metrics.show(PathCounters::new(
        reasons,
        datapath.repair_counter(),
        datapath.destroyed_counter(),
    ));
    let mut managed = datapath.managed();
    let fill = datapath.fill();
    surfaces.metrics.show_node(fill, managed.clone());
    let mut reconciler = Reconciler::restore(settings, &content, random_stamp());
    // Before the first pass: without the node's own addresses it would remove their node ports.
    reconciler.receive_addresses(managed.borrow_and_update().addresses.clone());
    let service = Service {
        managed,
        following: true,
        health: HealthServers::new(surfaces.progress.clone(), started.recorder.clone()),
        recorder: started.recorder,
        memory: Memory::new(started.state),
        surfaces,
        counters,
        audits: Audits::new(Duration::from_secs(args.audit_interval), &args.bpffs),
        learner: datapath.learner(),
        taught: None,
        pods_apart: args.manifests.is_none(),
        grown: datapath.grown(),
        reconciler,
        supervisor,
        updates,
        batches: 0,
        listing_since: Some(listing_since),
        ready: false,
        wait: RETRY_FIRST,
        retry_at: tokio::time::Instant::now(),
    };
    service.follow(&mut stop, datapath.tables()).await;
    Ok(())
}

/// What the flags say about the kernel side.
fn configured(args: &RunArgs, settings: &Settings, sockets: SocketConfig) -> DatapathConfig {
    let mut datapath = DatapathConfig::new(&args.bpffs);
    args.kernel.apply(&mut datapath);
    datapath.sockets = sockets;
    // Whoever serves by manifests need not name every pod.
    datapath.serve_unknown_pods = args.manifests.is_some();
    datapath.pods = pod_source(&settings.options.detect_local);
    datapath.patterns = Patterns {
        include: args.include_interfaces.clone(),
        exclude: args.exclude_interfaces.clone(),
    };
    datapath
}

/// Where epochs and generations begin: anywhere, so that a process does not repeat those of an
/// earlier one whose ids are gone from the tables.
fn random_stamp() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::hash::RandomState::new().build_hasher().finish();
    u32::try_from(random & 0x7fff_ffff).unwrap_or(1)
}

/// The signals that end the agent.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

struct Service {
    reconciler: Reconciler,
    recorder: Option<EventRecorder>,
    health: HealthServers,
    memory: Memory,
    /// What others can ask.
    surfaces: Surfaces,
    counters: PerService,
    audits: Audits,
    managed: watch::Receiver<Managed>,
    /// Devices are followed; false only when that task has died.
    following: bool,
    /// Who keeps masquerade addresses.
    learner: Learner,
    /// What it was told of the node's own processes.
    taught: Option<NodeFacts>,
    /// Pods and Namespaces are listed apart from the rest.
    pods_apart: bool,
    /// Changes when maps that were full have room.
    grown: watch::Receiver<u64>,
    supervisor: Supervisor,
    updates: UnboundedReceiver<Delivery>,
    batches: u64,
    /// When the first list began, until all that it told is in the tables.
    listing_since: Option<Instant>,
    ready: bool,
    /// From a failed try to the next one.
    wait: Duration,
    retry_at: tokio::time::Instant,
}

/// Which Services a pass plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Those that have changed. Others that failed wait for their time.
    Changed,
    /// Those that failed as well.
    All,
}

impl Service {
    async fn follow(mut self, stop: &mut Stop, tables: &mut impl Tables) {
        loop {
            // Before the first list, pending means waiting for it, which no retry hastens.
            let retry = self.reconciler.is_listed() && self.reconciler.is_pending();
            let delivery = tokio::select! {
                biased;
                signal = stop.wait() => {
                    info!("{signal}: ending; the programs and tables stay and go on forwarding");
                    self.supervisor.stopping();
                    return;
                }
                () = self.surfaces.pulse.asked() => {
                    self.surfaces.pulse.answer();
                    continue;
                }
                delivery = self.updates.recv() => delivery,
                () = tokio::time::sleep_until(self.retry_at), if retry => {
                    self.wait = (self.wait * 2).min(RETRY_LONGEST);
                    self.pass(tables, Extent::All);
                    continue;
                }
                Ok(()) = self.grown.changed(), if retry => {
                    self.wait = RETRY_FIRST;
                    self.pass(tables, Extent::All);
                    continue;
                }
                changed = self.managed.changed(), if self.following => {
                    self.following = changed.is_ok();
                    self.devices_changed(tables);
                    continue;
                }
                () = self.memory.asks() => {
                    self.memory.note_asked();
                    self.memory.help(&self.reconciler, &self.updates);
                    continue;
                }
                due = self.audits.next(), if self.reconciler.is_listed() => {
                    self.audit(due, tables);
                    continue;
                }
            };
            let Some(delivery) = delivery else {
                // The source is gone; what is in force stays so until a signal comes.
                let signal = stop.wait().await;
                info!("{signal}: ending");
                self.supervisor.stopping();
                return;
            };
            let oldest = self.take_in(delivery);
            self.pass(tables, Extent::Changed);
            self.memory.help(&self.reconciler, &self.updates);
            let took = oldest.elapsed();
            self.surfaces.updated(took);
            debug!(target: LATENCY, micros = micros(took));
        }
    }

    /// Devices or addresses of this node have changed.
    fn devices_changed(&mut self, tables: &mut impl Tables) {
        let addresses = self.managed.borrow_and_update().addresses.clone();
        self.reconciler.receive_addresses(addresses);
        self.teach();
        if !self.reconciler.is_listed() {
            return;
        }
        if self.reconciler.is_pending() {
            self.pass(tables, Extent::Changed);
        } else if !self.ready {
            self.get_ready();
        }
        self.note_lacking();
    }

    /// Tells the kernel side which addresses are whose, if that has changed.
    fn teach(&mut self) {
        if let Some(facts) = self.reconciler.take_cluster_facts() {
            self.taught.clone_from(&facts.node);
            self.learner.learn(facts);
        }
        if let Some(rules) = self.reconciler.take_pod_rules(self.pods_apart) {
            self.learner.learn_pods(rules);
        }
    }

    /// Goes on with an audit.
    fn audit(&mut self, due: Due, tables: &mut impl Tables) {
        let report = self.audits.go_on(due, &self.reconciler, tables);
        if let Some(report) = report {
            self.surfaces.metrics.audited(report);
            debug!("audit: {report:?}");
        }
    }

    /// Tells of warnings that have come up.
    fn tell(&mut self) {
        for news in self.reconciler.take_news() {
            if let Some(recorder) = &self.recorder {
                let message = news.warning.to_string();
                recorder.warn(&news.service, &news.uid, news.warning.reason(), &message);
            }
        }
    }

    /// Takes in what has come; several updates cost one pass. Gives when the oldest was received.
    fn take_in(&mut self, first: Delivery) -> Instant {
        let mut oldest = first.received;
        self.surfaces.queued(&first.update);
        self.reconciler.receive(first.update);
        while let Ok(next) = self.updates.try_recv() {
            oldest = oldest.min(next.received);
            self.surfaces.queued(&next.update);
            self.reconciler.receive(next.update);
        }
        self.teach();
        oldest
    }

    /// One attempt to bring everything that is known into force.
    fn pass(&mut self, tables: &mut impl Tables, extent: Extent) {
        let started = Instant::now();
        let failed_before = self.reconciler.failed_len();
        let outcome = match extent {
            Extent::Changed => self.reconciler.sync_changed(tables),
            Extent::All => self.reconciler.sync(tables),
        };
        self.surfaces.passed(outcome, started, &self.reconciler);
        if let Some(ids) = self.reconciler.take_renamed() {
            self.counters.name(ids);
        }
        self.tell();
        self.health.listen_at(self.reconciler.health_addresses());
        self.health.change(self.reconciler.take_health_news());
        if outcome.services >= MANY_SERVICES {
            memory::give_back();
        }
        if outcome.changes > 0 {
            let sentence = sentence(outcome, started.elapsed());
            // A busy cluster has hundreds of changes a second.
            if self.ready {
                debug!("{sentence}");
            } else {
                info!("{sentence}");
            }
        }
        if outcome.pending == 0
            && self.reconciler.is_listed()
            && let Some(since) = self.listing_since.take()
        {
            debug!(target: LATENCY, programmed_micros = micros(since.elapsed()));
        }
        if outcome.pending > 0 {
            if failed_before == 0 {
                self.wait = RETRY_FIRST;
            }
            if failed_before == 0 || extent == Extent::All {
                self.retry_at = tokio::time::Instant::now() + self.wait;
                info!("{} waiting for another try", services(outcome.pending));
            }
        } else if self.ready {
            self.batches += 1;
            self.supervisor.applied(self.batches);
        } else {
            self.get_ready();
        }
        self.note_lacking();
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn sentence(outcome: Outcome, took: Duration) -> String {
    let changes = match outcome.changes {
        1 => "1 change".to_owned(),
        n => format!("{n} changes"),
    };
    let millis = took.as_secs_f64() * 1e3;
    format!(
        "applied {changes} to {} in {millis:.1} ms",
        services(outcome.services)
    )
}

fn services(count: usize) -> String {
    match count {
        1 => "1 service".to_owned(),
        n => format!("{n} services"),
    }
}
