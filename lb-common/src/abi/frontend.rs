// SPDX-License-Identifier: MIT OR Apache-2.0
//! `FRONTENDS_V4` and `FRONTENDS_V6`: what clients dial.
//!
//! Written by the agent only; one entry per (address, port, protocol).
//! **Invariant:** the entry is written after the slots that its counts cover.

#[cfg(doc)]
use super::List;
use super::plain;

/// What a client dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct FrontendKey<A> {
    /// Destination address.
    #[cfg(not(feature = "layout-next"))]
    pub address: A,
    /// Destination port.
    pub port: u16,
    /// Protocol number of IANA.
    pub proto: u8,
    _pad: u8,
    /// Destination address: last in the layout of the next version.
    #[cfg(feature = "layout-next")]
    pub address: A,
}

plain!(FrontendKey<[u8; 4]>, 4 + 2 + 1 + 1);
plain!(FrontendKey<[u8; 16]>, 16 + 2 + 1 + 1);

impl<A> FrontendKey<A> {
    /// A key; `port` in host order.
    #[inline(always)]
    pub const fn new(address: A, port: u16, proto: u8) -> Self {
        Self {
            address,
            port,
            proto,
            _pad: 0,
        }
    }
}

/// How a backend is chosen for a new flow; the `algorithm` byte of [`Frontend`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// One after the other, shared by all CPUs of the node.
    #[default]
    RoundRobin = 0,
    /// Uniformly at random.
    Random = 1,
    /// By a hash of the flow's tuple, through a lookup table that is the same on every node.
    Maglev = 2,
    /// By a hash of the client's address, through the same table.
    SourceHash = 3,
}

impl Algorithm {
    /// The algorithm of a stored byte, or none when it is unknown.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::RoundRobin),
            1 => Some(Self::Random),
            2 => Some(Self::Maglev),
            3 => Some(Self::SourceHash),
            _ => None,
        }
    }

    /// True when it chooses through a lookup table.
    #[inline(always)]
    pub const fn has_table(self) -> bool {
        matches!(self, Self::Maglev | Self::SourceHash)
    }
}

/// What a frontend was made from; the `kind` byte of [`Frontend`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A virtual address inside the cluster.
    #[default]
    ClusterIp = 0,
    /// A port on an address of this node.
    NodePort = 1,
    /// An entry of `spec.externalIPs`.
    ExternalIp = 2,
    /// An address of a load balancer.
    LoadBalancer = 3,
}

impl Kind {
    /// The kind of a stored byte, or none when it is unknown.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::ClusterIp),
            1 => Some(Self::NodePort),
            2 => Some(Self::ExternalIp),
            3 => Some(Self::LoadBalancer),
            _ => None,
        }
    }
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Scope {
    /// A pod of this node.
    Pod = 0,
    /// This node itself, its host-network pods too.
    Node = 1,
    /// Everything else.
    External = 2,
}

impl Scope {
    /// All scopes, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Pod, Self::Node, Self::External];
}

/// Bits of the policy that a [`Frontend`] holds for each [`Scope`].
pub struct Policy;

impl Policy {
    /// Choose from `List::Local` instead of `List::Cluster`; the bit is the list's number.
    pub const LOCAL_LIST: u8 = 1;
    /// Stay silent when the list is empty; without it the client is refused.
    pub const DROP_IF_EMPTY: u8 = 2;
    /// Masquerade when the backend is on another node.
    pub const SNAT_REMOTE: u8 = 4;
    /// Masquerade whatever the backend.
    pub const SNAT_ALWAYS: u8 = 8;
}

/// Bits of [`Frontend::flags`].
pub struct FrontendFlags;

impl FrontendFlags {
    /// Only sources with an entry in `SRC_RANGES_*` are served.
    pub const SOURCE_RANGES: u8 = 1;
    /// Begins no flow: what would begin one passes untouched, to whatever else serves the address.
    /// Flows that are there go on. An agent never plans it; who takes lb out of service sets it.
    pub const DRAINING: u8 = 1 << 1;
}

/// Where a frontend leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Frontend {
    /// Service id: one service port in one family, never 0.
    pub service: u32,
    /// Changes when flows of UDP must choose their backend anew.
    pub generation: u32,
    /// Seconds for which a client keeps its backend; 0: no affinity.
    pub affinity_secs: u32,
    /// Slots in use in `List::Cluster`, `0..cluster_count`.
    pub cluster_count: u16,
    /// Slots in use in `List::Local`, `0..local_count`.
    pub local_count: u16,
    /// Bits of [`Policy`] for sources in [`Scope::Pod`].
    pub pod_policy: u8,
    /// Bits of [`Policy`] for sources in [`Scope::Node`].
    pub node_policy: u8,
    /// Bits of [`Policy`] for sources in [`Scope::External`].
    pub external_policy: u8,
    /// An [`Algorithm`].
    pub algorithm: u8,
    /// A [`Kind`].
    pub kind: u8,
    /// Bits of [`FrontendFlags`].
    pub flags: u8,
    /// Slots of the lookup table beside each list that has two backends or more; 0: none.
    pub table_size: u16,
}

plain!(Frontend, 4 + 4 + 4 + 2 + 2 + 3 + 1 + 1 + 1 + 2);

impl Frontend {
    /// The policy for sources in `scope`, bits of [`Policy`].
    ///
    /// VERIFIER: by shifting, here and in [`Self::count`], because each branch in the loop over
    /// backends multiplies what the verifier has to walk through.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "one of three bytes is meant"
    )]
    pub const fn policy(&self, scope: Scope) -> u8 {
        let all = (self.external_policy as u32) << 16
            | (self.node_policy as u32) << 8
            | self.pod_policy as u32;
        (all >> (scope as u32 * 8)) as u8
    }

    /// The number of the [`List`] that sources in `scope` choose from.
    #[inline(always)]
    pub const fn list(&self, scope: Scope) -> u16 {
        (self.policy(scope) & Policy::LOCAL_LIST) as u16
    }

    /// Whether it begins no flow any more.
    #[inline(always)]
    pub const fn is_draining(&self) -> bool {
        self.flags & FrontendFlags::DRAINING != 0
    }

    /// Slots in use in the list of number `list`.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "one of two halves is meant"
    )]
    pub const fn count(&self, list: u16) -> u16 {
        let all = (self.local_count as u32) << 16 | self.cluster_count as u32;
        (all >> (list as u32 * 16)) as u16
    }

    /// Takes every field over; see `Conn::take_over` for why one by one.
    #[inline(always)]
    pub fn take_over(&mut self, other: &Self) {
        self.service = other.service;
        self.generation = other.generation;
        self.affinity_secs = other.affinity_secs;
        self.cluster_count = other.cluster_count;
        self.local_count = other.local_count;
        self.pod_policy = other.pod_policy;
        self.node_policy = other.node_policy;
        self.external_policy = other.external_policy;
        self.algorithm = other.algorithm;
        self.kind = other.kind;
        self.flags = other.flags;
        self.table_size = other.table_size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_survives_its_byte() {
        for (byte, algorithm) in (0..).zip([
            Algorithm::RoundRobin,
            Algorithm::Random,
            Algorithm::Maglev,
            Algorithm::SourceHash,
        ]) {
            assert_eq!(algorithm as u8, byte);
            assert_eq!(Algorithm::from_byte(byte), Some(algorithm));
        }
        assert_eq!(Algorithm::from_byte(255), None);
    }

    #[test]
    fn every_kind_survives_its_byte() {
        for kind in [
            Kind::ClusterIp,
            Kind::NodePort,
            Kind::ExternalIp,
            Kind::LoadBalancer,
        ] {
            assert_eq!(Kind::from_byte(kind as u8), Some(kind));
        }
        assert_eq!(Kind::from_byte(255), None);
    }

    #[test]
    fn each_scope_has_a_policy_and_a_list_of_its_own() {
        let frontend = Frontend {
            cluster_count: 5,
            local_count: 2,
            external_policy: Policy::LOCAL_LIST | Policy::DROP_IF_EMPTY,
            ..Frontend::default()
        };
        let counts = Scope::ALL.map(|scope| frontend.count(frontend.list(scope)));
        assert_eq!(counts, [5, 5, 2]);
    }

    #[test]
    fn every_field_is_taken_over() {
        let mut from: Frontend = bytemuck::Zeroable::zeroed();
        for (value, byte) in (1..).zip(bytemuck::bytes_of_mut(&mut from)) {
            *byte = value;
        }
        let mut to = Frontend::default();
        to.take_over(&from);
        assert_eq!(bytemuck::bytes_of(&to), bytemuck::bytes_of(&from));
    }
}
