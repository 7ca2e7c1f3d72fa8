// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many ports lack an endpoint on this node that a policy wants there.
//!
//! **Invariant:** the sums are those of the Services last planned; a change costs one look-up.

use std::collections::BTreeMap;

use crate::model::service::ServiceKey;
use crate::plan::NoLocal;

/// The ports of all Services.
#[derive(Debug, Default)]
pub(super) struct NoLocalPorts {
    /// Those of Services that have any.
    of: BTreeMap<ServiceKey, NoLocal>,
    sum: NoLocal,
}

impl NoLocalPorts {
    /// Replaces those of a Service.
    pub(super) fn set(&mut self, key: &ServiceKey, now: NoLocal) {
        let none = NoLocal::default();
        let before = if now == none {
            self.of.remove(key)
        } else {
            self.of.insert(key.clone(), now)
        };
        let change = before.unwrap_or(none).minus(&now);
        self.sum = self.sum.minus(&change);
    }

    /// Those of all Services.
    pub(super) fn sum(&self) -> NoLocal {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_what_was_set_last() {
        let ports = |v4, v6| NoLocal {
            internal: [v4, 0],
            external: [0, v6],
        };
        let (a, b) = (ServiceKey::new("n", "a"), ServiceKey::new("n", "b"));
        let mut all = NoLocalPorts::default();
        all.set(&a, ports(1, 2));
        all.set(&b, ports(4, 0));
        assert_eq!(all.sum(), ports(5, 2));
        all.set(&a, ports(0, 1));
        assert_eq!(all.sum(), ports(4, 1));
        all.set(&a, NoLocal::default());
        all.set(&b, NoLocal::default());
        assert_eq!(all.sum(), NoLocal::default());
        assert!(all.of.is_empty());
    }
}
