// SPDX-License-Identifier: MIT OR Apache-2.0
//! Brings the programs and maps into the kernel.
//!
//! Maps that an earlier agent pinned are used again, after a check of layout and shape, so that
//! tables and flows survive a restart; the programs are always this binary's own.
//! **Invariant:** nothing is attached here. See `attach.rs`.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread::ScopedJoinHandle;

use aya::maps::MapData;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use lb_common::abi::{Cursor, limits, names};
use nix::time::{ClockId, clock_getres};

use super::MasqueradeConfig;
use super::batch;
use super::error::DatapathError;
use super::kernel::fit;
use super::maps::failed;
use super::pins::Pins;
use super::ports::{SnatPorts, parse_local_ports};
use super::shapes::{Chosen, Entries, Shape, shapes};
use super::sizes::Sizes;
use super::sweep::Timeouts;

/// The programs, as `build.rs` compiled them.
pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

/// The program that returns the low 32 bits of the kernel's jiffies; it is run, never attached.
const CLOCK: &str = "lb_clock";

/// Cursors that are seeded by one write.
const SEEDED_AT_ONCE: usize = 65_536;

/// Programs that every node needs: ingress and egress of devices with Ethernet headers. Their
/// variants for devices without are loaded when the first such device appears, because the verifier
/// works as long on those as on these.
const ATTACHED: [&str; 2] = ["lb_tc_ingress", "lb_tc_egress"];

/// What was chosen about the maps.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) connections_max: u32,
    pub(super) half_open_max: u32,
    pub(super) affinity_max: u32,
    pub(super) sizes: Sizes,
    pub(super) settings: Settings,
}

impl Wanted {
    fn chosen(&self) -> Chosen {
        Chosen {
            connections: self.connections_max,
            half_open: self.half_open_max,
            affinities: self.affinity_max,
        }
    }

    fn shapes(&self) -> Vec<Shape> {
        shapes(self.chosen(), &self.sizes)
    }

    /// The maps that the layout which this build has a way from has otherwise.
    #[cfg(feature = "layout-next")]
    pub(super) fn older_shapes(&self) -> Vec<Shape> {
        super::shapes::older_shapes(self.chosen(), &self.sizes)
    }
}

/// What the programs are told beside the maps.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    mark: u32,
    by_mark: u32,
    ports: [u16; 8],
    /// What the programs at sockets are told.
    pub(super) sockets: SocketSettings,
    /// How long the entry of a datagram that no frontend's port shows may be silent, in seconds.
    unlisted_secs: u32,
    /// How long a socket that is not connected keeps a backend that it does not send to, in seconds.
    socket_idle_secs: u32,
}

impl Settings {
    /// Ports that masqueraded flows may get.
    pub(super) fn snat_ports(&self) -> u32 {
        let ranges = self.ports.chunks_exact(2);
        ranges
            .map(|range| (u32::from(range[1]) + 1).saturating_sub(range[0].into()))
            .sum()
    }
}

/// What the programs at sockets are told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SocketSettings {
    /// The cookie of the node's own network namespace; 0: not known.
    pub(super) node_netns: u64,
    /// Whether sockets in other namespaces are served as well.
    pub(super) of_pods: bool,
}

/// More than the rest between two passes of the sweeper.
const UNLISTED_SLACK_SECS: u32 = 60;
/// Half of the time after which the programs' stamps repeat, with 1000 ticks in a second.
const UNLISTED_MAX_SECS: u32 = 2 * 60 * 60;

/// Where the kernel says which ports it gives to sockets of this network namespace.
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// With fewer ports than these flows to one backend run out of them soon.
const FEW_PORTS: u32 = 1000;

/// Works out what the programs are told about masquerading.
pub(super) fn settings(
    config: &MasqueradeConfig,
    timeouts: Timeouts,
    sockets: SocketSettings,
) -> Result<Settings, DatapathError> {
    let text = std::fs::read_to_string(LOCAL_PORTS).map_err(|source| DatapathError::Directory {
        what: "read",
        path: LOCAL_PORTS.into(),
        source,
    })?;
    let local = parse_local_ports(&text).ok_or_else(|| DatapathError::Directory {
        what: "read",
        path: LOCAL_PORTS.into(),
        source: io::Error::other(format!("{text:?} is no range of ports")),
    })?;
    let pool = SnatPorts::new(&config.ports, &[local, config.node_ports]);
    let pool = pool.ok_or(DatapathError::NoSnatPorts {
        local,
        node_ports: config.node_ports,
    })?;
    if pool.left_out > 0 {
        let left_out = pool.left_out;
        tracing::warn!("{left_out} ports of --snat-port-range lie in too many pieces to be used");
    }
    if pool.count() < FEW_PORTS {
        tracing::warn!(
            "only {} ports for masqueraded flows ({pool}): --snat-port-range without the kernel's \
             own {local} (net.ipv4.ip_local_port_range) and node ports {}",
            pool.count(),
            config.node_ports
        );
    }
    Ok(Settings {
        mark: 1 << (config.mark_bit & 31),
        by_mark: u32::from(config.by_mark),
        ports: pool.words(),
        sockets,
        socket_idle_secs: timeouts.udp_stream,
        unlisted_secs: timeouts
            .udp
            .max(timeouts.udp_stream)
            .saturating_add(UNLISTED_SLACK_SECS)
            .min(UNLISTED_MAX_SECS),
    })
}

/// Entries of the maps that are to take the place of those with the same names.
type Larger = BTreeMap<&'static str, u32>;

/// Maps that are pinned at another place than usual, and their entries.
type Elsewhere = BTreeMap<&'static str, (PathBuf, u32)>;

/// What programs need that look into the maps of an older layout, too.
#[cfg(feature = "layout-next")]
pub(super) struct Bridge {
    /// The maps of this layout that take the place of older ones.
    pub(super) elsewhere: Elsewhere,
    /// What leads the gates.
    pub(super) gates: [(&'static str, PathBuf); 2],
}

/// Tables of flows as programs know those of an older layout.
#[cfg(feature = "layout-next")]
const OLDER: [(&str, &str); 4] = [
    (names::OLD_CONNS_V4, names::CONNS_V4),
    (names::OLD_CONNS_V6, names::CONNS_V6),
    (names::OLD_HALF_V4, names::HALF_OPEN_V4),
    (names::OLD_HALF_V6, names::HALF_OPEN_V6),
];

/// Loads everything; maps that do not exist yet are made and pinned.
pub(super) fn load(pins: &Pins, wanted: &Wanted) -> Result<Ebpf, DatapathError> {
    let fresh = !pins.map(names::CURSORS).exists();
    let shapes = wanted.shapes();
    let mut ebpf = load_object(pins, wanted, &shapes, &Elsewhere::new(), |_| {})?;
    // Verifying is one processor's work for each program, and not alike for all: there is time beside it.
    std::thread::scope(|scope| {
        let seeded = fresh.then(|| scope.spawn(|| seed_cursors(pins)));
        load_programs(&mut ebpf)?;
        let joined = seeded.map_or(Ok(Ok(())), ScopedJoinHandle::join);
        joined.unwrap_or_else(|panic| resume_unwind(panic))
    })?;
    pin_clock(&mut ebpf, pins)?;
    Ok(ebpf)
}

/// Loads the programs once more, with new maps in the place of those that are named.
pub(super) fn load_larger(
    pins: &Pins,
    wanted: &Wanted,
    larger: &Larger,
) -> Result<Ebpf, DatapathError> {
    let shapes = wanted.shapes();
    let next = |(name, entries): (&&'static str, &u32)| (*name, (pins.next(name), *entries));
    let elsewhere = larger.iter().map(next).collect();
    pins.check_shapes(&shapes)?;
    let mut ebpf = load_object(pins, wanted, &shapes, &elsewhere, |_| {})?;
    load_programs(&mut ebpf)?;
    Ok(ebpf)
}

/// Loads programs for maps of this layout, which look into those of an older one, too.
#[cfg(feature = "layout-next")]
pub(super) fn load_bridging(
    pins: &Pins,
    wanted: &Wanted,
    bridge: &Bridge,
) -> Result<Ebpf, DatapathError> {
    let older = wanted.older_shapes();
    pins.check_shapes(&older)?;
    load_object(
        pins,
        wanted,
        &wanted.shapes(),
        &bridge.elsewhere,
        |loader| {
            loader.override_global("BRIDGING", &1_u32, true);
            for (name, pinned) in OLDER {
                loader.map_pin_path(name, pins.map(pinned));
                if let Some((_, entries)) = bridge.elsewhere.get(pinned) {
                    loader.map_max_entries(name, *entries);
                }
            }
            for (name, path) in &bridge.gates {
                loader.map_pin_path(name, path.clone());
            }
        },
    )
}

fn load_object(
    pins: &Pins,
    wanted: &Wanted,
    shapes: &[Shape],
    elsewhere: &Elsewhere,
    adapt: impl FnOnce(&mut EbpfLoader<'_>),
) -> Result<Ebpf, DatapathError> {
    if OBJECT.is_empty() {
        return Err(DatapathError::NoObject);
    }
    let usual = || {
        shapes
            .iter()
            .filter(|shape| !elsewhere.contains_key(shape.name))
    };
    pins.check_shapes(usual())?;
    let hz = ticks_per_second()?;
    let mut loader = EbpfLoader::new();
    let object = fit(&mut loader, OBJECT);
    loader.override_global("HZ", &hz, true);
    let settings = &wanted.settings;
    loader.override_global("MASQUERADE_MARK", &settings.mark, true);
    loader.override_global("MASQUERADE_BY_MARK", &settings.by_mark, true);
    loader.override_global("SNAT_PORTS", &settings.ports, true);
    loader.override_global("UNLISTED_SECS", &settings.unlisted_secs, true);
    let sockets = settings.sockets;
    let of_pods = u32::from(sockets.of_pods);
    loader.override_global("NODE_NETNS", &sockets.node_netns, true);
    loader.override_global("SOCKETS_OF_PODS", &of_pods, true);
    loader.override_global("SOCKET_IDLE_SECS", &settings.socket_idle_secs, true);
    for shape in shapes {
        let (path, entries) = match (elsewhere.get(shape.name), shape.entries) {
            (Some((path, entries)), _) => (path.clone(), Some(*entries)),
            (None, Entries::Growing(first)) => {
                let found = pins.found(shape.name)?;
                let entries = found.map_or(first, |found| found.entries);
                (pins.map(shape.name), Some(entries))
            }
            (None, Entries::Exactly(entries)) => (pins.map(shape.name), Some(entries)),
            (None, Entries::Object(_)) => (pins.map(shape.name), None),
        };
        loader.map_pin_path(shape.name, path);
        if let Some(entries) = entries {
            loader.map_max_entries(shape.name, entries);
        }
    }
    adapt(&mut loader);
    let ebpf = loader
        .load(&object)
        .map_err(|source| DatapathError::Object {
            source: Box::new(source),
        })?;
    // A map that the object lacks or shapes otherwise than the agent is found before any packet.
    for name in names::ALL {
        if ebpf.map(name).is_none() {
            return Err(DatapathError::Missing { name });
        }
    }
    pins.check_shapes(usual())?;
    Ok(ebpf)
}

/// Loads what every node needs, each program by a thread of its own: the verifier works on one
/// processor for each, and its time is most of what a start takes.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    for name in ATTACHED {
        if ebpf.program(name).is_none() {
            return Err(DatapathError::Missing { name });
        }
    }
    std::thread::scope(|scope| {
        let mut loading = Vec::new();
        for (found, program) in ebpf.programs_mut() {
            let name = ATTACHED.into_iter().find(|name| *name == found);
            if let (Some(name), Ok(program)) = (name, <&mut SchedClassifier>::try_from(program)) {
                loading.push(scope.spawn(move || load_classifier(program, name)));
            }
        }
        let mut loaded = loading.into_iter().map(ScopedJoinHandle::join);
        loaded.try_for_each(|loaded| loaded.unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Brings one program into the kernel, if it is not there.
fn load_classifier(program: &mut SchedClassifier, name: &'static str) -> Result<(), DatapathError> {
    if program.fd().is_ok() {
        return Ok(());
    }
    program
        .load()
        .map_err(|error| DatapathError::refused(name, error))
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    program(ebpf, name).map(drop)
}

/// The program `name` of the object, in the kernel.
pub(super) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, DatapathError> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(DatapathError::Missing { name })?;
    load_classifier(program, name)?;
    Ok(program)
}

/// Pins the clock where the sweeper and the commands that show ages find it.
fn pin_clock(ebpf: &mut Ebpf, pins: &Pins) -> Result<(), DatapathError> {
    load_program(ebpf, CLOCK)?;
    let path = pins.clock();
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(DatapathError::Directory {
                what: "remove",
                path,
                source,
            });
        }
        _ => {}
    }
    program(ebpf, CLOCK)?
        .pin(&path)
        .map_err(|source| DatapathError::Directory {
            what: "pin program",
            path,
            source: io::Error::other(source),
        })
}

/// Gives every service a random first backend, so that nodes do not march in step.
fn seed_cursors(pins: &Pins) -> Result<(), DatapathError> {
    let cursors =
        MapData::from_pin(pins.map(names::CURSORS)).map_err(failed("open", names::CURSORS))?;
    let mut random = std::fs::File::open("/dev/urandom").map_err(io_seed)?;
    let ids: Vec<u32> = (0..limits::SERVICES).collect();
    for ids in ids.chunks(SEEDED_AT_ONCE) {
        let mut seeds = vec![Cursor::default(); ids.len()];
        random
            .read_exact(bytemuck::cast_slice_mut(&mut seeds))
            .map_err(io_seed)?;
        batch::put(&cursors, ids, &seeds)
            .map_err(|error| failed("seed", names::CURSORS)(error.into()))?;
    }
    Ok(())
}

fn io_seed(source: io::Error) -> DatapathError {
    DatapathError::Directory {
        what: "read random numbers from",
        path: "/dev/urandom".into(),
        source,
    }
}

/// The kernel's time, as the packet path writes it into flow entries.
pub struct Clock {
    program: SchedClassifier,
    /// Ticks in a second.
    pub hz: u32,
}

impl Clock {
    /// Opens the clock that the agent has pinned.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let program = SchedClassifier::from_pin(pins.clock())
            .map_err(|error| DatapathError::refused(CLOCK, error))?;
        Ok(Self {
            program,
            hz: ticks_per_second()?,
        })
    }

    /// Low 32 bits of the kernel's jiffies.
    pub fn now(&self) -> Result<u32, DatapathError> {
        // KERNEL: a test run wants at least an Ethernet header, though the program reads none.
        let frame = [0; 64];
        let run = self
            .program
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                repeat: 1,
                ..TestRunOptions::default()
            })
            .map_err(|error| DatapathError::refused(CLOCK, error))?;
        Ok(run.return_value)
    }
}

/// Ticks in a second: the resolution of the coarse clock is one tick.
fn ticks_per_second() -> Result<u32, DatapathError> {
    let tick =
        clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|errno| DatapathError::Tick {
            source: errno.into(),
        })?;
    u64::try_from(tick.tv_nsec())
        .ok()
        .filter(|_| tick.tv_sec() == 0)
        .and_then(hz_of)
        .ok_or_else(|| DatapathError::Tick {
            source: io::Error::other(format!("a tick of {tick} makes no sense")),
        })
}

/// The kernel stores the tick in whole nanoseconds, so the quotient is rounded to the nearest.
fn hz_of(tick_ns: u64) -> Option<u32> {
    const SECOND_NS: u64 = 1_000_000_000;
    let hz = (SECOND_NS + tick_ns / 2).checked_div(tick_ns)?;
    u32::try_from(hz).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tick_that_kernels_are_built_with_is_recognised() {
        for hz in [24, 100, 250, 300, 1000, 1024] {
            assert_eq!(hz_of(1_000_000_000 / u64::from(hz)), Some(hz));
        }
        assert_eq!(hz_of(0), None);
    }
}
