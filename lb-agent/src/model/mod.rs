// SPDX-License-Identifier: MIT OR Apache-2.0
//! The nouns of the control plane as plain values.
//!
//! [`service`] and [`endpoint`] are what a source delivers, [`snapshot`] is how it delivers them,
//! [`tables`] what the kernel holds.
//! **Invariant:** no Kubernetes types, no map handles and no clock in here, so everything that is
//! built on these values can be tested without a cluster and without privilege.

pub mod cluster;
pub mod endpoint;
pub mod pod;
pub mod prefix;
pub mod service;
pub mod snapshot;
pub mod tables;
