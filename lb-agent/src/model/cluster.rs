// SPDX-License-Identifier: MIT OR Apache-2.0
//! What only the cluster's objects tell of this node's addresses.
//!
//! **Invariant:** as far as the kernel side needs it, and no more.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::prefix::Prefix;

/// What the objects say that devices do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Those addresses on this node's devices that belong to Services and not to the node.
    pub service_addresses: BTreeSet<IpAddr>,
    /// Where this node's pods have their addresses; none while that is not known, and what was
    /// known before counts.
    pub pod_ranges: Option<Vec<Prefix>>,
    /// By what addresses the node's own processes are known and served; none while that is not
    /// known, and what was known before counts.
    pub node: Option<NodeFacts>,
}

/// Addresses that matter for the node's own processes; the first of each family counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// What the node's processes are known by.
    pub primary: Vec<IpAddr>,
    /// Whose node ports they reach at loopback addresses too.
    pub loopback: Vec<IpAddr>,
}
