// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel side against a real kernel: attachments, devices, pinned maps, the sweeper.
//!
//! Every test has a network namespace and a BPF file system of its own, which go away with its
//! thread. Needs root; without it the tests say so, and fail when `LB_REQUIRE_BPF=1`.
//! Read next: `support.rs`.
#![expect(missing_docs, reason = "tests are no interface")]

mod devices;
mod foreign;
mod pinned;
mod restart;
mod support;
