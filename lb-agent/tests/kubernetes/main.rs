// SPDX-License-Identifier: MIT OR Apache-2.0
//! The API server as a source: what a server may do, and what comes of it.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a broken expectation is a failed test"
)]

mod broken;
mod events;
mod index;
mod invalid;
mod lists;
mod pods;
mod server;
mod streams;
mod support;
