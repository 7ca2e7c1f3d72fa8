// SPDX-License-Identifier: MIT OR Apache-2.0
//! `lb-agent run`: gives the reconciler its clock, its source and the kernel.
//!
//! One loop on one thread: an update is written at once; what comes in while a write is in flight
//! is taken in together afterwards. SIGTERM ends the agent and leaves the forwarding in place.
//! **Invariant:** nothing is decided here about Services.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use lb_common::abi::limits;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::options::PlanningArgs;
use crate::datapath::{Datapath, DatapathConfig, Managed, Patterns};
use crate::model::snapshot::Update;
use crate::notify::Supervisor;
use crate::plan::ids::IdLimits;
use crate::reconcile::{Outcome, Reconciler, Settings};
use crate::source::manifests;
use crate::tables::Tables;
use crate::telemetry::LogFormat;
use crate::{config, error_chain};

/// How long to wait before the first retry of a failed write; doubled for each further one.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two retries.
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// The flags of `run`.
#[derive(Clone, Debug, Args)]
pub(super) struct RunArgs {
    /// Folder of Kubernetes manifests to serve and to watch (*.yaml, *.yml, *.json).
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// The name of this node [default: the host name].
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Where to pin maps and programs, on a BPF file system.
    #[arg(long, value_name = "DIR", default_value = config::BPFFS_DEFAULT)]
    bpffs: PathBuf,
    /// A cgroup v2 folder, for a way in at the socket that is not there yet: it is checked and not
    /// used [default: the root of the hierarchy].
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    #[command(flatten)]
    planning: PlanningArgs,
    /// Devices to manage even if they are not found to need it; * and ? match any text.
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    include_interfaces: Vec<String>,
    /// Devices to leave alone; wins over the former.
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    exclude_interfaces: Vec<String>,
    /// Entries of each connection table; a connection takes two.
    #[arg(long, value_name = "N", default_value_t = limits::CONNECTIONS,
          value_parser = clap::value_parser!(u32).range(2..))]
    connections_max: u32,
    /// How to write the log.
    #[arg(long, value_enum, default_value_t)]
    pub(super) log_format: LogFormat,
}

pub(super) fn run(args: &RunArgs) -> Result<(), String> {
    config::manifests(&args.manifests).map_err(|e| error_chain(&e))?;
    let node_name = config::node_name(args.node.as_deref()).map_err(|e| error_chain(&e))?;
    let cgroup = config::cgroup(args.cgroup.as_deref()).map_err(|e| error_chain(&e))?;
    debug!(?cgroup, "socket hooks are not attached yet");
    let settings = Settings {
        node_name,
        options: args.planning.options()?,
        id_limits: IdLimits::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("start the runtime: {e}"))?;
    runtime.block_on(serve(args, settings))
}

async fn serve(args: &RunArgs, settings: Settings) -> Result<(), String> {
    let mut stop = Stop::new().map_err(|e| format!("catch signals: {e}"))?;
    let supervisor = Supervisor::from_environment();
    let mut datapath = DatapathConfig::new(&args.bpffs);
    datapath.connections_max = args.connections_max;
    datapath.patterns = Patterns {
        include: args.include_interfaces.clone(),
        exclude: args.exclude_interfaces.clone(),
    };
    let mut datapath = Datapath::start(&datapath)
        .await
        .map_err(|e| error_chain(&e))?;
    let content = datapath.tables().dump().map_err(|e| error_chain(&e))?;
    info!(
        "node {}, {} entries from an earlier run",
        settings.node_name,
        content.len()
    );
    let (sender, updates) = unbounded_channel();
    manifests::watch(&args.manifests, sender).map_err(|e| error_chain(&e))?;
    let service = Service {
        managed: datapath.managed(),
        following: true,
        grown: datapath.grown(),
        reconciler: Reconciler::restore(settings, &content, seconds_since_1970()),
        supervisor,
        updates,
        batches: 0,
        ready: false,
        wait: RETRY_FIRST,
    };
    service.follow(&mut stop, datapath.tables()).await;
    Ok(())
}

/// Differs from that of every earlier process, as [`crate::plan::ids::Ids::new`] asks.
fn seconds_since_1970() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(1, |since| {
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    })
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
    managed: watch::Receiver<Managed>,
    /// Devices are followed; false only when that task has died.
    following: bool,
    /// Changes when maps that were full have room.
    grown: watch::Receiver<u64>,
    supervisor: Supervisor,
    updates: UnboundedReceiver<Update>,
    batches: u64,
    ready: bool,
    wait: Duration,
}

impl Service {
    async fn follow(mut self, stop: &mut Stop, tables: &mut impl Tables) {
        loop {
            // Before the first list, pending means waiting for it, which no retry hastens.
            let retry = self.reconciler.is_listed() && self.reconciler.is_pending();
            let update = tokio::select! {
                biased;
                signal = stop.wait() => {
                    info!("{signal}: ending; the programs and tables stay and go on forwarding");
                    self.supervisor.stopping();
                    return;
                }
                update = self.updates.recv() => update,
                () = tokio::time::sleep(self.wait), if retry => {
                    self.pass(tables);
                    continue;
                }
                Ok(()) = self.grown.changed(), if retry => {
                    self.wait = RETRY_FIRST;
                    self.pass(tables);
                    continue;
                }
                changed = self.managed.changed(), if !self.ready && self.following => {
                    self.following = changed.is_ok();
                    if self.reconciler.is_listed() && !retry {
                        self.get_ready();
                    }
                    continue;
                }
            };
            let Some(update) = update else {
                // The source is gone; what is in force stays so until a signal comes.
                let signal = stop.wait().await;
                info!("{signal}: ending");
                self.supervisor.stopping();
                return;
            };
            self.reconciler.receive(update);
            while let Ok(update) = self.updates.try_recv() {
                self.reconciler.receive(update);
            }
            self.wait = RETRY_FIRST;
            self.pass(tables);
        }
    }

    /// One attempt to bring everything that is known into force.
    fn pass(&mut self, tables: &mut impl Tables) {
        let started = Instant::now();
        let outcome = self.reconciler.sync(tables);
        if outcome.changes > 0 {
            info!("{}", sentence(outcome, started.elapsed()));
        }
        if outcome.pending > 0 {
            self.wait = (self.wait * 2).min(RETRY_LONGEST);
            info!("{} waiting for another try", services(outcome.pending));
        } else if self.ready {
            self.batches += 1;
            self.supervisor.applied(self.batches);
        } else {
            self.get_ready();
        }
    }

    /// Says that all is in force, unless a device lacks its programs.
    fn get_ready(&mut self) {
        let lacking: Vec<String> = {
            let managed = self.managed.borrow_and_update();
            managed.lacking.iter().cloned().collect()
        };
        if !lacking.is_empty() {
            warn!("not ready: no programs on {} yet", lacking.join(", "));
            return;
        }
        self.ready = true;
        info!("ready: everything that is known is in force");
        let unreadable = self.reconciler.unreadable();
        if !unreadable.is_empty() {
            warn!(
                "{} cannot be read: what earlier runs left in the tables stays until then",
                unreadable.join(", ")
            );
        }
        self.supervisor.ready();
    }
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
