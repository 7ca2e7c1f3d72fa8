// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many entries each map has: at first, and at most for those that grow.
//!
//! Maps that planning writes grow, those that programs write have one size for good.
//! **Invariant:** pure; nothing here asks the kernel. Next: `shapes.rs`, `grow.rs`.

use lb_common::abi::{limits, names};

/// Entries of a map that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// When it is made.
    pub first: u32,
    /// When it is as large as it may be.
    pub most: u32,
}

impl Size {
    /// The next size of a map of `entries`, or none when it is as large as it may be.
    pub fn after(self, entries: u32) -> Option<u32> {
        (entries < self.most).then(|| entries.max(1).saturating_mul(2).min(self.most))
    }
}

/// Entries of all maps that planning writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Of `FRONTENDS_*`, each.
    pub frontends: Size,
    /// Of `SLOTS`.
    pub slots: Size,
    /// Of `BACKENDS_*`, each.
    pub backends: Size,
    /// Of `SRC_RANGES_*`, each.
    pub source_ranges: Size,
}

impl Default for Sizes {
    fn default() -> Self {
        let size = |first, most| Size { first, most };
        Self {
            frontends: size(limits::FRONTENDS, limits::FRONTENDS_MAX),
            slots: size(limits::SLOTS, limits::SLOTS_MAX),
            backends: size(limits::BACKENDS, limits::BACKENDS_MAX),
            source_ranges: size(limits::SOURCE_RANGES, limits::SOURCE_RANGES_MAX),
        }
    }
}

impl Sizes {
    /// The size of the map `name`, or none when it does not grow.
    pub fn of(&self, name: &str) -> Option<Size> {
        match name {
            names::FRONTENDS_V4 | names::FRONTENDS_V6 => Some(self.frontends),
            names::SLOTS => Some(self.slots),
            names::BACKENDS_V4 | names::BACKENDS_V6 => Some(self.backends),
            names::SRC_RANGES_V4 | names::SRC_RANGES_V6 => Some(self.source_ranges),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_doubles_until_it_is_as_large_as_it_may_be() {
        let size = Size {
            first: 10,
            most: 64,
        };
        let mut seen = vec![size.first];
        while let Some(next) = size.after(seen[seen.len() - 1]) {
            seen.push(next);
        }
        assert_eq!(seen, [10, 20, 40, 64]);
        assert_eq!(size.after(100), None, "a larger one never shrinks");
    }

    #[test]
    fn the_largest_sizes_are_within_what_ids_can_name() {
        let sizes = Sizes::default();
        assert!(sizes.backends.most >= limits::BACKEND_IDS);
        for name in names::ALL {
            if let Some(size) = sizes.of(name) {
                assert!(size.first <= size.most, "{name}");
            }
        }
    }
}
