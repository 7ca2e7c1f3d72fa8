// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where objects come from. The only place that knows Kubernetes' own types.
//!
//! [`manifests`] reads and watches a folder, [`kubernetes`] follows an API server, [`state`]
//! remembers on disk what either of them told. `convert` checks objects and fills in defaults,
//! [`index`] keeps what is known and names the Services that a change touches.
//! **Invariant:** nothing leaves this room but values of `crate::model`.

mod convert;
pub mod index;
pub mod kubernetes;
pub mod manifests;
pub mod state;

use std::time::Instant;

use crate::model::snapshot::Update;

/// An update on its way to the reconciler.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// When the source got it, before it was decoded.
    pub received: Instant,
    /// What it says.
    pub update: Update,
}

/// Where a source sends what it finds.
pub type Updates = tokio::sync::mpsc::UnboundedSender<Delivery>;
