// SPDX-License-Identifier: MIT OR Apache-2.0
//! The nouns of the control plane as plain values.
//!
//! [`object`] is what a source delivers, [`tables`] what the kernel holds.
//! **Invariant:** no Kubernetes types, no map handles and no clock in here, so everything that is
//! built on these values can be tested without a cluster and without privilege.

pub mod tables;
