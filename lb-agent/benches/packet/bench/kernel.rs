// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shipped programs and the bench's own, in the kernel, with maps that nobody else has.
//!
//! **Invariant:** nothing is attached and nothing is pinned: all of it is gone with this process.
//! Read next: lb-ebpf/src/bench, the programs that restore packets.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, ProgramArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use bytemuck::Pod;
use lb_agent::datapath::fit;
use lb_common::abi::{
    Conn, ConnKey, Iface, IfaceFlags, PREFIX_TABLE_BITS, PortSet, Prefix, PrefixTable, names,
    version_index,
};
use nix::time::{ClockId, clock_getres};

use super::layout::{self, Walk};
use super::wire;

/// The programs that the agent carries.
static SHIPPED: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));
/// The bench's own.
static TOOLS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf-bench.o"));

/// `TC_ACT_UNSPEC`: the next program decides, and no program means pass.
pub(crate) const PASS: u32 = u32::MAX;
/// `TC_ACT_SHOT`.
pub(crate) const DROP: u32 = 2;
/// Test runs take place on the loopback of the bench's own network namespace.
const LOOPBACK: u32 = 1;
/// The namespace of the device itself, where `bpf_skc_lookup_tcp` wants the id of one.
const SAME_NETNS: u32 = u32::MAX;
/// Offset of `mark` in `struct __sk_buff`, and its size.
const MARK: usize = 8;
const SK_BUFF: usize = 192;

/// Lets plain data of one crate be plain data of the other.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Plain<T>(pub(crate) T);

// SAFETY: bytemuck's Pod has no padding and takes every bit pattern, which is all that is asked.
unsafe impl<T: Pod> aya::Pod for Plain<T> {}

// SAFETY: words and half-words without padding.
unsafe impl aya::Pod for layout::Headers4 {}
// SAFETY: as above.
unsafe impl aya::Pod for layout::Headers6 {}
// SAFETY: as above.
unsafe impl aya::Pod for Walk {}
// SAFETY: as above.
unsafe impl aya::Pod for layout::Keys {}

/// A program that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Ingress,
    Egress,
    /// The smallest translation, to compare with.
    Smallest,
}

/// What came out of a hook.
pub(crate) struct Left {
    pub(crate) verdict: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) mark: u32,
}

/// Everything in the kernel.
pub(crate) struct Kernel {
    shipped: Ebpf,
    tools: Ebpf,
}

impl Kernel {
    /// Loads the programs with maps of the sizes that the agent gives them at first.
    pub(crate) fn load(packets_max: u32) -> Result<Self> {
        if SHIPPED.is_empty() || TOOLS.is_empty() {
            bail!("the programs were not compiled (LB_SKIP_BPF)");
        }
        let mut loader = EbpfLoader::new();
        let hz = ticks_per_second()?;
        loader.override_global("HZ", &hz, true);
        let object = fit(&mut loader, SHIPPED);
        let mut shipped = loader.load(&object).context("load the packet path")?;
        for name in ["lb_tc_ingress", "lb_tc_egress"] {
            load_program(&mut shipped, name)?;
        }
        let mut tools = load_tools(packets_max, None)?;
        for name in ["empty", "drive_v4", "drive_v6", "drive_same", "dnat_v4"] {
            load_program(&mut tools, name)?;
        }
        let mut kernel = Self { shipped, tools };
        // As a pod's veth on a node whose pods are routed.
        let iface = Iface {
            bridge: 0,
            peer_netns: SAME_NETNS,
            flags: IfaceFlags::PEER_NETNS | IfaceFlags::POD,
        };
        kernel.put(names::IFACES, LOOPBACK, iface);
        Ok(kernel)
    }

    pub(crate) fn put<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: V) {
        let map = self.shipped.map_mut(map).expect("the object has the map");
        let mut map = HashMap::<_, Plain<K>, Plain<V>>::try_from(map).expect("the layouts agree");
        map.insert(Plain(key), Plain(value), 0)
            .expect("there is room");
    }

    /// Says which ports frontends have.
    pub(crate) fn put_ports(&mut self, ports: &PortSet) {
        let map = self.shipped.map_mut(names::FRONTEND_PORTS);
        let map = map.expect("the object has the map");
        let mut map = Array::<_, Plain<PortSet>>::try_from(map).expect("the layouts agree");
        map.set(0, Plain(*ports), 0).expect("the only element");
    }

    /// Says that the tables of a service were written, as the agent does after each write.
    pub(crate) fn put_version(&mut self, service: u32) {
        let map = self
            .shipped
            .map_mut(names::VERSIONS)
            .expect("the object has the map");
        let mut versions = Array::<_, u32>::try_from(map).expect("the layouts agree");
        versions
            .set(version_index(service), 1, 0)
            .expect("the entry is there");
    }

    /// Makes an address the node's own, and the one that everything is masqueraded with.
    pub(crate) fn put_own_address<A: Pod>(&mut self, map: &str, address: A)
    where
        Prefix<A>: Pod,
    {
        let map = self.shipped.map_mut(map).expect("the object has the map");
        let mut trie =
            LpmTrie::<_, Plain<Prefix<A>>, Plain<A>>::try_from(map).expect("the layouts agree");
        let bits = u32::try_from(8 * size_of::<A>()).expect("an address");
        let own = Prefix {
            table: PrefixTable::OWN,
            address,
        };
        let anywhere = Prefix {
            table: LOOPBACK,
            address: A::zeroed(),
        };
        for (bits, prefix) in [(bits, own), (0, anywhere)] {
            let key = Key::new(PREFIX_TABLE_BITS + bits, Plain(prefix));
            trie.insert(&key, Plain(address), 0).expect("there is room");
        }
    }

    /// The keys of all flows, as bytes.
    pub(crate) fn flows(&self) -> BTreeSet<Vec<u8>> {
        let mut keys = BTreeSet::new();
        for name in [names::CONNS_V4, names::HALF_OPEN_V4] {
            keys.extend(self.keys::<ConnKey<[u8; 4]>, Conn<[u8; 4]>>(name));
        }
        for name in [names::CONNS_V6, names::HALF_OPEN_V6] {
            keys.extend(self.keys::<ConnKey<[u8; 16]>, Conn<[u8; 16]>>(name));
        }
        keys
    }

    /// Forgets every flow whose keys are not in `but`.
    pub(crate) fn forget_flows(&mut self, but: &BTreeSet<Vec<u8>>) {
        for name in [names::CONNS_V4, names::HALF_OPEN_V4] {
            self.forget::<ConnKey<[u8; 4]>, Conn<[u8; 4]>>(name, but);
        }
        for name in [names::CONNS_V6, names::HALF_OPEN_V6] {
            self.forget::<ConnKey<[u8; 16]>, Conn<[u8; 16]>>(name, but);
        }
    }

    fn keys<K: Pod, V: Pod>(&self, name: &str) -> Vec<Vec<u8>> {
        let map = self.shipped.map(name).expect("the object has the map");
        let map = HashMap::<_, Plain<K>, Plain<V>>::try_from(map).expect("the layouts agree");
        map.keys()
            .map(|key| bytemuck::bytes_of(&key.expect("nobody else writes").0).to_vec())
            .collect()
    }

    fn forget<K: Pod, V: Pod>(&mut self, name: &str, but: &BTreeSet<Vec<u8>>) {
        let keys = self.keys::<K, V>(name);
        let map = self.shipped.map_mut(name).expect("the object has the map");
        let mut map = HashMap::<_, Plain<K>, Plain<V>>::try_from(map).expect("the layouts agree");
        for key in keys.iter().filter(|key| !but.contains(*key)) {
            let key = Plain(bytemuck::pod_read_unaligned::<K>(key));
            map.remove(&key).expect("nobody else removes");
        }
    }

    /// Teaches the smallest translation a flow of IPv4.
    pub(crate) fn put_smallest(&mut self, before: &[u8], after: &[u8]) {
        let (from, to) = (wire::headers4(before), wire::headers4(after));
        let key = [from.source, from.destination, from.ports, before[23].into()];
        let value = [to.destination, to.ports >> 16];
        let map = self.tools.map_mut("FLOWS_V4").expect("the bench's own map");
        let mut map = HashMap::<_, layout::Tuple, layout::Translation>::try_from(map)
            .expect("the layouts agree");
        map.insert(key, value, 0).expect("there is room");
    }

    /// Makes the smallest translation forget everything.
    pub(crate) fn forget_smallest(&mut self) {
        let map = self.tools.map_mut("FLOWS_V4").expect("the bench's own map");
        let mut map = HashMap::<_, layout::Tuple, layout::Translation>::try_from(map)
            .expect("the layouts agree");
        let keys: Vec<_> = map.keys().map(|key| key.expect("nobody else")).collect();
        for key in keys {
            map.remove(&key).expect("nobody else removes");
        }
    }

    /// Sends one packet through a hook.
    pub(crate) fn run(&self, hook: Hook, frame: &[u8], mark: u32) -> Result<Left> {
        let mut left = vec![0; frame.len() + 64];
        let context = context(mark);
        let mut context_left = [0; SK_BUFF];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut left),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_left),
            ..TestRunOptions::default()
        };
        let result = self.program(hook)?.test_run(options)?;
        left.truncate(usize::try_from(result.data_size_out)?);
        Ok(Left {
            verdict: result.return_value,
            frame: left,
            mark: u32::from_ne_bytes(context_left[MARK..MARK + 4].try_into()?),
        })
    }

    /// The list that the driver walks from now on; all frames are of one family.
    pub(crate) fn set_packets(&mut self, frames: &[Vec<u8>], mark: u32) -> Result<()> {
        let first = frames.first().ok_or_else(|| anyhow!("an empty list"))?;
        if wire::is_v4(first) {
            self.write_list("PACKETS_V4", frames, wire::headers4)?;
        } else {
            self.write_list("PACKETS_V6", frames, wire::headers6)?;
        }
        let walk = Walk {
            next: 0,
            count: u32::try_from(frames.len())?,
            link: wire::link_of(first),
            mark,
        };
        let map = self.tools.map_mut("WALK").context("the bench's own map")?;
        Array::<_, Walk>::try_from(map)?.set(0, walk, 0)?;
        Ok(())
    }

    fn write_list<H: aya::Pod>(
        &mut self,
        name: &str,
        frames: &[Vec<u8>],
        headers: fn(&[u8]) -> H,
    ) -> Result<()> {
        let map = self.tools.map_mut(name).context("the bench's own map")?;
        let mut list = Array::<_, H>::try_from(map)?;
        for (index, frame) in (0..).zip(frames) {
            list.set(index, headers(frame), 0)?;
        }
        Ok(())
    }

    /// What the driver jumps to from now on; none: to the empty program.
    pub(crate) fn set_under_test(&mut self, hook: Option<Hook>) -> Result<()> {
        let fd = match hook {
            Some(hook) => self.program(hook)?,
            None => self.tool("empty")?,
        }
        .fd()?
        .try_clone()?;
        let map = self
            .tools
            .map_mut("UNDER_TEST")
            .context("the bench's own map")?;
        ProgramArray::try_from(map)?.set(0, &fd, 0)?;
        Ok(())
    }

    fn program(&self, hook: Hook) -> Result<&SchedClassifier> {
        match hook {
            Hook::Ingress => classifier(&self.shipped, "lb_tc_ingress"),
            Hook::Egress => classifier(&self.shipped, "lb_tc_egress"),
            Hook::Smallest => self.tool("dnat_v4"),
        }
    }

    /// One of the bench's own programs.
    pub(crate) fn tool(&self, name: &str) -> Result<&SchedClassifier> {
        classifier(&self.tools, name)
    }
}

/// The bench's own programs; `entries` is the size of the maps of the micro cases.
pub(crate) fn load_tools(packets_max: u32, entries: Option<u32>) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for name in ["PACKETS_V4", "PACKETS_V6"] {
        loader.map_max_entries(name, packets_max);
    }
    for name in ["HASH", "LRU", "LRU_OWN"] {
        loader.map_max_entries(name, entries.unwrap_or(1));
    }
    loader.load(TOOLS).context("load the bench's programs")
}

pub(crate) fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no {name}"))?;
    let program: &mut SchedClassifier = program.try_into()?;
    program.load().with_context(|| format!("load {name}"))
}

pub(crate) fn classifier<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a SchedClassifier> {
    let program = ebpf.program(name).with_context(|| format!("no {name}"))?;
    Ok(program.try_into()?)
}

/// What a test run is told of the packet beside its bytes.
pub(crate) fn context(mark: u32) -> [u8; SK_BUFF] {
    let mut context = [0; SK_BUFF];
    context[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
    context
}

/// Ticks in a second: the resolution of the coarse clock is one tick.
fn ticks_per_second() -> Result<u32> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?.tv_nsec();
    let hz = (1_000_000_000 + tick / 2)
        .checked_div(tick)
        .context("a clock that stands still")?;
    Ok(u32::try_from(hz)?)
}
