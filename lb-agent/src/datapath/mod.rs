// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel side of the agent: programs, attachments and maps. The only room with aya and
//! netlink.
//!
//! [`Datapath::start`] loads the programs, attaches them to the managed devices and goes on
//! following devices, removing ended flows and making full maps larger; [`KernelTables`] is where
//! plans are written to.
//! **Invariant:** all of it outlives the agent. Neither [`Datapath`]'s end nor SIGTERM detaches
//! anything, and the next agent takes over in place; [`Cleanup`] alone takes it away.
//! Read next: `loader.rs`, `attach.rs`, `follow.rs`, `grow.rs`.

mod apply;
mod attach;
mod batch;
mod cleanup;
mod counters;
mod devices;
mod drain;
mod error;
mod events;
mod facts;
mod fill;
mod follow;
mod grow;
mod kernel;
mod kube_proxy;
mod lacking;
mod layouts;
mod legacy;
mod link;
mod loader;
mod look;
mod maps;
mod masquerade;
mod netfilter;
mod netlink;
mod owner;
mod pins;
mod port_set;
mod ports;
mod prefixes;
mod probe;
mod refusal;
mod request;
mod rights;
mod shapes;
mod sizes;
mod sockets;
mod sweep;
mod traffic;
#[cfg(feature = "layout-next")]
mod upgrade;
mod versions;
mod view;
mod written;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lb_common::abi::limits;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use attach::Attacher;
use devices::Rules;
use follow::{Follower, Known};
use grow::Grower;
use loader::Wanted;
use maps::Ifaces;
use owner::Owner;
use prefixes::Prefixes;
use sockets::{Keepers, PodLearner, SocketHooks};
use sweep::Sweeper;

use crate::model::cluster::ClusterFacts;
use crate::model::pod::PodRules;

pub use attach::{Filters, Hook, Mechanism, choose_mechanism};
pub use cleanup::{Cleanup, Left, Removal, Thing};
pub use counters::{ReasonCounters, ServiceCounters};
pub use devices::{
    Carries, FilterFindings, LinkFacts, Managed, Patterns, PodSource, Role, classify,
};
pub use drain::{Drain, Living};
pub use error::DatapathError;
pub use fill::Fill;
pub use kernel::{Feature, Found, features, fit};
pub use loader::Clock;
pub use look::{
    Flow, FlowState, FlowVisitor, Look, MapFill, Masquerades, NodeLook, SocketFlow, look_at_node,
};
pub use maps::{Flows, KernelTables};
pub use pins::Pins;
pub use ports::{PortRange, SnatPorts};
pub use probe::{Finding, Health, disturbances, probe};
pub use refusal::Refusal;
pub use sizes::{Size, Sizes};
pub use sockets::{SocketConfig, SocketLb, SocketState, learn_netns_cookie, netns_cookie};
pub use sweep::Timeouts;
pub use traffic::{ServiceTraffic, Totals, Traffic};

/// What can be chosen about the kernel side.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Directory for pins, on a BPF file system; made when missing.
    pub bpffs: PathBuf,
    /// For how long to wait until the process that owns the pins ends.
    pub owner_wait: Duration,
    /// Entries of each connection table; a connection takes two.
    pub connections_max: u32,
    /// Entries of the tables: when they are made, and when they have grown as far as they may.
    pub sizes: Sizes,
    /// Entries of each table of flows that have only begun; a flow takes two.
    pub half_open_max: u32,
    /// Clients of each family that keep a backend.
    pub affinity_max: u32,
    /// When flows without packets have ended.
    pub timeouts: Timeouts,
    /// How masquerading is done.
    pub masquerade: MasqueradeConfig,
    /// Devices to manage or to leave alone, by name.
    pub patterns: Patterns,
    /// How pods of this node are told from other sources.
    pub pods: PodSource,
    /// Whose sockets are served at the socket, and where.
    pub sockets: SocketConfig,
    /// Where sockets of pods are served: also those of pods whose objects are not known.
    pub serve_unknown_pods: bool,
    /// Use clsact filters even where the kernel has TCX.
    pub clsact_only: bool,
    /// Time between two audits of the attachments.
    pub audit: Duration,
}

impl DatapathConfig {
    /// The defaults, with pins under `bpffs`.
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: bpffs.into(),
            owner_wait: Duration::ZERO,
            connections_max: limits::CONNECTIONS,
            half_open_max: limits::HALF_OPEN,
            affinity_max: limits::AFFINITIES,
            timeouts: Timeouts::default(),
            masquerade: MasqueradeConfig::default(),
            sizes: Sizes::default(),
            patterns: Patterns::default(),
            pods: PodSource::default(),
            sockets: SocketConfig::default(),
            serve_unknown_pods: false,
            clsact_only: false,
            audit: Duration::from_secs(30),
        }
    }
}

/// What can be chosen about masquerading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasqueradeConfig {
    /// The bit of a packet's mark, 0 to 31, that says it is to be masqueraded.
    pub mark_bit: u8,
    /// Only mark the packets: rules of someone else masquerade them.
    pub by_mark: bool,
    /// Ports that masqueraded flows may get, before those of the kernel and node ports are taken
    /// away.
    pub ports: Vec<PortRange>,
    /// Ports that node ports are chosen from.
    pub node_ports: PortRange,
}

impl Default for MasqueradeConfig {
    fn default() -> Self {
        Self {
            mark_bit: 14,
            by_mark: false,
            ports: PortRange::SNAT_DEFAULT.to_vec(),
            node_ports: PortRange::NODE_PORTS,
        }
    }
}

/// What was done since the start, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Programs that had to be put back.
    pub repairs: u64,
    /// Ended flows that were removed.
    pub swept: u64,
}

/// The running kernel side. Dropping it ends the following and the sweeping, not the forwarding.
pub struct Datapath {
    pins: Pins,
    tables: KernelTables,
    sweeper: Sweeper,
    keepers: Keepers,
    grower: Grower,
    follower: JoinHandle<()>,
    managed: watch::Receiver<Managed>,
    learner: Learner,
    repairs: Arc<AtomicU64>,
    snat_ports: u32,
    // ORDER: dropped last, when nobody here writes any more.
    _owner: Owner,
}

impl Datapath {
    /// Waits until nobody else owns the pins, loads, attaches to every managed device there is, and
    /// starts following devices. Those that could not be attached to are in [`Managed::lacking`] and
    /// tried again. Giving the wait up is no harm, at whatever point.
    ///
    /// Must be called on a tokio runtime, in the network namespace of the node. An error means that
    /// no device has all its programs from this process. Some may be attached to already, at egress
    /// only or replaced in place; what an earlier agent attached goes on working, and the next
    /// start goes on from there.
    pub async fn start(config: &DatapathConfig) -> Result<Self, DatapathError> {
        rights::check()?;
        let owner = Owner::take(&config.bpffs, config.owner_wait).await?;
        let pins = Pins::prepare(&config.bpffs)?;
        let (sockets, impossible) = sockets::prepare(&config.sockets);
        let wanted = Wanted {
            connections_max: config.connections_max,
            half_open_max: config.half_open_max,
            affinity_max: config.affinity_max,
            sizes: config.sizes,
            settings: loader::settings(&config.masquerade, config.timeouts, sockets)?,
        };
        let snat_ports = wanted.settings.snat_ports();
        let tcx = !config.clsact_only && kernel::has_tcx();
        #[cfg(feature = "layout-next")]
        upgrade::run(&pins, &wanted, tcx).await?;
        let ebpf = loader::load(&pins, &wanted)?;
        let mut tables = KernelTables::open_pins(&pins)?;
        let sweeper = Sweeper::start(&pins, config.timeouts, tables.meters())?;
        let (sender, managed) = watch::channel(Managed::default());
        let repairs = Arc::new(AtomicU64::new(0));
        let (switches, received) = mpsc::unbounded_channel();
        let (cluster, told) = watch::channel(None);
        let known = Known {
            prefixes: Prefixes::open(&pins)?,
            restored: ClusterFacts {
                service_addresses: tables.service_addresses()?,
                pod_ranges: None,
                node: None,
            },
            cluster: told,
        };
        let hooks = SocketHooks::new(config.sockets.clone(), impossible);
        let follower = Follower::new(
            Attacher::new(ebpf, pins.clone(), tcx, hooks),
            Ifaces::open(&pins)?,
            known,
            Rules {
                patterns: config.patterns.clone(),
                pods: config.pods.clone(),
            },
            sender,
            Arc::clone(&repairs),
            received,
        );
        let following = follower.start(config.audit).await?;
        // ORDER: after the programs, which serve new flows from here on.
        drain::reopen(&pins)?;
        let grower = Grower::start(pins.clone(), wanted, tables.written(), switches)?;
        tables.grower = Some(grower.caller());
        let keepers = Keepers::start(&pins, &mut tables, config)?;
        Ok(Self {
            pins,
            tables,
            sweeper,
            grower,
            follower: tokio::spawn(following),
            managed,
            learner: Learner {
                cluster,
                pods: keepers.learner(),
            },
            keepers,
            repairs,
            snat_ports,
            _owner: owner,
        })
    }

    /// The tables to write plans to.
    pub fn tables(&mut self) -> &mut KernelTables {
        &mut self.tables
    }

    /// The counters of service ids, to read them.
    pub fn counters(&self) -> Result<ServiceCounters, DatapathError> {
        ServiceCounters::open(&self.pins)
    }

    /// The counters of reasons, to read them.
    pub fn reasons(&self) -> Result<ReasonCounters, DatapathError> {
        ReasonCounters::open(&self.pins)
    }

    /// What goes through flows, summed by the sweeper.
    pub fn traffic(&self) -> Traffic {
        self.tables.traffic.clone()
    }

    /// How full the kernel side is, to ask for it at any time.
    pub fn fill(&self) -> Fill {
        Fill::new(self.pins.clone(), self.sweeper.met(), self.snat_ports)
    }

    /// The managed devices, as they are now and as they change.
    pub fn managed(&self) -> watch::Receiver<Managed> {
        self.managed.clone()
    }

    /// Where to tell what the cluster's objects say of this node's addresses.
    pub fn learner(&self) -> Learner {
        self.learner.clone()
    }

    /// How often full maps were made larger; each change means that there is room again.
    pub fn grown(&self) -> watch::Receiver<u64> {
        self.grower.grown()
    }

    /// How often a program had to be put back since the start.
    pub fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Relaxed)
    }

    /// The same, for reading it as it changes.
    pub fn repair_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.repairs)
    }

    /// How many sockets of UDP were ended because their backend was gone, for reading it as it changes.
    pub fn destroyed_counter(&self) -> Arc<AtomicU64> {
        self.keepers.destroyed()
    }

    /// How many ended flows were removed since the start.
    pub fn swept(&self) -> u64 {
        self.sweeper.removed()
    }

    /// Ends the following and the sweeping, and says what they did; the forwarding goes on.
    pub fn stop(mut self) -> Counts {
        self.follower.abort();
        self.sweeper.stop();
        Counts {
            repairs: self.repairs(),
            swept: self.swept(),
        }
    }
}

/// Takes in what the cluster's objects tell, for as long as the datapath runs.
#[derive(Clone, Debug)]
pub struct Learner {
    cluster: watch::Sender<Option<ClusterFacts>>,
    /// Who finds pods; nobody where their sockets are not served.
    pods: Option<PodLearner>,
}

impl Learner {
    /// From now on these rules decide whose sockets are served among pods.
    pub fn learn_pods(&self, rules: PodRules) {
        if let Some(pods) = &self.pods {
            pods.learn(rules);
        }
    }

    /// From now on these facts count.
    pub fn learn(&self, facts: ClusterFacts) {
        self.cluster.send_if_modified(|known| {
            let differs = known.as_ref() != Some(&facts);
            *known = Some(facts);
            differs
        });
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.follower.abort();
    }
}
