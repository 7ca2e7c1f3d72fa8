// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel side of the agent: programs, attachments and maps. The only room with aya and
//! netlink.
//!
//! [`Datapath::start`] loads the programs, attaches them to the managed devices and goes on
//! following devices, removing ended flows and making full maps larger; [`KernelTables`] is where
//! plans are written to.
//! **Invariant:** all of it outlives the agent. Neither [`Datapath`]'s end nor SIGTERM detaches
//! anything, and the next agent takes over in place.
//! Read next: `loader.rs`, `attach.rs`, `follow.rs`, `grow.rs`.

mod apply;
mod attach;
mod devices;
mod error;
mod events;
mod follow;
mod grow;
mod lacking;
mod loader;
mod maps;
mod netlink;
mod pins;
mod shapes;
mod sizes;
mod sweep;
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
use follow::Follower;
use grow::Grower;
use loader::Wanted;
use maps::Ifaces;
use sweep::Sweeper;

pub use attach::{Filters, Hook, Mechanism, choose_mechanism};
pub use devices::{Carries, LinkFacts, Managed, Patterns, Role, classify};
pub use error::DatapathError;
pub use loader::Clock;
pub use maps::{Flows, KernelTables};
pub use pins::Pins;
pub use sizes::{Size, Sizes};
pub use sweep::{age_secs, is_expired};

/// What can be chosen about the kernel side.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Directory for pins, on a BPF file system; made when missing.
    pub bpffs: PathBuf,
    /// Entries of each connection table; a connection takes two.
    pub connections_max: u32,
    /// Entries of the tables: when they are made, and when they have grown as far as they may.
    pub sizes: Sizes,
    /// Devices to manage or to leave alone, by name.
    pub patterns: Patterns,
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
            connections_max: limits::CONNECTIONS,
            sizes: Sizes::default(),
            patterns: Patterns::default(),
            clsact_only: false,
            audit: Duration::from_secs(30),
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
    tables: KernelTables,
    sweeper: Sweeper,
    grower: Grower,
    follower: JoinHandle<()>,
    managed: watch::Receiver<Managed>,
    repairs: Arc<AtomicU64>,
}

impl Datapath {
    /// Loads, attaches to every managed device there is, and starts following devices. Those that
    /// could not be attached to are in [`Managed::lacking`] and tried again.
    ///
    /// Must be called on a tokio runtime, in the network namespace of the node. An error means that
    /// no device has all its programs from this process. Some may be attached to already, at egress
    /// only or replaced in place; what an earlier agent attached goes on working, and the next
    /// start goes on from there.
    pub async fn start(config: &DatapathConfig) -> Result<Self, DatapathError> {
        let pins = Pins::prepare(&config.bpffs)?;
        let wanted = Wanted {
            connections_max: config.connections_max,
            sizes: config.sizes,
        };
        let ebpf = loader::load(&pins, &wanted)?;
        let mut tables = KernelTables::open_pins(&pins)?;
        let sweeper = Sweeper::start(&pins)?;
        let (sender, managed) = watch::channel(Managed::default());
        let repairs = Arc::new(AtomicU64::new(0));
        let (switches, received) = mpsc::unbounded_channel();
        let follower = Follower::new(
            Attacher::new(ebpf, pins.clone(), !config.clsact_only),
            Ifaces::open(&pins)?,
            config.patterns.clone(),
            sender,
            Arc::clone(&repairs),
            received,
        );
        let following = follower.start(config.audit).await?;
        let grower = Grower::start(pins, wanted, tables.written(), switches)?;
        tables.grower = Some(grower.caller());
        Ok(Self {
            tables,
            sweeper,
            grower,
            follower: tokio::spawn(following),
            managed,
            repairs,
        })
    }

    /// The tables to write plans to.
    pub fn tables(&mut self) -> &mut KernelTables {
        &mut self.tables
    }

    /// The managed devices, as they are now and as they change.
    pub fn managed(&self) -> watch::Receiver<Managed> {
        self.managed.clone()
    }

    /// How often full maps were made larger; each change means that there is room again.
    pub fn grown(&self) -> watch::Receiver<u64> {
        self.grower.grown()
    }

    /// How often a program had to be put back since the start.
    pub fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Relaxed)
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

impl Drop for Datapath {
    fn drop(&mut self) {
        self.follower.abort();
    }
}
