// SPDX-License-Identifier: MIT OR Apache-2.0
//! End to end in a virtual machine: what needs kernel modules that not every machine has.
//!
//! `cargo xtask test vm` boots a kernel that has them and runs these tests there; no other level
//! selects them. **Invariant:** what is missing fails: nothing here looks first whether it is there.
//! Read next: `sctp.rs` and `vlan.rs`.

#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "made for other programs of tests, too")]
mod common;

#[path = "../e2e/cluster.rs"]
#[expect(
    dead_code,
    unused_macros,
    reason = "made for other programs of tests, too"
)]
mod cluster;
#[path = "../e2e/inspect.rs"]
#[expect(dead_code, reason = "made for other programs of tests, too")]
mod inspect;
mod sctp;
mod vlan;

use lb_common::Reason;
use lb_lab::Node;

/// Nothing was dropped or odd on a node, but redirects of its own: it routes packets back out of the
/// device that they came in by, and nobody shall take the short cut past the translation.
fn assert_nothing_odd(node: &Node) {
    let mut reasons = inspect::reasons(node);
    reasons.retain(|(reason, _)| *reason != Reason::Redirect);
    assert_eq!(reasons, [], "{node:?}");
}
