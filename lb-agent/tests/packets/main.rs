// SPDX-License-Identifier: MIT OR Apache-2.0
//! A packet's life in the kernel, by `BPF_PROG_TEST_RUN`: the real programs on real maps, one
//! packet at a time, in a network namespace of the test's own.
//!
//! Every step states the verdict, the exact bytes with all checksums computed from scratch, all
//! counters and all entries of the connection tables.
//! **Invariant:** a checksum left to the hardware (`CHECKSUM_PARTIAL`) cannot be made this way;
//! the lab has real devices for that. Read next: `case.rs`, then `life.rs`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, also in its helpers"
)]

mod case;
mod checksums;
mod collisions;
mod contents;
mod drops;
mod fragments;
mod icmp;
mod kernel;
mod life;
mod link;
mod malformed;
mod masquerade;
mod message;
mod neighbours;
mod pool;
mod port_pool;
mod reject;
mod reselect;
mod sctp;
mod spread;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/syscall.rs"]
mod syscall;
mod untouched;
mod wire;
