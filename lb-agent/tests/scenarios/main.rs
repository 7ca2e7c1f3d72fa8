// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control plane from manifests to tables, without a kernel.
//!
//! `golden` compares each `*.yaml` beside this file with the `*.txt` of the same name (README.md
//! says what each shows), `contract` asks the program for its plan, `changes` and `turns` look at
//! single writes, `order`, `path` and `prefixes` at lookups between writes, `histories` and `faults`
//! at everything that may have come before, `hashing` at flows whose lookup table changes, `folder` at files that change, `partial` at starts on
//! broken ones, `audit` at tables that others have changed, `sockets` at what sockets and packets have in common, `fuzz` at what is nearly right. `UPDATE_EXPECT=1` blesses the goldens.

mod addresses;
mod audit;
mod changes;
mod contract;
mod explain;
mod faults;
mod folder;
mod fuzz;
mod golden;
mod hashing;
mod histories;
mod order;
mod partial;
mod path;
mod prefixes;
mod scenario;
#[expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, also in its helpers"
)]
mod schema;
mod sockets;
mod support;
mod turns;
mod worlds;
