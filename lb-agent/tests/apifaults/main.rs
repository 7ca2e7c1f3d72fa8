// SPDX-License-Identifier: MIT OR Apache-2.0
//! The API server fails in every way that the lab's server knows, and the tables end up right.
//!
//! Source, reconciler and tables in memory run in one process against `lb_lab::ApiServer`.
//! **Invariant:** what the tables must hold comes from the same objects by another way: one list,
//! read by the source of manifests.
//! Read next: world.rs, the objects; agent.rs, the agent; cases.rs, the faults.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: a broken expectation is a failed test"
)]

mod agent;
mod cases;
mod events;
mod history;
mod journeys;
mod lies;
mod outages;
mod real;
mod remembered;
mod requests;
mod selectors;
mod world;
