// SPDX-License-Identifier: MIT OR Apache-2.0
//! The warnings in force, and those that have come up and are still to be told.
//!
//! **Invariant:** each warning is told once for as long as it holds.

use std::collections::{BTreeMap, BTreeSet};

use tracing::warn;

use crate::model::service::ServiceKey;
use crate::plan::warning::Warning;

/// A warning that has come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The Service.
    pub service: ServiceKey,
    /// Its uid; may be empty.
    pub uid: String,
    /// What is wrong with it.
    pub warning: Warning,
}

/// The warnings about all Services.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    by_service: BTreeMap<ServiceKey, BTreeSet<Warning>>,
    by_reason: BTreeMap<&'static str, usize>,
    news: Vec<News>,
}

impl Warnings {
    /// Replaces the warnings about the Service `key`, whose uid is `uid`.
    pub(super) fn set(&mut self, key: &ServiceKey, uid: &str, warnings: BTreeSet<Warning>) {
        let before = self.by_service.remove(key).unwrap_or_default();
        for warning in warnings.difference(&before) {
            warn!(service = %key, "{warning}");
            *self.by_reason.entry(warning.reason()).or_default() += 1;
            self.news.push(News {
                service: key.clone(),
                uid: uid.to_owned(),
                warning: warning.clone(),
            });
        }
        for gone in before.difference(&warnings) {
            if let Some(count) = self.by_reason.get_mut(gone.reason()) {
                *count = count.saturating_sub(1);
            }
        }
        if !warnings.is_empty() {
            self.by_service.insert(key.clone(), warnings);
        }
    }

    /// Those that have come up since the last call.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// How many are in force, by their reasons.
    pub(super) fn by_reason(&self) -> &BTreeMap<&'static str, usize> {
        &self.by_reason
    }

    /// Those in force.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &Warning)> {
        let all = self.by_service.iter();
        all.flat_map(|(key, all)| all.iter().map(move |warning| (key, warning)))
    }
}
