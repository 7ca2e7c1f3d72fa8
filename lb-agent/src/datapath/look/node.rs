// SPDX-License-Identifier: MIT OR Apache-2.0
//! The devices and addresses of this node, and which devices lack a program.
//!
//! **Invariant:** the same rules as the running agent's decide which devices need programs; nothing is
//! attached here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Look;
use crate::datapath::attach::Hook;
use crate::datapath::devices::{Patterns, PodSource, Rules};
use crate::datapath::error::DatapathError;
use crate::datapath::netlink;

/// What the kernel tells of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLook {
    /// The node's own addresses of more than local meaning.
    pub addresses: BTreeSet<IpAddr>,
    /// Devices that have both programs.
    pub served: BTreeSet<String>,
    /// Devices that are to have programs and lack one, with the hook.
    pub lacking: BTreeSet<String>,
}

/// Looks at the devices of the calling thread's network namespace. Must be called on a tokio runtime.
pub async fn look_at_node(look: &Look, patterns: Patterns) -> Result<NodeLook, DatapathError> {
    let failed = |source| DatapathError::Socket { source };
    let (asking, handle, _) = rtnetlink::new_connection().map_err(failed)?;
    let asking = tokio::spawn(asking);
    let view = netlink::list(&handle).await;
    asking.abort();
    let view = view?;
    let rules = Rules {
        patterns,
        pods: PodSource::default(),
    };
    let mut found = NodeLook {
        addresses: view.node_addresses(),
        ..NodeLook::default()
    };
    for index in view.indices() {
        let Some(wanted) = view.wanted(index, &rules) else {
            continue;
        };
        let name = wanted.target.name;
        let filters = view.filters(index);
        let has = |hook: Hook, filter: bool| {
            let pin = look.pins.links().join(format!("{index}-{}", hook.name()));
            filter || pin.exists()
        };
        let hooks = [
            (Hook::Ingress, has(Hook::Ingress, filters.ours_ingress)),
            (Hook::Egress, has(Hook::Egress, filters.ours_egress)),
        ];
        let missing = hooks.iter().filter(|(_, has)| !has);
        let missing: Vec<_> = missing.map(|(hook, _)| hook.name()).collect();
        if missing.is_empty() {
            found.served.insert(name);
        } else {
            let missing = missing.join(" and ");
            found.lacking.insert(format!("{name} ({missing})"));
        }
    }
    Ok(found)
}
