// SPDX-License-Identifier: MIT OR Apache-2.0
#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod datapath;
pub mod diff;
pub mod memory;
pub mod model;
pub mod notify;
pub mod plan;
pub mod reconcile;
pub mod source;
pub mod tables;
pub mod telemetry;

/// An error with its causes on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
