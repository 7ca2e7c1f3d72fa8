// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether features are found where kernels have them.
//!
//! A feature that is taken for absent is no failure anywhere else: its replacement serves, and tests
//! expect that.
//! **Invariant:** here, and nowhere in the agent, the kernel's version counts; what a distribution took
//! into an older kernel is fine.

use std::process::Command;

use lb_agent::datapath::{Found, features};

use crate::kernel;
use crate::support::{can_run, say};

/// What a kernel may be built without (`CONFIG_INET_DIAG_DESTROY`, `CONFIG_DEBUG_INFO_BTF`), and what is
/// looked up there.
const BY_CHOICE: [&str; 2] = ["INET_DIAG_DESTROY", TYPES];
const TYPES: &str = "kernel BTF";
const BY_TYPES: &str = "BPF_F_IPV6";

#[test]
fn features_are_found_on_every_kernel_that_has_them() {
    if !can_run() {
        return;
    }
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(
        up.is_ok_and(|status| status.success()),
        "sockets are tried there"
    );
    let running = version(&kernel()).expect("the kernel's version has two numbers");
    let found = features();
    for Found {
        feature,
        since,
        here,
        ..
    } in &found
    {
        say(&format!("{feature:<20} since {since:<5} here {here}"));
    }
    let has_types = found
        .iter()
        .any(|found| found.feature == TYPES && found.here);
    let may_lack = |name| BY_CHOICE.contains(&name) || name == BY_TYPES && !has_types;
    let missed: Vec<_> = found
        .iter()
        .filter(|found| {
            let since = version(found.since).expect("a version has two numbers");
            since <= running && !found.here && !may_lack(found.feature)
        })
        .map(|found| found.feature)
        .collect();
    assert_eq!(missed, [""; 0], "Linux {running:?} has them");
}

/// Major and minor number.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
