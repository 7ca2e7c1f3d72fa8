// SPDX-License-Identifier: MIT OR Apache-2.0
//! The health checks that Services ask for, and those that have changed and are still to be told.
//!
//! **Invariant:** a change is told once; of several before one call only the last one is.

use std::collections::BTreeMap;

use crate::model::service::ServiceKey;
use crate::plan::health::HealthCheck;

/// A health check that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthNews {
    /// The Service.
    pub service: ServiceKey,
    /// Its uid; may be empty.
    pub uid: String,
    /// What is asked for now; none when nothing is any more.
    pub check: Option<HealthCheck>,
}

/// The health checks of all Services.
#[derive(Debug, Default)]
pub(super) struct HealthChecks {
    in_force: BTreeMap<ServiceKey, HealthCheck>,
    changed: BTreeMap<ServiceKey, HealthNews>,
}

impl HealthChecks {
    /// Replaces the health check of the Service `key`, whose uid is `uid`.
    pub(super) fn set(&mut self, key: &ServiceKey, uid: &str, check: Option<HealthCheck>) {
        if self.in_force.get(key) == check.as_ref() {
            return;
        }
        let news = HealthNews {
            service: key.clone(),
            uid: uid.to_owned(),
            check: check.clone(),
        };
        self.changed.insert(key.clone(), news);
        match check {
            Some(check) => self.in_force.insert(key.clone(), check),
            None => self.in_force.remove(key),
        };
    }

    /// Those that have changed since the last call, in the order of the Services' names.
    pub(super) fn take_changed(&mut self) -> Vec<HealthNews> {
        std::mem::take(&mut self.changed).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &ServiceKey, port: u16, local_endpoints: usize) -> HealthCheck {
        HealthCheck {
            service: key.clone(),
            port,
            local_endpoints,
        }
    }

    #[test]
    fn each_change_is_told_once() {
        let key = ServiceKey::new("shop", "web");
        let mut checks = HealthChecks::default();
        checks.set(&key, "u", None);
        assert_eq!(checks.take_changed(), [], "there was none");
        checks.set(&key, "u", Some(check(&key, 30_000, 1)));
        checks.set(&key, "u", Some(check(&key, 30_000, 2)));
        let told = checks.take_changed();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].check, Some(check(&key, 30_000, 2)));
        checks.set(&key, "u", Some(check(&key, 30_000, 2)));
        assert_eq!(checks.take_changed(), []);
        checks.set(&key, "", None);
        assert_eq!(checks.take_changed()[0].check, None);
    }
}
