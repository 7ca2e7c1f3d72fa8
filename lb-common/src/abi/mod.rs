// SPDX-License-Identifier: MIT OR Apache-2.0
//! Layouts of every map that the packet path and the agent share.
//!
//! One map, one file. All types are `#[repr(C)]` without hidden padding, ports in host order,
//! addresses in reading order, zero meaning "none" unless a field says otherwise.
//! Their size is asserted at compile time. See the README for the table of maps.

mod affinity;
mod backend;
mod conn;
mod fragment;
mod frontend;
mod iface;
#[cfg(feature = "layout-next")]
pub mod older;
mod port_set;
mod prefix;
mod recent;
mod slot;
mod socket;
mod source_range;
mod stats;
mod version;

pub use affinity::{Affinity, AffinityKey};
pub use backend::{Backend, BackendFlags, BackendState};
pub use conn::{
    Action, Conn, ConnFlags, ConnKey, ConnState, Direction, Hook, Hop, copy_link_address,
};
pub use fragment::{Fragment, FragmentKey};
pub use frontend::{Algorithm, Frontend, FrontendFlags, FrontendKey, Kind, Policy, Scope};
pub use iface::{Iface, IfaceFlags};
pub use port_set::PortSet;
pub use prefix::{PREFIX_TABLE_BITS, Prefix, PrefixKey, PrefixTable};
pub use recent::{RECENT, Recent};
pub use slot::{List, SlotKey};
pub use socket::{SocketKey, SocketPeer, Way};
pub use source_range::{SOURCE_RANGE_SERVICE_BITS, SourceRange, SourceRangeKey};
pub use stats::ServiceStats;
pub use version::{VERSIONS, version_index};

/// Version of all layouts together; stored beside the pins, checked by the loader.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "layout-next") { 4 } else { 3 };

/// A round-robin position, the value of `CURSORS`: 64 bits, because BPF has atomic addition for
/// those on every kernel and in every compiler.
pub type Cursor = u64;

/// Names of the maps as pinned, at most 15 characters so that bpftool shows them whole.
pub mod names {
    /// Frontends of IPv4.
    pub const FRONTENDS_V4: &str = "FRONTENDS_V4";
    /// Frontends of IPv6.
    pub const FRONTENDS_V6: &str = "FRONTENDS_V6";
    /// Slots of both families.
    pub const SLOTS: &str = "SLOTS";
    /// Backends of IPv4.
    pub const BACKENDS_V4: &str = "BACKENDS_V4";
    /// Backends of IPv6.
    pub const BACKENDS_V6: &str = "BACKENDS_V6";
    /// Round-robin positions by service id.
    pub const CURSORS: &str = "CURSORS";
    /// Established flows of IPv4.
    pub const CONNS_V4: &str = "CONNS_V4";
    /// Established flows of IPv6.
    pub const CONNS_V6: &str = "CONNS_V6";
    /// Flows of IPv4 that have only begun.
    pub const HALF_OPEN_V4: &str = "HALF_OPEN_V4";
    /// Flows of IPv6 that have only begun.
    pub const HALF_OPEN_V6: &str = "HALF_OPEN_V6";
    /// Backends that clients of IPv4 keep.
    pub const AFFINITY_V4: &str = "AFFINITY_V4";
    /// Backends that clients of IPv6 keep.
    pub const AFFINITY_V6: &str = "AFFINITY_V6";
    /// Source ranges of IPv4.
    pub const SRC_RANGES_V4: &str = "SRC_RANGES_V4";
    /// Source ranges of IPv6.
    pub const SRC_RANGES_V6: &str = "SRC_RANGES_V6";
    /// What the node knows of IPv4 addresses.
    pub const PREFIXES_V4: &str = "PREFIXES_V4";
    /// What the node knows of IPv6 addresses.
    pub const PREFIXES_V6: &str = "PREFIXES_V6";
    /// Ports of IPv4 datagrams in fragments.
    pub const FRAGMENTS_V4: &str = "FRAGMENTS_V4";
    /// Ports of IPv6 datagrams in fragments.
    pub const FRAGMENTS_V6: &str = "FRAGMENTS_V6";
    /// What sockets of IPv4 were told.
    pub const SOCKETS_V4: &str = "SOCKETS_V4";
    /// What sockets of IPv6 were told.
    pub const SOCKETS_V6: &str = "SOCKETS_V6";
    /// Network namespaces of pods whose sockets are served.
    pub const NAMESPACES: &str = "NAMESPACES";
    /// Counters by service id.
    pub const SERVICE_STATS: &str = "SERVICE_STATS";
    /// How often services have changed.
    pub const VERSIONS: &str = "VERSIONS";
    /// Tuples that may be of half-open flows.
    pub const RECENT: &str = "RECENT";
    /// Ports that frontends have.
    pub const FRONTEND_PORTS: &str = "FRONTEND_PORTS";
    /// Managed devices by index.
    pub const IFACES: &str = "IFACES";
    /// Counters by reason.
    pub const REASONS: &str = "REASONS";
    /// Programs that the gates lead to, while layouts change.
    #[cfg(feature = "layout-next")]
    pub const GATE_PROGRAMS: &str = "GATE_PROGRAMS";
    /// Which of them the gates lead to.
    #[cfg(feature = "layout-next")]
    pub const GATE_PHASE: &str = "GATE_PHASE";
    /// `CONNS_V4` of the older layout, while flows move.
    #[cfg(feature = "layout-next")]
    pub const OLD_CONNS_V4: &str = "OLD_CONNS_V4";
    /// `CONNS_V6` of the older layout.
    #[cfg(feature = "layout-next")]
    pub const OLD_CONNS_V6: &str = "OLD_CONNS_V6";
    /// `HALF_OPEN_V4` of the older layout.
    #[cfg(feature = "layout-next")]
    pub const OLD_HALF_V4: &str = "OLD_HALF_V4";
    /// `HALF_OPEN_V6` of the older layout.
    #[cfg(feature = "layout-next")]
    pub const OLD_HALF_V6: &str = "OLD_HALF_V6";
    /// All maps that are pinned, in no particular order.
    pub const ALL: &[&str] = &[
        FRONTENDS_V4,
        FRONTENDS_V6,
        SLOTS,
        BACKENDS_V4,
        BACKENDS_V6,
        CURSORS,
        CONNS_V4,
        CONNS_V6,
        HALF_OPEN_V4,
        HALF_OPEN_V6,
        AFFINITY_V4,
        AFFINITY_V6,
        SRC_RANGES_V4,
        SRC_RANGES_V6,
        PREFIXES_V4,
        PREFIXES_V6,
        FRAGMENTS_V4,
        FRAGMENTS_V6,
        SOCKETS_V4,
        SOCKETS_V6,
        NAMESPACES,
        SERVICE_STATS,
        VERSIONS,
        RECENT,
        FRONTEND_PORTS,
        IFACES,
        REASONS,
    ];
}

/// Sizes that the loader may replace from configuration, as compiled in.
pub mod limits {
    /// Service ids, counting from 1; also the length of `CURSORS`, which cannot grow: programs
    /// write it. 2 MiB, so there is no need for less.
    pub const SERVICES: u32 = 262_144;
    /// Backend ids of both families together, counting from 1; as many as the largest map holds.
    pub const BACKEND_IDS: u32 = BACKENDS_MAX;
    /// Frontends of one family, to begin with.
    pub const FRONTENDS: u32 = 65_536;
    /// Frontends of one family at most: 16 for each service id, 64 MiB of buckets.
    pub const FRONTENDS_MAX: u32 = 1 << 22;
    /// Slots of both families together, to begin with.
    pub const SLOTS: u32 = 1_048_576;
    /// Slots of both families together at most: 64 for each service id, 256 MiB of buckets.
    pub const SLOTS_MAX: u32 = 1 << 24;
    /// Backends of one family, to begin with.
    pub const BACKENDS: u32 = 262_144;
    /// Backends of one family at most: 64 for each service id, 256 MiB of buckets.
    pub const BACKENDS_MAX: u32 = 1 << 24;
    /// Entries of one table of established flows; a flow takes two, a masqueraded one four.
    pub const CONNECTIONS: u32 = 262_144;
    /// Entries of one table of flows that have only begun; the oldest give way.
    pub const HALF_OPEN: u32 = 65_536;
    /// Clients of one family that keep a backend; the one not seen for longest gives way.
    pub const AFFINITIES: u32 = 65_536;
    /// Prefixes of one family: addresses of the node and of its devices.
    pub const PREFIXES: u32 = 65_536;
    /// Datagrams of one family that are under way in fragments.
    pub const FRAGMENTS: u32 = 8_192;
    /// Peers of sockets of one family; one not used for longest gives way.
    pub const SOCKETS: u32 = 65_536;
    /// Network namespaces of pods on one node.
    pub const NAMESPACES: u32 = 16_384;
    /// Source ranges of one family, to begin with.
    pub const SOURCE_RANGES: u32 = 65_536;
    /// Source ranges of one family at most: 16 for each service id.
    pub const SOURCE_RANGES_MAX: u32 = 1 << 22;
    /// Managed devices.
    pub const IFACES: u32 = 16_384;
    /// Backends in one list of one service port, from the width of a slot number.
    pub const BACKENDS_PER_SERVICE: u32 = 65_535;
}

/// Protocol numbers of IANA that a frontend may have.
pub mod proto {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// Stream Control Transmission Protocol.
    pub const SCTP: u8 = 132;
}

/// Declares that a type is plain old data of exactly the sum of its fields' sizes.
macro_rules! plain {
    ($type:ty, $size:expr) => {
        const _: () = assert!(size_of::<$type>() == $size, "hidden padding");
        // SAFETY: repr(C), the size assertion excludes padding, and every field is an integer or
        // an array of bytes, for which every bit pattern is valid.
        unsafe impl bytemuck::Zeroable for $type {}
        // SAFETY: as above.
        unsafe impl bytemuck::Pod for $type {}
    };
}
use plain;
