// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel side against a real kernel: attachments, devices, pinned maps, the sweeper.
//!
//! Every test has a network namespace and a BPF file system of its own, which go away with its
//! thread. Needs root; without it the tests say so, and fail when `LB_REQUIRE_BPF=1`.
//! Read next: `support.rs`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking, and say on stderr why they skip"
)]

mod calls;
#[path = "../support/capability.rs"]
mod capability;
mod cleanup;
mod counters;
mod devices;
mod filling;
mod foreign;
mod grow;
mod halted;
mod idle;
mod masquerade;
mod pinned;
mod pods;
mod restart;
mod rights;
mod sockets;
mod stale;
mod support;
mod traffic;
