// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The maps.
//!
//! Sizes are replaced at load from the agent's configuration.
//! **Invariant:** one map, one place: nothing else declares any. `world.rs` reads and writes them.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use lb_common::abi::{
    self, Affinity, AffinityKey, Backend, Conn, ConnKey, Cursor, Fragment, FragmentKey, Frontend,
    FrontendKey, Iface, PortSet, Prefix, Recent, ServiceStats, SlotKey, SocketKey, SocketPeer,
    SourceRange, limits,
};
use lb_common::{Reason, V4, V6};
use lb_ebpf::limit::Bucket;
use lb_ebpf::packet::Parse;
use lb_ebpf::path::Work;

/// Entries written by the agent are few compared to the room they may need.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

type Frontends<A> = HashMap<FrontendKey<A>, Frontend, { limits::FRONTENDS as usize }, ON_DEMAND>;
type Backends<A> = HashMap<u32, Backend<A>, { limits::BACKENDS as usize }, ON_DEMAND>;
type Conns<A> = HashMap<ConnKey<A>, Conn<A>, { limits::CONNECTIONS as usize }, 0>;
type HalfOpen<A> = LruHashMap<ConnKey<A>, Conn<A>, { limits::HALF_OPEN as usize }>;
type Affinities<A> = LruHashMap<AffinityKey<A>, Affinity, { limits::AFFINITIES as usize }>;
type Prefixes<A> = LpmTrie<Prefix<A>, A, { limits::PREFIXES as usize }>;
type Fragments<A> = LruHashMap<FragmentKey<A>, Fragment, { limits::FRAGMENTS as usize }>;
type Sockets<A> = LruHashMap<SocketKey<A>, SocketPeer<A>, { limits::SOCKETS as usize }>;
type Stats = Array<ServiceStats, { limits::SERVICES as usize }>;
type SourceRanges<A> = LpmTrie<SourceRange<A>, u8, { limits::SOURCE_RANGES as usize }>;
type Works<A> = PerCpuArray<Work<A>, 1>;

#[btf_map]
static FRONTENDS_V4: Frontends<[u8; 4]> = HashMap::new();
#[btf_map]
static FRONTENDS_V6: Frontends<[u8; 16]> = HashMap::new();
#[btf_map]
pub(super) static SLOTS: HashMap<SlotKey, u32, { limits::SLOTS as usize }, ON_DEMAND> =
    HashMap::new();
#[btf_map]
static BACKENDS_V4: Backends<[u8; 4]> = HashMap::new();
#[btf_map]
static BACKENDS_V6: Backends<[u8; 16]> = HashMap::new();
#[btf_map]
pub(super) static CURSORS: Array<Cursor, { limits::SERVICES as usize }> = Array::new();
#[btf_map]
static CONNS_V4: Conns<[u8; 4]> = HashMap::new();
#[btf_map]
static CONNS_V6: Conns<[u8; 16]> = HashMap::new();
#[btf_map]
static SRC_RANGES_V4: SourceRanges<[u8; 4]> = LpmTrie::new();
#[btf_map]
static SRC_RANGES_V6: SourceRanges<[u8; 16]> = LpmTrie::new();
#[btf_map]
static HALF_OPEN_V4: HalfOpen<[u8; 4]> = LruHashMap::new();
#[btf_map]
static HALF_OPEN_V6: HalfOpen<[u8; 16]> = LruHashMap::new();
#[btf_map]
static AFFINITY_V4: Affinities<[u8; 4]> = LruHashMap::new();
#[btf_map]
static AFFINITY_V6: Affinities<[u8; 16]> = LruHashMap::new();
#[btf_map]
static PREFIXES_V4: Prefixes<[u8; 4]> = LpmTrie::new();
#[btf_map]
static PREFIXES_V6: Prefixes<[u8; 16]> = LpmTrie::new();
#[btf_map]
static FRAGMENTS_V4: Fragments<[u8; 4]> = LruHashMap::new();
#[btf_map]
static FRAGMENTS_V6: Fragments<[u8; 16]> = LruHashMap::new();
#[btf_map]
static SOCKETS_V4: Sockets<[u8; 4]> = LruHashMap::new();
#[btf_map]
static SOCKETS_V6: Sockets<[u8; 16]> = LruHashMap::new();
/// Network namespaces of pods whose sockets are served, by cookie; 0: not any more.
#[btf_map]
pub(super) static NAMESPACES: HashMap<u64, u32, { limits::NAMESPACES as usize }, ON_DEMAND> =
    HashMap::new();
/// What the agent learns by a call of its own.
#[btf_map]
pub(super) static LEARNED: Array<u64, 1> = Array::new();
#[btf_map]
pub(super) static SERVICE_STATS: Stats = Array::new();
#[btf_map]
pub(super) static VERSIONS: Array<u32, { abi::VERSIONS as usize }> = Array::new();
#[btf_map]
pub(super) static FRONTEND_PORTS: Array<PortSet, 1> = Array::new();
#[btf_map]
pub(super) static RECENT: Array<Recent, 1> = Array::new();
#[btf_map]
pub(super) static IFACES: HashMap<u32, Iface, { limits::IFACES as usize }, ON_DEMAND> =
    HashMap::new();
#[btf_map]
pub(super) static REASONS: PerCpuArray<u64, { Reason::ALL.len() }> = PerCpuArray::new();
/// How often this CPU may still answer refused packets.
#[btf_map]
pub(super) static RATE: PerCpuArray<Bucket, 1> = PerCpuArray::new();
#[btf_map]
static WORK_V4: Works<[u8; 4]> = PerCpuArray::new();
#[btf_map]
static WORK_V6: Works<[u8; 16]> = PerCpuArray::new();

/// A family with its maps.
pub(crate) trait Host: Parse + super::older::Older {
    /// Bits of an address.
    const BITS: u32;
    fn frontends() -> &'static Frontends<Self::Addr>;
    fn backends() -> &'static Backends<Self::Addr>;
    fn conns() -> &'static Conns<Self::Addr>;
    fn half_open() -> &'static HalfOpen<Self::Addr>;
    fn affinities() -> &'static Affinities<Self::Addr>;
    fn source_ranges() -> &'static SourceRanges<Self::Addr>;
    fn prefixes() -> &'static Prefixes<Self::Addr>;
    fn fragments() -> &'static Fragments<Self::Addr>;
    fn works() -> &'static Works<Self::Addr>;
    fn sockets() -> &'static Sockets<Self::Addr>;
}

impl Host for V4 {
    const BITS: u32 = 32;
    #[inline(always)]
    fn frontends() -> &'static Frontends<[u8; 4]> {
        &FRONTENDS_V4
    }
    #[inline(always)]
    fn backends() -> &'static Backends<[u8; 4]> {
        &BACKENDS_V4
    }
    #[inline(always)]
    fn conns() -> &'static Conns<[u8; 4]> {
        &CONNS_V4
    }
    #[inline(always)]
    fn half_open() -> &'static HalfOpen<[u8; 4]> {
        &HALF_OPEN_V4
    }
    #[inline(always)]
    fn affinities() -> &'static Affinities<[u8; 4]> {
        &AFFINITY_V4
    }
    #[inline(always)]
    fn source_ranges() -> &'static SourceRanges<[u8; 4]> {
        &SRC_RANGES_V4
    }
    #[inline(always)]
    fn prefixes() -> &'static Prefixes<[u8; 4]> {
        &PREFIXES_V4
    }
    #[inline(always)]
    fn fragments() -> &'static Fragments<[u8; 4]> {
        &FRAGMENTS_V4
    }
    #[inline(always)]
    fn works() -> &'static Works<[u8; 4]> {
        &WORK_V4
    }
    #[inline(always)]
    fn sockets() -> &'static Sockets<[u8; 4]> {
        &SOCKETS_V4
    }
}

impl Host for V6 {
    const BITS: u32 = 128;
    #[inline(always)]
    fn frontends() -> &'static Frontends<[u8; 16]> {
        &FRONTENDS_V6
    }
    #[inline(always)]
    fn backends() -> &'static Backends<[u8; 16]> {
        &BACKENDS_V6
    }
    #[inline(always)]
    fn conns() -> &'static Conns<[u8; 16]> {
        &CONNS_V6
    }
    #[inline(always)]
    fn half_open() -> &'static HalfOpen<[u8; 16]> {
        &HALF_OPEN_V6
    }
    #[inline(always)]
    fn affinities() -> &'static Affinities<[u8; 16]> {
        &AFFINITY_V6
    }
    #[inline(always)]
    fn source_ranges() -> &'static SourceRanges<[u8; 16]> {
        &SRC_RANGES_V6
    }
    #[inline(always)]
    fn prefixes() -> &'static Prefixes<[u8; 16]> {
        &PREFIXES_V6
    }
    #[inline(always)]
    fn fragments() -> &'static Fragments<[u8; 16]> {
        &FRAGMENTS_V6
    }
    #[inline(always)]
    fn works() -> &'static Works<[u8; 16]> {
        &WORK_V6
    }
    #[inline(always)]
    fn sockets() -> &'static Sockets<[u8; 16]> {
        &SOCKETS_V6
    }
}

/// This CPU's work record. One packet at a time uses it: tc programs run with bottom halves
/// disabled and ours never makes the kernel run another one before it returns.
#[inline(always)]
pub(crate) fn work<F: Host>() -> Option<&'static mut Work<F::Addr>> {
    let pointer = F::works().get_ptr_mut(0)?;
    // SAFETY: the pointer is this CPU's own element, and see above for why it is not shared.
    Some(unsafe { &mut *pointer })
}
