// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this kernel has beyond the oldest that is served, Linux 5.10, and the programs made to fit it.
//!
//! **Invariant:** found out by trying, never by a version: distributions take features into older kernels.
//! Read next: `features.rs`, then `object.rs`.

mod attempt;
mod features;
mod object;

pub use features::{Feature, Found, features};
pub use object::fit;

pub(in crate::datapath) use features::has;

/// Whether programs can be links at devices; says so where they cannot.
pub(in crate::datapath) fn has_tcx() -> bool {
    let here = has(Feature::Tcx);
    if !here {
        tracing::info!("this kernel has no TCX; attaching with clsact filters");
    }
    here
}
