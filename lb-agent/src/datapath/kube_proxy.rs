// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether kube-proxy runs on this node.
//!
//! **Invariant:** only what can be seen from here: an agent in a container sees the node's processes
//! with `hostPID` only. Its rules, which `netfilter.rs` looks for, can be seen always.

use std::fs;
use std::path::Path;

/// The name of its process.
const NAME: &str = "kube-proxy";

/// The process of a kube-proxy in the calling thread's network namespace, if one can be seen.
pub(super) fn running() -> Option<u32> {
    let namespace = fs::read_link("/proc/thread-self/ns/net").ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.find(|id: &u32| {
        let process = Path::new("/proc").join(id.to_string());
        fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == NAME)
            && fs::read_link(process.join("ns/net")).is_ok_and(|its| its == namespace)
    })
}
