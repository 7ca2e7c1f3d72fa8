// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control plane from manifests to tables, without a kernel.
//!
//! `golden` compares each `*.yaml` beside this file with the `*.txt` of the same name,
//! `changes` looks at single writes, `order` and `path` at lookups between writes, `folder` at
//! files that change, `partial` at starts on broken ones, `audit` at tables that others
//! have changed. `UPDATE_EXPECT=1` blesses the goldens.

mod audit;
mod changes;
mod contract;
mod folder;
mod golden;
mod order;
mod partial;
mod path;
mod scenario;
mod schema;
mod support;
